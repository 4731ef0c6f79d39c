//! Properties: packets do not matter, no bytes panic, every message comes back exactly.

use bytes::BytesMut;
use pop3::{DotStuffer, Settings, Tls};
use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest},
    prop_assert, prop_assert_eq,
};

use crate::server::{Server, secure};

/// Bytes made of what matters to framing.
fn newline_soup() -> impl Strategy<Value = Vec<u8>> {
    let tokens = prop_oneof![
        4 => Just(&b"\r\n"[..]), 3 => Just(&b"."[..]), 1 => Just(&b"\r"[..]), 2 => Just(&b"\n"[..]),
        1 => Just(&b"\0"[..]), 3 => Just(&b"text"[..]), 1 => Just(&b"\xff"[..]),
    ];
    vec(tokens, 0..60).prop_map(|tokens| tokens.concat())
}

fn commands() -> impl Strategy<Value = Vec<u8>> {
    let tokens = prop_oneof![
        Just(b"USER alice\r\n".to_vec()),
        Just(b"PASS open sesame\r\n".to_vec()),
        Just(b"USER alice\r\nPASS open sesame\r\n".to_vec()),
        Just(b"AUTH PLAIN\r\nAGFsaWNlAG9wZW4gc2VzYW1l\r\n".to_vec()),
        Just(b"STAT\r\nLIST\r\nUIDL\r\n".to_vec()),
        Just(b"DELE 1\r\nRETR 2\r\nTOP 2 1\r\n".to_vec()),
        Just(b"RSET\r\nCAPA\r\n".to_vec()),
        Just([b"x".repeat(600), b"\r\n".to_vec()].concat()),
        vec(any::<u8>(), 0..20),
    ];
    vec(tokens, 0..25).prop_map(|tokens| tokens.concat())
}

fn in_chunks(settings: Settings, bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut server = Server::new(settings, &[b"A: 1\r\n\r\n.\r\n", b"B: 2\r\n\r\nx\n.\r\ny"]);
    let (mut replies, mut rest, mut cuts) = (Vec::new(), bytes, cuts.iter().cycle());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(cuts.next().copied().unwrap_or(1).clamp(1, rest.len()));
        replies.extend(server.exchange(chunk));
        rest = after;
    }
    replies
}

/// What a client that goes by the RFC makes of a response body: the lines up to the terminator, dots taken away.
fn unstuff(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    let mut lines: Vec<&[u8]> = Vec::new();
    let mut rest = encoded;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let (line, after) = rest.split_at(end + 2);
        lines.push(line);
        rest = after;
    }
    let (last, lines) = lines.split_last()?;
    if *last != b".\r\n" || !rest.is_empty() || lines.contains(last) {
        return None;
    }
    for line in lines {
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    Some(out)
}

/// The message with CRLF for each bare LF, and at its end.
fn in_lines(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in message {
        if byte == b'\n' && out.last() != Some(&b'\r') {
            out.push(b'\r');
        }
        out.push(byte);
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// As clients read that split lines at LF, such as Python's poplib: where do they see the end?
fn first_lone_dot(encoded: &[u8]) -> Option<usize> {
    let mut at = 0;
    for line in encoded.split_inclusive(|&b| b == b'\n') {
        if matches!(line, b".\r\n" | b".\n") {
            return Some(at);
        }
        at += line.len();
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_are_answered_alike_however_they_are_cut(bytes in commands(), cuts in vec(1usize..40, 1..8)) {
        prop_assert_eq!(in_chunks(secure(), &bytes, &[usize::MAX]), in_chunks(secure(), &bytes, &cuts));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2_000), cuts in vec(1usize..100, 1..4)) {
        let settings = Settings { tls: Tls::Available, cleartext_passwords: true, ..Settings::default() };
        let replies = in_chunks(settings, &bytes, &cuts);
        prop_assert!(replies.is_empty() || replies.ends_with(b"\r\n"));
    }

    #[test]
    fn a_retrieved_message_comes_back_line_by_line(message in prop_oneof![newline_soup(), vec(any::<u8>(), 0..300)]) {
        let mut server = Server::open(&[&message]);
        let response = server.exchange(b"RETR 1\r\n");
        let ok = format!("+OK {} octets\r\n", message.len());
        let encoded = response.strip_prefix(ok.as_bytes()).unwrap();
        prop_assert_eq!(unstuff(encoded), Some(in_lines(&message)));
        prop_assert_eq!(first_lone_dot(encoded), encoded.len().checked_sub(3));
    }

    #[test]
    fn stuffing_does_not_depend_on_chunks(message in newline_soup(), at in 0usize..200) {
        let encode = |chunks: [&[u8]; 2]| {
            let (mut stuffer, mut out) = (DotStuffer::new(), BytesMut::new());
            chunks.into_iter().for_each(|chunk| stuffer.push(chunk, &mut out));
            stuffer.finish(&mut out);
            out
        };
        let (first, second) = message.split_at(at.min(message.len()));
        prop_assert_eq!(encode([&message, b""]), encode([first, second]));
    }
}
