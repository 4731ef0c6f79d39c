//! C:/S: transcripts, one a behaviour of RFC 1939 and its extensions, and the bad input.

use bytes::BytesMut;
use pop3::{Event, Farewell, Session, Settings, Tls};
use types::MailError;

use crate::server::{Server, play, secure};

const MESSAGES: [&[u8]; 3] =
    [b"A: 1\r\n\r\none\r\n", b"B: 2\r\n\r\n.two\r\n.\r\nx\r\n", b"C: 3\r\n\r\nno final newline"];

#[test]
fn a_session_goes_as_rfc_1939_section_10_shows() {
    let mut server = Server::new(secure(), &MESSAGES);
    assert_eq!(&server.session.greeting()[..], b"+OK POP3 server ready\r\n");
    play(
        &mut server,
        "C: USER alice
        S: +OK send PASS
        C: PASS open sesame
        S: +OK 3 messages (57 octets)
        C: STAT
        S: +OK 3 57
        C: LIST
        S: +OK 3 messages (57 octets)
        S: 1 13
        S: 2 20
        S: 3 24
        S: .
        C: RETR 2
        S: +OK 20 octets
        S: B: 2
        S:
        S: ..two
        S: ..
        S: x
        S: .
        C: DELE 1
        S: +OK message 1 deleted
        C: QUIT
        S: +OK goodbye",
    );
    assert!(server.closed);
    assert_eq!(server.messages, MESSAGES[1..]);
}

#[test]
fn capabilities_follow_the_state_of_the_connection() {
    let mut server = Server::new(Settings { tls: Tls::Available, ..Settings::default() }, &MESSAGES);
    play(
        &mut server,
        "C: CAPA
        S: +OK capabilities follow
        S: TOP
        S: UIDL
        S: STLS
        S: PIPELINING
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: .
        C: USER alice
        S: -ERR no passwords in clear: use STLS first
        C: PASS x
        S: -ERR no passwords …
        C: AUTH PLAIN
        S: -ERR no passwords …
        C: STLS
        C: USER injected
        S: +OK begin TLS
        C: PASS x
        S: -ERR send USER first
        C: STLS
        S: -ERR TLS is already active
        C: CAPA
        S: +OK capabilities follow
        S: TOP
        S: UIDL
        S: USER
        S: SASL PLAIN
        S: PIPELINING
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: .",
    );
    assert_eq!(server.handshakes, 1);
}

#[test]
fn what_is_read_in_clear_while_tls_is_awaited_is_dropped() {
    let mut session = Session::new(Settings { tls: Tls::Available, ..Settings::default() });
    let mut input = BytesMut::from(&b"STLS\r\nUSER evil\r\n"[..]);
    assert!(matches!(session.step(&mut input), Some(Event::StartTls(_))));
    assert!(input.is_empty());
    input.extend_from_slice(b"USER evil\r\n");
    assert_eq!(session.step(&mut input), None);
    session.tls_started();
    assert_eq!(session.step(&mut input), None);
}

#[test]
fn passwords_in_clear_are_a_setting() {
    let mut server = Server::new(Settings { cleartext_passwords: true, ..Settings::default() }, &MESSAGES);
    play(
        &mut server,
        "C: STLS
        S: -ERR STLS is not available
        C: user alice
        C: pass open sesame
        C: STAT
        S: +OK …
        S: +OK …
        S: +OK 3 57",
    );
}

#[test]
fn sasl_plain_logs_in_with_and_without_an_initial_response() {
    for transcript in [
        "C: AUTH PLAIN AGFsaWNlAG9wZW4gc2VzYW1l
        S: +OK 3 messages (57 octets)",
        "C: auth plain
        S: +\u{20}
        C: AGFsaWNlAG9wZW4gc2VzYW1l
        S: +OK 3 messages (57 octets)",
    ] {
        play(&mut Server::new(secure(), &MESSAGES), transcript);
    }
}

#[test]
fn logins_that_cannot_be_are_refused() {
    let mut server = Server::new(secure(), &MESSAGES);
    play(
        &mut server,
        "C: STAT
        S: -ERR log in first
        C: RETR 1
        S: -ERR log in first
        C: PASS open sesame
        S: -ERR send USER first
        C: USER
        S: -ERR syntax: USER name
        C: APOP alice c4c9334bac560ecc979e58001b3e22fb
        S: -ERR …
        C: AUTH
        S: -ERR syntax: AUTH …
        C: AUTH CRAM-MD5
        S: -ERR unknown authentication mechanism
        C: AUTH PLAIN !!!!
        S: -ERR malformed …
        C: AUTH PLAIN =
        S: -ERR malformed …
        C: AUTH PLAIN
        S: + …
        C: *
        S: -ERR authentication cancelled
        C: USER alice
        S: +OK …
        C: PASS wrong
        S: -ERR [AUTH] …
        C: PASS open sesame
        S: -ERR send USER first
        C: XYZ
        S: -ERR unknown command
        C: USER nobody
        S: +OK …
        C: PASS open sesame
        S: -ERR [AUTH] …
        C: QUIT
        S: +OK goodbye",
    );
    assert_eq!(server.messages.len(), 3);
}

#[test]
fn guessing_ends_the_session() {
    let mut server = Server::new(secure(), &MESSAGES);
    let replies = server.send(&b"USER alice\r\nPASS guess\r\n".repeat(6));
    assert_eq!(replies.matches("-ERR [AUTH] ").count(), 5);
    assert!(server.closed);
}

#[test]
fn what_keeps_a_maildrop_shut_is_said_by_its_code() {
    let mut server = Server::new(secure(), &MESSAGES);
    server.failures.extend([
        MailError::InUse,
        MailError::Unavailable,
        MailError::Corrupt { key: "k".to_owned() },
        MailError::NoSuchAccount,
    ]);
    for expected in ["-ERR [IN-USE] ", "-ERR [SYS/TEMP] ", "-ERR [SYS/PERM] ", "-ERR [AUTH] ", "+OK 3 messages"] {
        let replies = server.send(b"USER alice\r\nPASS open sesame\r\n");
        assert!(replies.contains(&format!("\r\n{expected}")), "{replies}");
    }
}

#[test]
fn bad_message_numbers_are_refused() {
    let mut server = Server::open(&MESSAGES);
    assert!(server.send(b"DELE 2\r\n").starts_with("+OK "));
    for line in [
        "RETR 0",
        "RETR 4",
        "RETR -1",
        "RETR 18446744073709551616",
        "RETR one",
        "RETR",
        "RETR 2",
        "DELE 2",
        "DELE 4",
        "TOP 1",
        "TOP 1 -1",
        "TOP 2 0",
        "TOP 4 0",
        "UIDL 99",
        "UIDL 2",
        "UIDL x",
        "LIST 0",
        "LIST 2",
        "LIST 4",
        "XYZ",
        "STAT x",
    ] {
        let reply = server.send(format!("{line}\r\n").as_bytes());
        assert!(reply.starts_with("-ERR ") && reply.matches("\r\n").count() == 1, "{line}: {reply}");
    }
    assert_eq!(server.send(b"NOOP\r\n"), "+OK \r\n");
}

#[test]
fn deletion_marks_shape_every_listing_and_rset_takes_them_back() {
    let mut server = Server::open(&MESSAGES);
    play(
        &mut server,
        "C: LAST
        S: +OK 0
        C: DELE 2
        S: +OK …
        C: STAT
        S: +OK 2 37
        C: LIST
        S: +OK 2 messages (37 octets)
        S: 1 13
        S: 3 24
        S: .
        C: UIDL
        S: +OK …
        S: 1 uid-1
        S: 3 uid-3
        S: .
        C: UIDL 3
        S: +OK 3 uid-3
        C: LIST 3
        S: +OK 3 24
        C: LAST
        S: +OK 2
        C: RSET
        S: +OK 3 messages (57 octets)
        C: LAST
        S: +OK 0
        C: UIDL 2
        S: +OK 2 uid-2
        C: QUIT
        S: +OK goodbye",
    );
    assert_eq!(server.messages.len(), 3);
}

#[test]
fn logging_in_again_and_stls_are_refused_in_transaction() {
    let mut server = Server::open(&MESSAGES);
    for line in ["USER alice", "PASS x", "AUTH PLAIN", "APOP alice x", "STLS"] {
        assert_eq!(server.send(format!("{line}\r\n").as_bytes()), "-ERR already logged in\r\n");
    }
    assert!(!server.send(b"CAPA\r\n").contains("STLS"));
}

#[test]
fn top_shows_header_and_lines() {
    let mut server = Server::open(&MESSAGES);
    assert_eq!(server.send(b"TOP 1 0\r\n"), "+OK top of message follows\r\nA: 1\r\n\r\n.\r\n");
    assert_eq!(server.send(b"TOP 2 1\r\n"), "+OK top of message follows\r\nB: 2\r\n\r\n..two\r\n.\r\n");
    assert_eq!(server.send(b"TOP 3 99\r\n"), "+OK top of message follows\r\nC: 3\r\n\r\nno final newline\r\n.\r\n");
}

#[test]
fn without_quit_nothing_is_deleted_and_a_failed_update_says_so() {
    let mut server = Server::open(&MESSAGES);
    server.send(b"DELE 1\r\nDELE 2\r\n");
    assert_eq!(server.session.farewell(Farewell::Idle), "");
    assert_eq!(server.session.step(&mut BytesMut::from(&b"QUIT\r\n"[..])), None);
    assert_eq!(server.messages.len(), 3);

    let mut server = Server::open(&MESSAGES);
    server.failures.push_back(MailError::Unavailable);
    assert_eq!(
        server.send(b"DELE 1\r\nQUIT\r\nNOOP\r\n"),
        "+OK message 1 deleted\r\n-ERR [SYS/TEMP] some deleted messages were not removed\r\n"
    );
    assert!(server.closed);
}

#[test]
fn a_message_that_cannot_be_read_leaves_the_session_as_it_was() {
    let mut server = Server::open(&MESSAGES);
    server.failures.push_back(MailError::Deadline);
    assert!(server.send(b"RETR 1\r\n").starts_with("-ERR [SYS/TEMP] "));
    assert!(server.send(b"RETR 1\r\n").starts_with("+OK 13 octets\r\nA: 1\r\n"));
}

#[test]
fn bad_lines_are_refused_and_the_session_lives() {
    let mut server = Server::open(&MESSAGES);
    for bytes in [
        &b"NOOP\0\r\n"[..],
        b"NO\rOP\r\n",
        b"NOOP\n",
        b"\xff\r\n",
        b"\r\n",
        &[b"x".repeat(5 << 10), b"\r\n".to_vec()].concat(),
        &[b"x".repeat(1 << 20), b"\r\n".to_vec()].concat(),
    ] {
        let reply = server.send(bytes);
        assert!(reply.starts_with("-ERR ") && reply.matches("\r\n").count() == 1, "{reply}");
    }
    assert_eq!(server.send(b"NOOP\r\n"), "+OK \r\n");
}

#[test]
fn too_many_errors_and_other_protocols_close_the_session() {
    let mut server = Server::new(secure(), &MESSAGES);
    let replies = server.send(&b"junk\r\n".repeat(100));
    assert_eq!(replies.matches("-ERR ").count(), 30);
    assert!(replies.ends_with("-ERR too many errors, closing\r\n") && server.closed);
    for bytes in [&b"\x16\x03\x01\x00"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut server = Server::new(Settings::default(), &MESSAGES);
        let replies = server.send(bytes);
        assert!(replies.starts_with("-ERR ") && replies.matches("\r\n").count() == 1 && server.closed, "{replies}");
    }
}

#[test]
fn a_long_listing_comes_in_pieces() {
    let mut session = Session::new(secure());
    let mut input = BytesMut::from(&b"USER alice\r\nPASS x\r\nUIDL\r\n"[..]);
    session.step(&mut input);
    session.step(&mut input);
    let mut maildrop = pop3::Maildrop::new();
    (0..100_000).for_each(|i| maildrop.push(1, &format!("uid-{i}")).unwrap());
    session.logged_in(maildrop);
    let mut lines = 0;
    while let Some(event) = session.step(&mut input) {
        let Event::Reply(bytes) = event else { panic!("{event:?}") };
        assert!(bytes.len() < 64 * 1024);
        lines += bytes.iter().filter(|&&b| b == b'\n').count();
    }
    assert_eq!(lines, 100_002);
}
