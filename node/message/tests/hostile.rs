//! Messages made to hurt: each is digested, stored, fetched and searched on a stack of 512 KiB, and limits cut the
//! structure, never the bytes.

mod common;

use std::thread;

use common::{Value, check_body, check_envelope, read};
use message::limits::{
    ADDRESSES_MAX, DEPTH_MAX, DIGEST_OCTETS_MAX, ENVELOPE_OCTETS_MAX, PARTS_MAX, STRING_OCTETS_MAX,
    STRUCTURE_OCTETS_MAX,
};
use message::{Digest, Needle, PartKind, Section, SectionText, header_contains, header_fields, text_contains};

const STACK_OCTETS: usize = 512 * 1024;

/// Does all that is ever done with a message and gives its digest.
fn survive(raw: Vec<u8>) -> (Vec<u8>, Digest) {
    let work = move || {
        let digest = Digest::of(&raw);
        check_envelope(&read(&digest.envelope));
        let shown = check_body(&read(&digest.body_structure), true);
        assert_eq!(shown, check_body(&read(&digest.body()), false));
        assert_eq!(shown, digest.parts.len());
        assert!(shown <= PARTS_MAX);
        assert!(digest.parts.iter().all(|part| part.depth <= DEPTH_MAX));
        // Soft limits: what was begun within them is written whole.
        assert!(digest.envelope.len() <= ENVELOPE_OCTETS_MAX + 16 * STRING_OCTETS_MAX);
        assert!(digest.body_structure.len() <= STRUCTURE_OCTETS_MAX + 16 * STRING_OCTETS_MAX + 128 * PARTS_MAX);
        let encoded = digest.encode();
        assert!(encoded.len() <= DIGEST_OCTETS_MAX, "{} octets", encoded.len());
        assert_eq!(Digest::decode(&encoded).as_ref(), Ok(&digest));
        let whole = digest.section(&[], &SectionText::Full);
        assert_eq!(whole, Some(Section::Octets(0..raw.len() as u64)));
        let deep = vec![1; 2_000];
        let _ = digest.section(&deep, &SectionText::Text);
        let header = &raw[..digest.header().end as usize];
        let nowhere = Needle::new("zq-nowhere-\u{fc}");
        assert!(!header_contains(header, Some("to"), &nowhere));
        assert!(!text_contains(&raw, &digest, &nowhere));
        let subset = header_fields(header, &["to".to_owned()], false);
        assert!(subset.ends_with(b"\r\n"));
        digest.base_subject();
        digest.thread_references();
        (raw, digest)
    };
    let thread = thread::Builder::new().stack_size(STACK_OCTETS).spawn(work).expect("a thread starts");
    thread.join().expect("no message brings the thread down")
}

fn digest(raw: impl Into<Vec<u8>>) -> Digest {
    survive(raw.into()).1
}

fn depth(digest: &Digest) -> usize {
    digest.parts.iter().map(|part| part.depth).max().unwrap_or(0)
}

/// An item of the rendered envelope, by its place.
fn envelope_item(digest: &Digest, at: usize) -> Value {
    read(&digest.envelope).list()[at].clone()
}

#[test]
fn nesting_of_10_000_multiparts_is_cut_at_the_limit() {
    let mut raw = String::new();
    for level in 0..10_000 {
        raw.push_str(&format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n"));
    }
    raw.push_str("\r\nthe end\r\n");
    for level in (0..10_000).rev() {
        raw.push_str(&format!("--b{level}--\r\n"));
    }
    let (raw, digest) = survive(raw.into_bytes());
    assert_eq!((depth(&digest), digest.parts.len()), (DEPTH_MAX, DEPTH_MAX + 1));
    // The deepest part that is shown is something to save, with all that is below it.
    let last = digest.parts.last().unwrap();
    assert_eq!(last.kind, PartKind::Leaf);
    assert!(!last.is_text);
    let rest = String::from_utf8_lossy(&raw[last.body_start as usize..last.end as usize]).into_owned();
    assert!(rest.starts_with("--b100\r\n") && rest.contains("the end") && rest.ends_with("--b100--"));
    // The same, none of them closed, and all with one boundary.
    let one = digest_of_repeated("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n", 10_000);
    assert_eq!(depth(&one), DEPTH_MAX);
}

fn digest_of_repeated(text: &str, times: usize) -> Digest {
    digest(text.repeat(times))
}

#[test]
fn messages_nested_1_000_deep_are_cut_at_the_limit() {
    let digest = digest_of_repeated("Subject: x\r\nContent-Type: message/rfc822\r\n\r\n", 1_000);
    assert_eq!((depth(&digest), digest.parts.len()), (DEPTH_MAX, DEPTH_MAX + 1));
    assert!(digest.parts[..DEPTH_MAX].iter().all(|part| part.kind == PartKind::Message));
    let digest = digest_of_repeated("Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n", 1_000);
    assert_eq!(depth(&digest), DEPTH_MAX);
}

#[test]
fn of_100_000_parts_the_first_10_000_are_shown() {
    let mut raw = "Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_owned();
    raw.push_str(&"--b\r\n\r\nx\r\n".repeat(100_000));
    let digest = digest(raw);
    // As many as fit into the digest.
    assert!((3_000..PARTS_MAX).contains(&digest.parts.len()), "{}", digest.parts.len());
    let last = digest.parts.len() as u32 - 1;
    let octets = digest.parts.last().unwrap().body();
    assert_eq!(digest.section(&[last], &SectionText::Full), Some(Section::Octets(octets)));
    assert_eq!(digest.section(&[last + 1], &SectionText::Full), None);
    // Containers count too, and each part costs few octets.
    let empty = "--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\nContent-Type: message/rfc822\r\n\r\n";
    let mut raw = "Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_owned();
    raw.push_str(&empty.repeat(30_000));
    survive(raw.into_bytes());
}

#[test]
fn boundaries_that_never_close_or_begin_alike_are_told_apart() {
    let unclosed = digest("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n");
    assert_eq!(unclosed.parts.len(), 3);
    assert_eq!(unclosed.parts[2].end, unclosed.size);
    for (outer, inner) in [("abc", "abcd"), ("abcd", "abc"), ("abc", "abc--"), ("a b", "a")] {
        let raw = format!(
            "Content-Type: multipart/mixed; boundary=\"{outer}\"\r\n\r\n--{outer}\r\n\
             Content-Type: multipart/mixed; boundary=\"{inner}\"\r\n\r\n--{inner}  \r\n\r\none\r\n--{inner}x\r\n\
             --{inner}\r\n\r\ntwo\r\n--{inner}--\r\nepilogue\r\n--{outer}\r\n\r\nthree\r\n--{outer}--\r\n"
        );
        let (raw, digest) = survive(raw.into_bytes());
        let bodies: Vec<_> = digest
            .parts
            .iter()
            .filter(|part| part.kind == PartKind::Leaf)
            .map(|part| String::from_utf8_lossy(&raw[part.body_start as usize..part.end as usize]).into_owned())
            .collect();
        assert_eq!(bodies, [format!("one\r\n--{inner}x"), "two".to_owned(), "three".to_owned()], "{outer} {inner}");
    }
}

#[test]
fn a_multipart_without_parts_shows_its_text_as_its_one_part() {
    for kind in ["multipart/mixed", "multipart/mixed; boundary=\"\"", "multipart/mixed; boundary=b", "multipart/x"] {
        let (raw, digest) = survive(format!("Content-Type: {kind}\r\n\r\nall there is\r\n").into_bytes());
        assert_eq!(digest.parts.len(), 2, "{kind}");
        let Some(Section::Octets(octets)) = digest.section(&[1], &SectionText::Full) else { panic!("{kind}") };
        assert_eq!(&raw[octets.start as usize..octets.end as usize], b"all there is\r\n");
        assert!(text_contains(&raw, &digest, &Needle::new("ALL THERE")));
    }
}

#[test]
fn of_many_addresses_the_first_thousand_are_shown() {
    let to = vec!["Some Body <body@example.test>"; 100_000].join(", ");
    let digest = digest(format!("From: a@b\r\nTo: {to}\r\n\r\n"));
    assert_eq!(envelope_item(&digest, 5).list().len(), ADDRESSES_MAX);
    let spread = format!("To: {}\r\n", vec!["a@b"; 1_000].join(","));
    let kinds = ["To", "Cc", "Bcc", "From", "Reply-To"];
    let raw: String = kinds.iter().map(|kind| spread.replace("To", kind).repeat(100)).collect();
    let digest = self::digest(raw);
    assert!((2..8).all(|at| envelope_item(&digest, at).list().len() == ADDRESSES_MAX));
    for odd in ["(", "\"", "<", "a:", "a:b;", "@", ",", ";", "[", "\\", "<@a,", "(a)", "=?", "\"\\", "<>"] {
        self::digest(format!("From: {0}\r\nTo: {0}\r\nContent-Type: {0}\r\n\r\n", odd.repeat(50_000)));
    }
}

#[test]
fn continuations_by_the_ten_thousand_are_joined_and_cut() {
    let pieces: String = (0..50_000).map(|n| format!(";\r\n name*{n}*=%41%42%43%44%45%46%47%48")).collect();
    let header = format!("Content-Type: application/x{pieces}\r\nContent-Disposition: attachment{pieces}\r\n\r\n");
    let structure = read(&digest(header).body_structure);
    let parameters = structure.list()[2].list().to_vec();
    assert_eq!(parameters.len(), 2);
    assert_eq!(parameters[0].text(), Some(b"name*".as_slice()));
    assert_eq!(parameters[1].text().unwrap().len(), STRING_OCTETS_MAX);
    digest(format!("Content-Type: text/plain{}\r\n\r\n", "; a=b".repeat(100_000)));
    let reversed: String = (0..50_000).rev().map(|n| format!("; name*{n}=x; {n}*0=y")).collect();
    digest(format!("Content-Type: text/plain{reversed}\r\n\r\n"));
}

#[test]
fn long_lines_and_many_headers_are_taken_as_they_are() {
    let long = "x".repeat(1 << 20);
    for name in ["Subject", "To", "Content-Type", "X-Long", "References", "Date", "Message-ID", "Content-ID", ""] {
        let (raw, digest) = survive(format!("{name}: {long}\r\n\r\nbody\r\n").into_bytes());
        assert_eq!(digest.header(), 0..raw.len() as u64 - 6);
    }
    let digest = digest(format!("Subject: {}\r\n\r\n", "x".repeat(8 << 20)));
    assert_eq!(envelope_item(&digest, 1).text().unwrap().len(), STRING_OCTETS_MAX);
    let (raw, digest) = survive(format!("{}\r\nbody", "Subject: x\r\n".repeat(100_000)).into_bytes());
    assert_eq!(digest.header().end as usize, raw.len() - 4);
    survive("Content-Type: multipart/mixed; boundary=b\r\n".repeat(100_000).into_bytes());
    survive(format!("Subject: x{}\r\n\r\n", "\r\n x".repeat(200_000)).into_bytes());
}

#[test]
fn nul_and_bare_line_ends_are_data_or_line_ends() {
    let (_, digest) = survive(b"Subject: a\0b\rc\nTo: x@y\n\nbody\n".to_vec());
    assert_eq!(envelope_item(&digest, 1).text(), Some(b"ab\rc".as_slice()));
    assert_eq!(digest.header(), 0..24);
    // A bare CR neither ends a line nor makes one empty.
    let (_, digest) = survive(b"Subject: a\r\rbody\r\n\r\r\n\r\nrest".to_vec());
    assert_eq!(digest.header().end, digest.size - 4);
    let (_, digest) =
        survive(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\r\n--b\r\n\r\ntwo\n\r--b\n--b--\n".to_vec());
    let sizes: Vec<_> = digest.parts.iter().skip(1).map(|part| part.end - part.body_start).collect();
    assert_eq!(sizes, [3, 8]);
    survive(vec![0; 1 << 20]);
    survive(vec![b'\r'; 1 << 20]);
    survive(vec![b'\n'; 1 << 20]);
}

#[test]
fn transfer_encodings_that_lie_are_searched_all_the_same() {
    for (encoding, body, needle) in [
        ("base64", "this is no base64, hello!".repeat(10_000), None),
        ("base64", "QUJD".repeat(100_000), Some("abcabc")),
        ("base64", "QUJDQ".to_owned(), Some("abc")),
        ("base64", "=".repeat(1 << 20), None),
        ("quoted-printable", "=".repeat(1 << 20), Some("===")),
        ("quoted-printable", "=4".repeat(1 << 19), Some("=4=4")),
        ("quoted-printable", "=\r\n".repeat(1 << 19), None),
        ("x-unknown", "plain".to_owned(), Some("plain")),
    ] {
        let raw = format!("Content-Transfer-Encoding: {encoding}\r\n\r\n{body}");
        let (raw, digest) = survive(raw.into_bytes());
        if let Some(needle) = needle {
            assert!(text_contains(&raw, &digest, &Needle::new(needle)), "{encoding} {needle}");
        }
    }
}

#[test]
fn an_encoded_message_is_something_to_save() {
    let raw = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDogeA==\r\n";
    let digest = digest(raw);
    assert!(digest.body_structure.starts_with(b"(\"application\" \"octet-stream\" NIL NIL NIL \"base64\" "));
}

#[test]
fn charsets_and_encoded_words_of_any_length_are_decoded_or_left() {
    let charset = "c".repeat(10 * 1024);
    let (raw, digest) = survive(
        format!("Subject: =?{charset}?q?x?=\r\nContent-Type: text/plain; charset={charset}\r\n\r\ngr\u{fc}n\r\n")
            .into_bytes(),
    );
    assert!(text_contains(&raw, &digest, &Needle::new("GR\u{dc}N")));
    for word in ["=?utf-8?b?", "=?utf-8?q?"] {
        let subject = format!("Subject: {word}{}?=\r\n\r\n", "QUJD".repeat(1 << 18));
        let (raw, digest) = survive(subject.into_bytes());
        let needle = if word.contains("?b?") { "abcabc" } else { "qujdqujd" };
        assert!(header_contains(&raw, Some("subject"), &Needle::new(needle)));
        assert_eq!(envelope_item(&digest, 1).text().unwrap().len(), STRING_OCTETS_MAX);
    }
    for piece in ["=?", "=?utf-8?q?", "=?utf-8?q?=?=", "=?utf-7?b?QQ==?= ", "=?a?q?x?= =?b?q?y?=", "?=", "=?utf-8?b?"] {
        digest_of_words(piece);
    }
    // As many charsets as parts.
    let mut raw = "Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_owned();
    for n in 0..20_000 {
        raw.push_str(&format!("--b\r\nContent-Type: text/plain; charset=c{n}\r\n\r\nx\r\n"));
    }
    survive(raw.into_bytes());
}

fn digest_of_words(piece: &str) {
    digest(format!("Subject: {0}\r\nTo: {0} <a@b>\r\n\r\n", piece.repeat(1 << 15)));
}

/// Everything at its limit at once: still one log entry, and still something to see of each.
#[test]
fn a_digest_fits_its_bound_whatever_the_message_piles_up() {
    let long = "n".repeat(STRING_OCTETS_MAX);
    let addresses = |count: usize| vec![format!("\"{long}\" <{long}@{long}>"); count].join(", ");
    let references: String = (0..200).map(|n| format!(" <{n:0>990}@x>")).collect();
    let token = "t".repeat(127);
    let mut raw = format!("From: {0}\r\nTo: {0}\r\nReferences:{references}\r\n", addresses(20));
    raw.push_str("Content-Type: multipart/mixed; boundary=b\r\n\r\n");
    for n in 0..20_000 {
        let charset = format!("{n:c>127}");
        raw.push_str(&format!("--b\r\nContent-Type: {token}/{token}; charset={charset}; x={charset}\r\n"));
        raw.push_str(&format!("Content-Transfer-Encoding: {token}\r\nContent-Description: d{n}\r\n\r\nx\r\n"));
    }
    let digest = digest(raw);
    assert!(digest.parts.len() > DEPTH_MAX && digest.references.len() >= 2);
    assert!(!envelope_item(&digest, 2).list().is_empty());
    // Containers at the place of the cut go with their parts.
    for inner in ["message/rfc822", "multipart/mixed; boundary=c"] {
        let part =
            format!("--b\r\nContent-Type: {inner}; x={0}\r\n\r\n--c\r\nContent-Type: {0}/{0}\r\n\r\nx\r\n", token);
        survive(format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n{}", part.repeat(20_000)).into_bytes());
    }
}

#[test]
fn absurd_fields_are_shown_and_mean_nothing() {
    let digest = digest(
        "Content-Length: 99999999999999999999\r\nDate: 99 Foo 99999 99:99:99 +99999\r\nMessage-ID: <<<>>>\r\n\
         References: <\r\n\r\n",
    );
    assert_eq!(digest.sent, None);
    assert_eq!(digest.message_id(), None);
    assert_eq!(envelope_item(&digest, 0).text(), Some(b"99 Foo 99999 99:99:99 +99999".as_slice()));
}

#[test]
fn empty_messages_headers_only_and_bodies_only_have_one_part() {
    let nothing = b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)".as_slice();
    let text = |octets: u64, lines: u64| {
        format!("(\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" {octets} {lines})")
    };
    for (raw, header, octets, lines) in [
        ("", 0, 0, 0),
        ("\r\n", 2, 0, 0),
        ("\n", 1, 0, 0),
        ("\r\nbody only\r\n", 2, 11, 1),
        ("X-A: 1\r\n", 8, 0, 0),
        ("X-A: 1", 6, 0, 0),
        ("no header, no empty line", 24, 0, 0),
        ("X-A: 1\r\n\r\na\nb", 10, 3, 1),
    ] {
        let digest = digest(raw);
        assert_eq!(&digest.envelope[..], nothing, "{raw:?}");
        assert_eq!(String::from_utf8_lossy(&digest.body()), text(octets, lines), "{raw:?}");
        assert_eq!(digest.header(), 0..header, "{raw:?}");
        assert_eq!(digest.sent, None);
    }
}

#[test]
fn parts_that_end_within_their_header_are_empty() {
    let raw = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n--b\r\n\
               Content-Type: multipart/mixed; boundary=c\r\n--b\r\nX: y\r\n--b\r\n--b--";
    let digest = digest(raw);
    let kinds: Vec<_> = digest.parts.iter().map(|part| (part.depth, part.kind)).collect();
    let (leaf, multipart, message) = (PartKind::Leaf, PartKind::Multipart, PartKind::Message);
    let expected = [(0, multipart), (1, message), (2, leaf), (1, multipart), (2, leaf), (1, leaf), (1, leaf)];
    assert_eq!(kinds, expected);
    assert!(digest.parts[1..].iter().all(|part| part.body().is_empty()));
}
