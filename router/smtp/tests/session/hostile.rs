//! Bad lines, and clients that speak something else.

use smtp::{AuthOffer, Settings};

use crate::server::{Server, settings};

#[test]
fn a_line_ended_by_bare_lf_is_not_executed_nor_is_what_follows() {
    for bytes in [&b"NOOP\n"[..], b"HELO c.test\nMAIL FROM:<a@c.test>\r\n", b"\n", b"NOOP\n\r\n"] {
        let mut server = Server::new(settings());
        let replies = server.send(bytes);
        assert!(replies.starts_with("500 5.5.2 ") && replies.matches("\r\n").count() == 1, "{replies}");
        assert!(server.closed);
    }
}

#[test]
fn bare_cr_and_nul_in_a_command_are_refused() {
    let mut server = Server::new(settings());
    for bytes in [&b"NO\rOP\r\n"[..], b"NOOP\0\r\n", b"HELO a\rb\r\n", b"MAIL FROM:<a\0@c.test>\r\n", b"NOOP\r\r\n"] {
        assert!(server.send(bytes).starts_with("500 5.5.2 "), "{}", bytes.escape_ascii());
    }
    assert_eq!(server.send(b"NOOP\r\n"), "250 2.0.0 ok\r\n");
    assert_eq!(server.session.helo(), None);
}

#[test]
fn long_lines_are_refused_and_the_connection_lives() {
    for octets in [4 << 10, 1 << 20] {
        let mut server = Server::new(settings());
        let line = [b"NOOP ".to_vec(), b"x".repeat(octets), b"\r\n".to_vec()].concat();
        let mut replies = String::new();
        for chunk in line.chunks(1_460) {
            replies += &server.send(chunk);
            assert!(server.input.len() <= 2_048 + 1_460);
        }
        assert_eq!(replies, "500 5.5.2 command line too long\r\n");
        assert_eq!(server.send(b"NOOP\r\n"), "250 2.0.0 ok\r\n");
    }
}

#[test]
fn a_mail_command_with_extensions_may_have_2048_octets() {
    let mut server = Server::new(settings());
    server.send(b"HELO c.test\r\n");
    let padding = " ".repeat(2_048 - "MAIL FROM:<a@c.test>\r\n".len());
    assert!(server.send(format!("MAIL FROM:<a@c.test>{padding}\r\n").as_bytes()).starts_with("250 2.1.0 "));
    assert!(server.send(format!("MAIL FROM:<a@c.test>{padding} \r\n").as_bytes()).starts_with("500 5.5.2 "));
}

#[test]
fn auth_lines_have_their_own_limit() {
    let mut server = Server::new(Settings { auth: AuthOffer::Always, ..settings() });
    server.send(b"HELO c.test\r\n");
    assert_eq!(server.send(b"AUTH PLAIN\r\n"), "334 \r\n");
    assert!(server.send(&[b"A".repeat(12_287), b"\r\n".to_vec()].concat()).starts_with("500 5.5.6 "));
    // 4,000 octets of base64: within the limit, and three empty parts.
    assert!(server.send(format!("AUTH PLAIN {}\r\n", "AAAA".repeat(1_000)).as_bytes()).starts_with("501 5.5.2 "));
    assert_eq!(server.send(b"NOOP\r\n"), "250 2.0.0 ok\r\n");
}

#[test]
fn junk_is_refused_25_times_and_then_the_connection_closes() {
    let mut server = Server::new(settings());
    for _ in 0..24 {
        let reply = server.send(b"junk\r\n");
        assert!(reply.starts_with("500 5.5.1 ") && reply.matches("\r\n").count() == 1);
    }
    let last = server.send(b"junk\r\n");
    assert!(last.starts_with("500 5.5.1 ") && last.contains("\r\n421 4.7.0 "), "{last}");
    assert!(server.closed);
}

#[test]
fn a_stored_message_forgives_earlier_errors_and_unknown_recipients_are_none() {
    let mut server = Server::new(settings());
    (0..20).for_each(|_| assert!(server.send(b"junk\r\n").starts_with("500 ")));
    server.up_to_recipient();
    (0..50).for_each(|_| assert!(server.send(b"RCPT TO:<nobody@example.test>\r\n").starts_with("550 ")));
    assert!(server.send(b"BDAT 0 LAST\r\n").starts_with("250 "));
    (0..20).for_each(|_| assert!(server.send(b"junk\r\n").starts_with("500 ")));
    assert!(!server.closed);
}

#[test]
fn tls_and_http_on_the_plain_port_are_turned_away() {
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/1.1\r\nHost: mx\r\n\r\nMAIL FROM:<a@c.test>\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"CONNECT mx:25 HTTP/1.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut server = Server::new(settings());
        let replies = server.send(bytes);
        assert!(replies.starts_with("554 5.5.0 ") && replies.matches("\r\n").count() == 1, "{replies}");
        assert!(server.closed);
    }
}
