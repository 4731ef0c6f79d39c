//! Properties: packets do not matter, no bytes panic, content comes back exactly; and a second opinion on paths.

use std::{fs, path::PathBuf};

use bytes::BytesMut;
use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest},
    prop_assert, prop_assert_eq,
};
use smtp::{AuthOffer, DataDecoder, Decoded, ReceivedCounter, Settings, Tls};
use smtp_proto::Request;

use crate::server::{Server, settings};

/// A client's stuffing (RFC 5321 §4.5.2), with the end mark.
fn stuff(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut line_start = true;
    for (i, &byte) in content.iter().enumerate() {
        if line_start && byte == b'.' {
            out.push(b'.');
        }
        out.push(byte);
        line_start = byte == b'\n' && i > 0 && content[i - 1] == b'\r';
    }
    out.extend_from_slice(if content.is_empty() || line_start { b".\r\n" } else { b"\r\n.\r\n" });
    out
}

/// Bytes made of what matters to framing.
fn newline_soup() -> impl Strategy<Value = Vec<u8>> {
    let tokens = prop_oneof![
        4 => Just(&b"\r\n"[..]), 2 => Just(&b"."[..]), 1 => Just(&b"\r"[..]), 1 => Just(&b"\n"[..]),
        1 => Just(&b"\0"[..]), 3 => Just(&b"text"[..]), 1 => Just(&b"\xff"[..]), 1 => Just(&b"Received: x"[..]),
    ];
    vec(tokens, 0..60).prop_map(|tokens| tokens.concat())
}

/// Sessions made of commands, good and bad, without DATA: when its content arrives matters by design.
fn commands() -> impl Strategy<Value = Vec<u8>> {
    let tokens = prop_oneof![
        Just(b"EHLO c.test\r\n".to_vec()),
        Just(b"MAIL FROM:<a@c.test> SIZE=5\r\n".to_vec()),
        Just(b"RCPT TO:<alice@example.test>\r\n".to_vec()),
        Just(b"RCPT TO:<nobody@example.test>\r\n".to_vec()),
        Just(b"BDAT 5\r\n\r\n.\r\n".to_vec()),
        Just(b"BDAT 3 LAST\r\nxyz".to_vec()),
        Just(b"RSET\r\n".to_vec()),
        Just(b"AUTH PLAIN\r\nAGFsaWNlAHNlc2FtZQ==\r\n".to_vec()),
        Just(b"AUTH LOGIN\r\n".to_vec()),
        Just(b"NO\rOP\r\n".to_vec()),
        Just([b"x".repeat(3_000), b"\r\n".to_vec()].concat()),
        vec(any::<u8>(), 0..20).prop_filter("no DATA here", |bytes| !bytes.contains(&b'D') && !bytes.contains(&b'd')),
    ];
    vec(tokens, 0..25).prop_map(|tokens| tokens.concat())
}

fn in_chunks(settings: Settings, bytes: &[u8], cuts: &[usize]) -> (String, Server) {
    let mut server = Server::new(settings);
    let (mut replies, mut rest, mut cuts) = (String::new(), bytes, cuts.iter().cycle());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(cuts.next().copied().unwrap_or(1).clamp(1, rest.len()));
        replies += &server.send(chunk);
        rest = after;
    }
    (replies, server)
}

fn open() -> Settings {
    Settings { auth: AuthOffer::Always, errors_max: 10, ..settings() }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_are_answered_alike_however_they_are_cut(bytes in commands(), cuts in vec(1usize..40, 1..8)) {
        let (whole, whole_server) = in_chunks(open(), &bytes, &[usize::MAX]);
        let (cut, cut_server) = in_chunks(open(), &bytes, &cuts);
        prop_assert_eq!(whole, cut);
        prop_assert_eq!(whole_server.stored, cut_server.stored);
    }

    #[test]
    fn content_is_stored_alike_however_it_is_cut(bytes in newline_soup(), cuts in vec(1usize..9, 1..8)) {
        let run = |cuts: &[usize]| {
            let mut server = Server::new(settings());
            server.up_to_recipient();
            server.send(b"DATA\r\n");
            let sent = [&bytes[..], b"\r\n.\r\n"].concat();
            let (mut replies, mut rest, mut cuts) = (String::new(), &sent[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(cuts.next().copied().unwrap_or(1).clamp(1, rest.len()));
                replies += &server.send(chunk);
                rest = after;
            }
            (replies, server.stored)
        };
        prop_assert_eq!(run(&[usize::MAX]), run(&cuts));
    }

    #[test]
    fn stuffed_content_comes_back_exactly_or_is_refused(content in newline_soup()) {
        let sent = stuff(&content);
        let mut server = Server::new(settings());
        server.up_to_recipient();
        server.send(b"DATA\r\n");
        let replies = server.send(&[&sent[..], b"NOOP\r\n"].concat());
        prop_assert_eq!(replies.matches("\r\n").count(), 2, "{}", replies);
        prop_assert!(replies.ends_with("\r\n250 2.0.0 ok\r\n"));
        if let Some(stored) = server.stored.first() {
            let ended = content.is_empty() || content.ends_with(b"\r\n");
            let expected = if ended { content } else { [&content[..], b"\r\n"].concat() };
            prop_assert_eq!(&stored.content, &expected);
        } else {
            prop_assert!(replies.starts_with("554 5.6.0 "));
        }
    }

    #[test]
    fn strict_crlf_content_is_never_refused(lines in vec("[ -~]{0,20}", 0..20)) {
        let content = lines.iter().map(|line| format!("{line}\r\n")).collect::<String>();
        let mut decoder = DataDecoder::new(smtp::BareNewlines::Refuse);
        let (mut input, mut out) = (BytesMut::from(&stuff(content.as_bytes())[..]), Vec::new());
        loop {
            match decoder.next(&mut input) {
                Some(Decoded::Piece(piece)) => out.extend_from_slice(&piece),
                Some(Decoded::End) => break,
                None => prop_assert!(false, "no end"),
            }
        }
        prop_assert!(!decoder.refused());
        prop_assert_eq!(out, content.into_bytes());
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_replies_are_well_formed(bytes in vec(any::<u8>(), 0..2_000), cuts in vec(1usize..100, 1..4)) {
        let settings = Settings { tls: Tls::Available, ..open() };
        let (replies, server) = in_chunks(settings, &bytes, &cuts);
        for line in replies.split_inclusive('\n') {
            prop_assert!(line.ends_with("\r\n") && line.len() <= 512);
            prop_assert!(line.as_bytes()[..3].iter().all(u8::is_ascii_digit));
        }
        prop_assert!(server.stored.is_empty());
    }

    #[test]
    fn arbitrary_argument_bytes_never_panic(verb in "(MAIL FROM:<|RCPT TO:<|EHLO |BDAT |AUTH |AUTH PLAIN )", bytes in vec(any::<u8>(), 0..100)) {
        let mut server = Server::new(open());
        server.up_to_recipient();
        server.send(&[verb.as_bytes(), &bytes, b"\r\n"].concat());
        if let Some(helo) = server.session.helo() {
            prop_assert!(helo.bytes().all(|b| b.is_ascii_graphic()));
        }
    }

    /// What we take for a plain address, smtp-proto reads as the same.
    #[test]
    fn addresses_agree_with_a_second_opinion(local in "[a-zA-Z0-9.%!+-]{1,12}", domain in "[a-z0-9.-]{1,12}") {
        let line = format!("MAIL FROM:<{local}@{domain}>\r\n");
        let mut server = Server::new(settings());
        server.send(b"HELO c.test\r\n");
        let accepted = server.send(line.as_bytes()).starts_with("250 ");
        let dot_string = !local.starts_with('.') && !local.ends_with('.') && !local.contains("..");
        if accepted && dot_string {
            let Ok(Request::Mail { from }) = Request::parse(&mut line.as_bytes().iter()) else {
                return Err(proptest::test_runner::TestCaseError::fail(format!("not parsed: {line}")));
            };
            prop_assert_eq!(from.address, format!("{local}@{domain}"));
        }
    }

    #[test]
    fn received_fields_are_counted_alike_however_they_are_cut(bytes in newline_soup(), at in 0usize..200) {
        let (mut whole, mut cut) = (ReceivedCounter::default(), ReceivedCounter::default());
        whole.push(&bytes);
        let (first, second) = bytes.split_at(at.min(bytes.len()));
        cut.push(first);
        cut.push(second);
        prop_assert_eq!(whole.count(), cut.count());
    }
}

#[test]
fn real_and_odd_mail_comes_back_exactly() {
    let corpus = std::env::var_os("MAILRING_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"), PathBuf::from);
    if !corpus.is_dir() {
        println!("skipped: no corpus");
        return;
    }
    let (mut stored, mut refused) = (0, 0);
    for folder in ["real", "odd"] {
        for entry in fs::read_dir(corpus.join(folder)).unwrap() {
            let raw = fs::read(entry.unwrap().path()).unwrap();
            // As a client sends it: bare LF becomes CRLF, everything else stays.
            let mut content = Vec::with_capacity(raw.len() + raw.len() / 30);
            for (i, &byte) in raw.iter().enumerate() {
                if byte == b'\n' && (i == 0 || raw[i - 1] != b'\r') {
                    content.push(b'\r');
                }
                content.push(byte);
            }
            if !content.is_empty() && !content.ends_with(b"\r\n") {
                content.extend_from_slice(b"\r\n");
            }
            let mut server = Server::new(Settings::mx("mx.example.test"));
            server.up_to_recipient();
            server.send(b"DATA\r\n");
            let replies: String = stuff(&content).chunks(4_096).map(|chunk| server.send(chunk)).collect();
            match server.stored.first() {
                Some(message) => {
                    assert_eq!(message.content, content);
                    stored += 1;
                }
                None => {
                    assert!(replies.starts_with("554 5."), "{replies}");
                    refused += 1;
                }
            }
        }
    }
    println!("{stored} stored, {refused} refused");
    assert_eq!(refused, 0, "mail from the wild holds no smuggling marks once sent by a client");
}
