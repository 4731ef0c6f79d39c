//! C:/S: transcripts, one a behaviour of RFC 5321 and its extensions.

use bytes::BytesMut;
use smtp::{AuthOffer, Body, Event, Farewell, Session, Settings, Tls};
use types::SmtpReply;

use crate::server::{Server, play, settings};

fn over(settings: Settings, transcript: &str) -> Server {
    let mut server = Server::new(settings);
    play(&mut server, transcript);
    server
}

fn mx(transcript: &str) -> Server {
    over(settings(), transcript)
}

fn submission() -> Settings {
    Settings { auth: AuthOffer::OverTls, auth_required: true, tls: Tls::Available, ..settings() }
}

#[test]
fn a_message_is_received_as_rfc_5321_appendix_d_shows() {
    let server = mx("C: EHLO bar.test
        S: 250-mx.example.test
        S: 250-PIPELINING
        S: 250-SIZE 10000
        S: 250-8BITMIME
        S: 250-SMTPUTF8
        S: 250-ENHANCEDSTATUSCODES
        S: 250 CHUNKING
        C: MAIL FROM:<Smith@bar.test> SIZE=500 BODY=8BITMIME
        S: 250 2.1.0 sender ok
        C: RCPT TO:<Alice@example.test>
        S: 250 2.1.5 recipient ok
        C: RCPT TO:<green@example.test>
        S: 550 5.1.1 no such account
        C: RCPT TO:<\"bob\"@EXAMPLE.test>
        S: 250 2.1.5 recipient ok
        C: DATA
        S: 354 go ahead, end with <CRLF>.<CRLF>
        C: Subject: x
        C:
        C: ..dot
        C: .
        S: 250 2.0.0 ok
        C: QUIT
        S: 221 2.0.0 mx.example.test goodbye");
    assert!(server.closed);
    let stored = &server.stored[0];
    assert_eq!(stored.reverse_path, "Smith@bar.test");
    assert_eq!(stored.recipients, ["Alice@example.test", "bob@example.test"]);
    assert_eq!(stored.body, Body::EightBitMime);
    assert_eq!(stored.content, b"Subject: x\r\n\r\n.dot\r\n");
}

#[test]
fn pipelined_commands_are_answered_in_one_go() {
    let server = mx("C: HELO c.test
        C: MAIL FROM:<>
        C: RCPT TO:<postmaster>
        C: RCPT TO:<nobody@example.test>
        C: DATA
        S: 250 mx.example.test
        S: 250 2.1.0 …
        S: 250 2.1.5 …
        S: 550 5.1.1 …
        S: 354 …
        C: x
        C: .
        C: QUIT
        S: 250 2.0.0 ok
        S: 221 …");
    assert_eq!(server.stored[0].reverse_path, "");
    assert_eq!(server.stored[0].recipients, ["postmaster"]);
}

#[test]
fn commands_out_of_order_are_refused() {
    mx("C: MAIL FROM:<a@c.test>
        S: 503 5.5.1 send EHLO first
        C: NOOP
        S: 250 2.0.0 ok
        C: EHLO
        S: 501 5.5.4 …
        C: HELO a b
        S: 501 5.5.4 …
        C: HELO c.test
        S: 250 mx.example.test
        C: RCPT TO:<alice@example.test>
        S: 503 5.5.1 …
        C: DATA
        S: 503 5.5.1 …
        C: MAIL FROM:<a@c.test>
        S: 250 …
        C: MAIL FROM:<a@c.test>
        S: 503 5.5.1 …
        C: DATA
        S: 554 5.5.1 no valid recipients
        C: RCPT TO:<nobody@example.test>
        S: 550 5.1.1 …
        C: DATA
        S: 554 5.5.1 no valid recipients");
}

#[test]
fn unknown_and_unbuilt_commands_are_told_apart() {
    mx("C: FOO
        S: 500 5.5.1 …
        C:
        S: 500 5.5.1 …
        C: LHLO c.test
        S: 500 5.5.1 …
        C: ETRN x
        S: 502 5.5.1 …
        C: EXPN list
        S: 502 5.5.1 …
        C: VRFY alice
        S: 252 2.0.0 …
        C: VRFY
        S: 501 5.5.4 …
        C: HELP
        S: 214 2.0.0 …
        C: RSET x
        S: 501 5.5.4 …
        C: RSET
        S: 250 2.0.0 ok
        C: STARTTLS
        S: 502 5.5.1 …
        C: AUTH PLAIN
        S: 503 5.5.1 …");
}

#[test]
fn rset_and_ehlo_clear_the_transaction() {
    let server = mx("C: HELO c.test
        C: MAIL FROM:<a@c.test>
        C: RCPT TO:<alice@example.test>
        C: RSET
        C: RCPT TO:<alice@example.test>
        S: 250 mx.example.test
        S: 250 2.1.0 …
        S: 250 2.1.5 …
        S: 250 2.0.0 ok
        S: 503 5.5.1 …
        C: MAIL FROM:<a@c.test>
        C: HELO c.test
        C: RCPT TO:<alice@example.test>
        S: 250 2.1.0 …
        S: 250 mx.example.test
        S: 503 5.5.1 …");
    assert_eq!(server.resets, 2);
}

#[test]
fn malformed_paths_and_parameters_are_refused() {
    let mut server = mx("C: HELO c.test
        S: 250 …
        C: MAIL FROM:a@c.test
        S: 501 5.5.4 …
        C: MAIL FROM <a@c.test>
        S: 501 5.5.4 …
        C: MAIL FROM:<a>
        S: 501 5.1.7 …
        C: MAIL FROM:<a@c.test> FOO=BAR
        S: 555 5.5.4 …
        C: MAIL FROM:<a@c.test> BODY=JUNK
        S: 501 5.5.4 …
        C: MAIL FROM:<a@c.test> BODY=BINARYMIME
        S: 555 5.5.4 …
        C: MAIL FROM:<a@c.test> SIZE=10001
        S: 552 5.3.4 …
        C: MAIL FROM:<a@c.test> SIZE=abc
        S: 501 5.5.4 …
        C: MAIL FROM:<a@c.test> SIZE=-1
        S: 501 5.5.4 …
        C: MAIL FROM:<a@c.test> SIZE=18446744073709551616
        S: 501 5.5.4 …
        C: MAIL FROM:<jörg@c.test>
        S: 553 5.6.7 …
        C: MAIL FROM:<a@c.test>
        S: 250 …
        C: RCPT TO:<alice@example.test> NOTIFY=NEVER
        S: 555 5.5.4 …
        C: RCPT TO:<jörg@example.test>
        S: 553 5.6.7 …
        C: RCPT TO:<>
        S: 501 5.1.3 …");
    for (address, code) in [
        (format!("{}@example.test", "a".repeat(1_000)), "501 5.1.3 "),
        (format!("a@{}x", "y.".repeat(130)), "501 5.1.3 "),
    ] {
        let reply = server.send(format!("RCPT TO:<{address}>\r\n").as_bytes());
        assert!(reply.starts_with(code), "{reply}");
    }
    let reply = server.send(b"RCPT TO:<\xff@example.test>\r\n");
    assert!(reply.starts_with("553 5.6.7 "), "{reply}");
}

#[test]
fn smtputf8_admits_addresses_beyond_ascii() {
    let server = mx("C: EHLO c.test
        C: MAIL FROM:<jörg@exämple.test> SMTPUTF8
        C: RCPT TO:<rené@example.test>
        C: DATA
        S: 250-…
        S: 250-…
        S: 250-…
        S: 250-…
        S: 250-…
        S: 250-…
        S: 250 …
        S: 250 2.1.0 …
        S: 250 2.1.5 …
        S: 354 …");
    assert_eq!(server.session.protocol().to_string(), "UTF8SMTP");
}

#[test]
fn no_form_of_relaying_finds_a_recipient() {
    let mut server = mx("C: HELO c.test
        C: MAIL FROM:<a@c.test>
        S: 250 …
        S: 250 …");
    for path in [
        "victim@elsewhere.test",
        "victim%elsewhere.test@example.test",
        "@example.test:victim@elsewhere.test",
        "@example.test,@b.test:alice@example.test",
        "elsewhere.test!victim@example.test",
        "\"victim@elsewhere.test\"@example.test",
        "\"victim%elsewhere.test\"@example.test",
        "victim@[192.0.2.1]",
        "victim@[IPv6:2001:db8::1]",
    ] {
        let reply = server.send(format!("RCPT TO:<{path}>\r\n").as_bytes());
        assert!(reply.starts_with("550 5."), "{path}: {reply}");
    }
    assert!(server.send(b"RCPT TO:<victim@elsewhere.test@example.test>\r\n").starts_with("501 5.1.3 "));
}

#[test]
fn recipients_up_to_the_limit_are_accepted_and_the_others_put_off() {
    let mut server = Server::new(Settings { recipients_max: 100, ..settings() });
    server.send(b"HELO c.test\r\nMAIL FROM:<a@c.test>\r\n");
    for i in 0..100 {
        assert!(server.send(format!("RCPT TO:<r{i}@example.test>\r\n").as_bytes()).starts_with("250 2.1.5 "));
    }
    for i in 100..140 {
        assert!(server.send(format!("RCPT TO:<r{i}@example.test>\r\n").as_bytes()).starts_with("452 4.5.3 "));
    }
    assert!(server.send(b"DATA\r\n").starts_with("354 "));
}

#[test]
fn starttls_forgets_everything_and_drops_what_came_in_clear() {
    let server = over(
        Settings { tls: Tls::Available, ..settings() },
        "C: STARTTLS
        S: 503 5.5.1 …
        C: EHLO c.test
        S: 250-mx.example.test
        S: 250-PIPELINING
        S: 250-SIZE 10000
        S: 250-8BITMIME
        S: 250-SMTPUTF8
        S: 250-ENHANCEDSTATUSCODES
        S: 250-CHUNKING
        S: 250 STARTTLS
        C: STARTTLS now
        S: 501 5.5.4 …
        C: MAIL FROM:<a@c.test>
        S: 250 …
        C: STARTTLS
        C: EHLO injected.test
        C: MAIL FROM:<evil@c.test>
        S: 220 2.0.0 …
        C: MAIL FROM:<a@c.test>
        S: 503 5.5.1 send EHLO first
        C: HELO c.test
        S: 250 mx.example.test
        C: STARTTLS
        S: 503 5.5.1 …
        C: RCPT TO:<alice@example.test>
        S: 503 5.5.1 …
        C: MAIL FROM:<a@c.test>
        S: 250 …",
    );
    assert_eq!(server.handshakes, 1);
    assert_eq!(server.session.helo(), Some("c.test"));
    assert_eq!(server.session.protocol().to_string(), "ESMTPS");
}

#[test]
fn auth_needs_tls_and_comes_once_and_before_mail() {
    let server = over(
        submission(),
        "C: AUTH PLAIN
        S: 503 5.5.1 …
        C: HELO c.test
        S: 250 …
        C: MAIL FROM:<a@c.test>
        S: 530 5.7.0 …
        C: AUTH PLAIN AGFsaWNlAHNlc2FtZQ==
        S: 538 5.7.11 …
        C: STARTTLS
        S: 220 …
        C: EHLO c.test
        S: 250-mx.example.test
        S: 250-PIPELINING
        S: 250-SIZE 10000
        S: 250-8BITMIME
        S: 250-SMTPUTF8
        S: 250-ENHANCEDSTATUSCODES
        S: 250-CHUNKING
        S: 250 AUTH PLAIN LOGIN
        C: AUTH
        S: 501 5.5.4 …
        C: AUTH CRAM-MD5
        S: 504 5.5.4 …
        C: AUTH PLAIN !!!!
        S: 501 5.5.2 …
        C: AUTH PLAIN =
        S: 501 5.5.2 …
        C: AUTH PLAIN
        S: 334\u{20}
        C: *
        S: 501 5.7.0 …
        C: AUTH PLAIN AGFsaWNlAHdyb25n
        S: 535 5.7.8 no
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: YWxpY2U=
        S: 334 UGFzc3dvcmQ6
        C: c2VzYW1l
        S: 235 2.7.0 …
        C: AUTH PLAIN AGFsaWNlAHNlc2FtZQ==
        S: 503 5.5.1 …
        C: MAIL FROM:<a@c.test> AUTH=<>
        S: 250 …",
    );
    assert!(server.session.is_authenticated());
    assert_eq!(server.session.protocol().to_string(), "ESMTPSA");
}

#[test]
fn starttls_forgets_a_login_in_clear() {
    let server = over(
        Settings { auth: AuthOffer::Always, ..submission() },
        "C: HELO c.test
        C: AUTH PLAIN AGFsaWNlAHNlc2FtZQ==
        C: STARTTLS
        S: 250 mx.example.test
        S: 235 2.7.0 …
        S: 220 2.0.0 …
        C: HELO c.test
        C: MAIL FROM:<a@c.test>
        S: 250 mx.example.test
        S: 530 5.7.0 …",
    );
    assert!(!server.session.is_authenticated());
}

#[test]
fn what_is_read_in_clear_while_tls_is_awaited_is_dropped() {
    let mut session = Session::new(Settings { tls: Tls::Available, ..settings() });
    let mut input = BytesMut::from(&b"HELO c.test\r\nSTARTTLS\r\nHELO evil.test\r\n"[..]);
    session.step(&mut input);
    assert!(matches!(session.step(&mut input), Some(Event::StartTls(_))));
    assert!(input.is_empty());
    input.extend_from_slice(b"HELO evil.test\r\n");
    assert_eq!(session.step(&mut input), None);
    session.tls_started();
    assert_eq!(session.step(&mut input), None);
    assert_eq!(session.helo(), None);
}

#[test]
fn auth_within_a_transaction_is_refused_and_guessing_ends_the_session() {
    let settings = Settings { auth: AuthOffer::Always, ..settings() };
    let server = over(
        settings,
        "C: HELO c.test
        S: 250 …
        C: MAIL FROM:<a@c.test>
        S: 250 …
        C: AUTH PLAIN AGFsaWNlAHNlc2FtZQ==
        S: 503 5.5.1 …
        C: RSET
        S: 250 …
        C: auth login YWxpY2U=
        S: 334 UGFzc3dvcmQ6
        C: d3Jvbmc=
        S: 535 5.7.8 no
        C: AUTH PLAIN AGFsaWNlAHdyb25n
        C: AUTH PLAIN AGFsaWNlAHdyb25n
        C: AUTH PLAIN AGFsaWNlAHdyb25n
        C: AUTH PLAIN AGFsaWNlAHdyb25n
        C: AUTH PLAIN AGFsaWNlAHNlc2FtZQ==
        S: 535 5.7.8 no
        S: 535 5.7.8 no
        S: 535 5.7.8 no
        S: 535 5.7.8 no
        S: 421 4.7.0 …",
    );
    assert!(server.closed && !server.session.is_authenticated());
}

#[test]
fn the_greeting_names_the_host_and_turns_early_talkers_away() {
    let Event::Reply(greeting) = Session::new(settings()).greeting(false) else { panic!("no greeting") };
    assert_eq!(&greeting[..], b"220 mx.example.test ESMTP\r\n");
    let mut session = Session::new(settings());
    let Event::Close(refusal) = session.greeting(true) else { panic!("not closed") };
    assert!(refusal.starts_with(b"554 mx.example.test "));
    assert!(session.is_closed());
    assert_eq!(session.step(&mut BytesMut::from(&b"NOOP\r\n"[..])), None);
}

#[test]
fn farewells_are_421_and_final() {
    for (why, start) in [
        (Farewell::Idle, "421 4.4.2 mx"),
        (Farewell::ShuttingDown, "421 4.3.2 mx"),
        (Farewell::TooBusy, "421 mx.example.test "),
    ] {
        let mut session = Session::new(settings());
        assert!(session.farewell(why).starts_with(start.as_bytes()));
        assert_eq!(session.step(&mut BytesMut::from(&b"NOOP\r\n"[..])), None);
    }
}

#[test]
fn a_caller_may_refuse_at_each_question_and_421_closes() {
    let no = |code, enhanced| SmtpReply { code, enhanced, text: "no".to_owned() };
    let mut session = Session::new(settings());
    let mut input = BytesMut::from(&b"HELO c.test\r\nMAIL FROM:<>\r\n"[..]);
    session.step(&mut input);
    assert!(matches!(session.step(&mut input), Some(Event::Mail(_))));
    assert_eq!(session.answer(&no(451, "4.3.0")), Event::Reply("451 4.3.0 no\r\n".into()));
    input.extend_from_slice(b"MAIL FROM:<>\r\nRCPT TO:<alice@example.test>\r\nDATA\r\n");
    session.step(&mut input);
    session.accept();
    session.step(&mut input);
    session.accept();
    assert_eq!(session.step(&mut input), Some(Event::Data));
    session.answer(&no(451, "4.3.0"));
    input.extend_from_slice(b"MAIL FROM:<>\r\nRCPT TO:<alice@example.test>\r\nBDAT 0 LAST\r\n");
    session.step(&mut input);
    session.accept();
    session.step(&mut input);
    session.accept();
    assert_eq!(session.step(&mut input), Some(Event::ContentEnd { octets: 0 }));
    assert_eq!(session.answer(&no(421, "4.3.2")), Event::Close("421 4.3.2 no\r\n".into()));
    assert!(session.is_closed());
}
