//! The examples of RFC 3501 and RFC 2045 to 2049 against values checked by hand.

mod common;

use common::{check_body, check_envelope, read};
use message::{Digest, EnvelopeItem, PartKind, Section, SectionText, date_day, header_fields};

fn crlf(text: &str) -> Vec<u8> {
    text.replace('\n', "\r\n").into_bytes()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a FETCH of the section gives, NIL as none.
fn fetched(raw: &[u8], path: &[u32], text: SectionText) -> Option<String> {
    let digest = Digest::of(raw);
    let octets = |range: std::ops::Range<u64>| raw[range.start as usize..range.end as usize].to_vec();
    Some(match digest.section(path, &text)? {
        Section::Octets(range) => shown(&octets(range)),
        Section::Fields(range) => {
            let SectionText::HeaderFields { names, not } = text else { panic!("fields were not asked for") };
            shown(&header_fields(&octets(range), &names, not))
        }
    })
}

fn checked(raw: &[u8]) -> Digest {
    let digest = Digest::of(raw);
    check_envelope(&read(&digest.envelope));
    check_body(&read(&digest.body_structure), true);
    check_body(&read(&digest.body()), false);
    digest
}

/// RFC 3501 §8, the sample session's message.
const RFC_3501: &str = "Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)
From: Terry Gray <gray@cac.washington.edu>
Subject: IMAP4rev1 WG mtg summary and minutes
To: imap@cac.washington.edu
cc: minutes@CNRI.Reston.VA.US, John Klensin <KLENSIN@MIT.EDU>
Message-Id: <B27397-0100000@cac.washington.edu>
MIME-Version: 1.0
Content-Type: TEXT/PLAIN; CHARSET=US-ASCII

";

#[test]
fn the_sample_message_of_rfc_3501_has_the_envelope_shown_there() {
    let raw = crlf(RFC_3501);
    let digest = checked(&raw);
    assert_eq!(
        shown(&digest.envelope),
        "(\"Wed, 17 Jul 1996 02:23:25 -0700 (PDT)\" \
         \"IMAP4rev1 WG mtg summary and minutes\" \
         ((\"Terry Gray\" NIL \"gray\" \"cac.washington.edu\")) \
         ((\"Terry Gray\" NIL \"gray\" \"cac.washington.edu\")) \
         ((\"Terry Gray\" NIL \"gray\" \"cac.washington.edu\")) \
         ((NIL NIL \"imap\" \"cac.washington.edu\")) \
         ((NIL NIL \"minutes\" \"CNRI.Reston.VA.US\")\
         (\"John Klensin\" NIL \"KLENSIN\" \"MIT.EDU\")) NIL NIL \
         \"<B27397-0100000@cac.washington.edu>\")"
    );
    // As the RFC but for the size: its text is not printed there.
    assert_eq!(shown(&digest.body()), "(\"text\" \"plain\" (\"charset\" \"US-ASCII\") NIL NIL \"7bit\" 0 0)");
    // RFC 3501 §8 counts 342 octets of header.
    assert_eq!(digest.header(), 0..342);
    assert_eq!(date_day(&digest), Some(9_694));
    assert_eq!(digest.message_id().as_deref(), Some(b"B27397-0100000@cac.washington.edu".as_slice()));
}

#[test]
fn groups_and_absent_fields_are_shown_as_rfc_3501_says() {
    let raw = crlf(
        "From: \"Doe, J\\\"\" <j@x.test>\nSender: s@x.test\nReply-To:\nTo: A: a@b, \"c d\" <c@d>;, e@f\n\
         Cc: Undisclosed recipients:;\nSubject: =?utf-8?q?a?=\n\t=?utf-8?q?b?=\nIn-Reply-To: <1@x>\n <2@x>\n\n",
    );
    assert_eq!(
        shown(&checked(&raw).envelope),
        "(NIL \"=?utf-8?q?a?=\t=?utf-8?q?b?=\" ((\"Doe, J\\\"\" NIL \"j\" \"x.test\")) ((NIL NIL \"s\" \"x.test\")) \
         ((\"Doe, J\\\"\" NIL \"j\" \"x.test\")) \
         ((NIL NIL \"A\" NIL)(NIL NIL \"a\" \"b\")(\"c d\" NIL \"c\" \"d\")(NIL NIL NIL NIL)(NIL NIL \"e\" \"f\")) \
         ((NIL NIL \"Undisclosed recipients\" NIL)(NIL NIL NIL NIL)) NIL \"<1@x> <2@x>\" NIL)"
    );
}

/// RFC 2049, appendix A.
const RFC_2049: &str = r#"MIME-Version: 1.0
From: Nathaniel Borenstein <nsb@nsb.fv.com>
To: Ned Freed <ned@innosoft.com>
Date: Fri, 07 Oct 1994 16:15:05 -0700 (PDT)
Subject: A multipart example
Content-Type: multipart/mixed;
              boundary=unique-boundary-1

This is the preamble area of a multipart message.
Mail readers that understand multipart format
should ignore this preamble.

If you are reading this text, you might want to
consider changing to a mail reader that understands
how to properly display multipart messages.

--unique-boundary-1

  ... Some text appears here ...

[Note that the blank between the boundary and the start
of the text in this part means no header fields were
given and this is text in the US-ASCII character set.
It could have been done with explicit typing as in the
next part.]

--unique-boundary-1
Content-type: text/plain; charset=US-ASCII

This could have been part of the previous part, but
illustrates explicit versus implicit typing of body
parts.

--unique-boundary-1
Content-Type: multipart/parallel; boundary=unique-boundary-2

--unique-boundary-2
Content-Type: audio/basic
Content-Transfer-Encoding: base64

  ... base64-encoded 8000 Hz single-channel
      mu-law-format audio data goes here ...

--unique-boundary-2
Content-Type: image/jpeg
Content-Transfer-Encoding: base64

  ... base64-encoded image data goes here ...

--unique-boundary-2--

--unique-boundary-1
Content-type: text/enriched

This is <bold><italic>enriched.</italic></bold>
<smaller>as defined in RFC 1896</smaller>

Isn't it
<bigger><bigger>cool?</bigger></bigger>

--unique-boundary-1
Content-Type: message/rfc822

From: (mailbox in US-ASCII)
To: (address in US-ASCII)
Subject: (subject in US-ASCII)
Content-Type: Text/plain; charset=ISO-8859-1
Content-Transfer-Encoding: Quoted-printable

  ... Additional text in ISO-8859-1 goes here ...

--unique-boundary-1--
"#;

#[test]
fn the_complex_example_of_rfc_2049_has_its_structure() {
    let raw = crlf(RFC_2049);
    let digest = checked(&raw);
    assert_eq!(
        shown(&digest.body_structure),
        "((\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" 271 7 NIL NIL NIL NIL)\
         (\"text\" \"plain\" (\"charset\" \"US-ASCII\") NIL NIL \"7bit\" 114 3 NIL NIL NIL NIL)\
         ((\"audio\" \"basic\" NIL NIL NIL \"base64\" 91 NIL NIL NIL NIL)\
         (\"image\" \"jpeg\" NIL NIL NIL \"base64\" 47 NIL NIL NIL NIL) \
         \"parallel\" (\"boundary\" \"unique-boundary-2\") NIL NIL NIL)\
         (\"text\" \"enriched\" NIL NIL NIL \"7bit\" 145 5 NIL NIL NIL NIL)\
         (\"message\" \"rfc822\" NIL NIL NIL \"7bit\" 232 \
         (NIL \"(subject in US-ASCII)\" NIL NIL NIL NIL NIL NIL NIL NIL) \
         (\"text\" \"plain\" (\"charset\" \"ISO-8859-1\") NIL NIL \"quoted-printable\" 51 1 NIL NIL NIL NIL) \
         7 NIL NIL NIL NIL) \
         \"mixed\" (\"boundary\" \"unique-boundary-1\") NIL NIL NIL)"
    );
}

#[test]
fn sections_of_the_complex_example_are_those_of_rfc_3501() {
    use SectionText::{Full, Header, HeaderFields, Mime, Text};
    let raw = crlf(RFC_2049);
    let get = |path: &[u32], text| fetched(&raw, path, text);
    assert_eq!(get(&[], Full).unwrap().as_bytes(), raw);
    assert_eq!([get(&[], Header).unwrap(), get(&[], Text).unwrap()].concat().as_bytes(), raw);
    assert_eq!(get(&[], Mime), None);
    assert_eq!(
        get(&[2], Full).unwrap(),
        "This could have been part of the previous part, but\r\nillustrates explicit versus implicit typing of body\r\n\
         parts.\r\n"
    );
    assert_eq!(get(&[1], Mime).unwrap(), "\r\n");
    assert_eq!(get(&[2], Mime).unwrap(), "Content-type: text/plain; charset=US-ASCII\r\n\r\n");
    assert_eq!(get(&[3, 2], Full).unwrap(), "  ... base64-encoded image data goes here ...\r\n");
    assert!(get(&[3], Full).unwrap().starts_with("--unique-boundary-2\r\n"));
    assert!(get(&[3], Full).unwrap().ends_with("--unique-boundary-2--\r\n"));
    assert!(get(&[5], Header).unwrap().starts_with("From: (mailbox"));
    assert!(get(&[5], Header).unwrap().ends_with("Quoted-printable\r\n\r\n"));
    assert_eq!(get(&[5], Text).unwrap(), "  ... Additional text in ISO-8859-1 goes here ...\r\n");
    assert_eq!(get(&[5, 1], Full), get(&[5], Text));
    assert_eq!(get(&[5], Full).unwrap(), [get(&[5], Header).unwrap(), get(&[5], Text).unwrap()].concat());
    assert_eq!(get(&[5], Mime).unwrap(), "Content-Type: message/rfc822\r\n\r\n");
    let subject = HeaderFields { names: vec!["SUBJECT".to_owned()], not: false };
    assert_eq!(get(&[5], subject.clone()).unwrap(), "Subject: (subject in US-ASCII)\r\n\r\n");
    assert_eq!(get(&[], subject.clone()).unwrap(), "Subject: A multipart example\r\n\r\n");
    for path in [&[0][..], &[6], &[1, 1], &[1, 0], &[3, 3], &[5, 2], &[5, 1, 1], &[u32::MAX], &[99, 99]] {
        assert_eq!(get(path, Full), None, "{path:?}");
    }
    for path in [&[1][..], &[3], &[3, 1], &[5, 1]] {
        assert_eq!(get(path, Header), None, "{path:?}");
        assert_eq!(get(path, Text), None, "{path:?}");
        assert_eq!(get(path, subject.clone()), None, "{path:?}");
    }
}

#[test]
fn every_message_has_a_part_one() {
    use SectionText::{Full, Mime, Text};
    for end in ["\r\n", "\n"] {
        let raw = format!("Subject: x{end}{end}body{end}");
        assert_eq!(fetched(raw.as_bytes(), &[1], Full).unwrap(), format!("body{end}"));
        assert_eq!(fetched(raw.as_bytes(), &[], Text).unwrap(), format!("body{end}"));
        assert_eq!(fetched(raw.as_bytes(), &[1], Mime).unwrap(), format!("Subject: x{end}{end}"));
        assert_eq!(fetched(raw.as_bytes(), &[2], Full), None);
        assert_eq!(fetched(raw.as_bytes(), &[1, 1], Full), None);
    }
}

#[test]
fn a_message_that_is_a_message_has_its_parts_below_one() {
    let raw = crlf(
        "Content-Type: message/rfc822\n\nContent-Type: multipart/digest; boundary=x\nSubject: in\n\n\
         --x\n\nSubject: deep\n\ndeep text\n--x\nContent-Type: text/plain\n\nplain\n--x--\n",
    );
    use SectionText::{Full, Header, Text};
    assert_eq!(fetched(&raw, &[1, 2], Full).unwrap(), "plain");
    assert_eq!(fetched(&raw, &[1, 1], Header).unwrap(), "Subject: deep\r\n\r\n");
    assert_eq!(fetched(&raw, &[1, 1, 1], Full).unwrap(), "deep text");
    assert!(fetched(&raw, &[1], Text).unwrap().starts_with("--x\r\n"));
    let kinds: Vec<_> = checked(&raw).parts.iter().map(|part| (part.depth, part.kind)).collect();
    let (leaf, multipart, message) = (PartKind::Leaf, PartKind::Multipart, PartKind::Message);
    assert_eq!(kinds, [(0, message), (1, multipart), (2, message), (3, leaf), (2, leaf)]);
}

#[test]
fn extension_data_are_shown_and_body_is_the_same_without_them() {
    let raw = crlf(
        "Content-Type: application/pdf; name=\"a b.pdf\"\nContent-Transfer-Encoding: BASE64\nContent-ID: <1@x>\n\
         Content-Description: the\n pdf\nContent-MD5: Q2hlY2sgSW50ZWdyaXR5IQ==\n\
         Content-Disposition: Attachment; filename*0*=utf-8''gr%C3; filename*1*=%BCn.pdf; size=3\n\
         Content-Language: en, de\nContent-Location: http://x.test/\n\nabc\n",
    );
    let digest = checked(&raw);
    let body = "(\"application\" \"pdf\" (\"name\" \"a b.pdf\") \"<1@x>\" \"the pdf\" \"base64\" 5";
    assert_eq!(shown(&digest.body()), format!("{body})"));
    assert_eq!(
        shown(&digest.body_structure),
        format!(
            "{body} \"Q2hlY2sgSW50ZWdyaXR5IQ==\" \
             (\"attachment\" (\"filename*\" \"utf-8''gr%C3%BCn.pdf\" \"size\" \"3\")) \
             (\"en\" \"de\") \"http://x.test/\")"
        )
    );
}

#[test]
fn eight_bit_headers_become_literals() {
    let raw = "Subject: gr\u{fc}n\r\nFrom: J\u{fc}rgen <j@x>\r\n\r\n".as_bytes();
    let digest = checked(raw);
    assert!(shown(&digest.envelope).starts_with("(NIL {5}\r\ngr\u{fc}n (({7}\r\nJ\u{fc}rgen NIL \"j\" \"x\")) "));
    assert_eq!(digest.envelope_string(EnvelopeItem::Subject).unwrap(), "gr\u{fc}n".as_bytes());
}

#[test]
fn replies_know_what_they_answer() {
    let digest = checked(&crlf("Subject: Re: a\nReferences: <1@x>\n\t<2@x>\nIn-Reply-To: <3@x>\n\n"));
    assert_eq!(digest.thread_references(), [b"1@x".to_vec(), b"2@x".to_vec()]);
    assert!(digest.base_subject().is_reply && digest.base_subject().text == "a");
    let digest = checked(&crlf("In-Reply-To: Your message <3@x> and <4@x>\n\n"));
    assert_eq!(digest.thread_references(), [b"3@x".to_vec()]);
}

/// RFC 2046 §5.2.1 forbids the encoding; what comes so all the same is something to save, and keeps its name.
#[test]
fn an_encoded_message_is_shown_as_an_attachment_with_its_name() {
    let raw = crlf(
        "Content-Type: message/rfc822; name=\"Re: plan.eml\"; charset=x
Content-Transfer-Encoding: base64

U3ViamVjdDogaGkNCg0KaGkNCg==
",
    );
    let digest = checked(&raw);
    let expected = "(\"application\" \"octet-stream\" (\"name\" \"Re: plan.eml\") NIL NIL \"base64\" 30)";
    assert_eq!(shown(&digest.body()), expected);
}
