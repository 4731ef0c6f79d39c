//! What happens to the bytes of a message: DATA, BDAT, limits, smuggling.

use smtp::{BareNewlines, Settings};

use crate::server::{Server, play, settings};

const MARKS: [&[u8]; 9] =
    [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r.\r", b"\r\n.\r", b"\r\n\0.\r\n", b"\n.\r", b"\r\r\n.\r\r\n"];

fn at_data(settings: Settings) -> Server {
    let mut server = Server::new(settings);
    server.up_to_recipient();
    assert!(server.send(b"DATA\r\n").starts_with("354 "));
    server
}

#[test]
fn a_smuggling_mark_yields_one_refusal_and_nothing_is_executed() {
    for mark in MARKS {
        for step in [1, usize::MAX] {
            let mut server = at_data(settings());
            let bytes =
                [b"a", mark, b"MAIL FROM:<evil@c.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nb\r\n.\r\n"].concat();
            let replies: String = bytes.chunks(step.min(bytes.len())).map(|chunk| server.send(chunk)).collect();
            let shown = mark.escape_ascii();
            assert!(replies.starts_with("554 5.6.0 ") && replies.matches("\r\n").count() == 1, "{shown}: {replies}");
            assert!(server.stored.is_empty() && server.aborted == 1, "{shown}");
            assert_eq!(server.send(b"NOOP\r\n"), "250 2.0.0 ok\r\n", "{shown}");
        }
    }
}

#[test]
fn bare_newlines_come_back_exactly_or_are_refused_as_set() {
    let content = b"a\rb\nc\r\r\nd\n.e\0\r\n";
    let mut server = at_data(settings());
    assert_eq!(server.send(&[&content[..], b".\r\n"].concat()), "250 2.0.0 ok\r\n");
    assert_eq!(server.stored[0].content, content);

    let mut server = at_data(Settings { bare_newlines: BareNewlines::Refuse, ..settings() });
    assert!(server.send(&[&content[..], b".\r\n"].concat()).starts_with("554 5.6.0 "));
    assert!(server.stored.is_empty());
}

#[test]
fn oversize_data_is_read_to_its_end_and_the_connection_lives() {
    let mut server = at_data(settings());
    assert_eq!(server.send(&b"x".repeat(9_998)), "");
    assert_eq!(server.send(b"\r\n"), "");
    assert_eq!(server.aborted, 0);
    assert_eq!(server.send(&b"y\r\n".repeat(50_000)), "");
    assert_eq!(server.aborted, 1);
    assert!(server.send(b".\r\n").starts_with("552 5.3.4 "));
    play(&mut server, "C: MAIL FROM:<a@c.test>\nS: 250 2.1.0 …");
}

#[test]
fn a_message_of_exactly_the_limit_is_stored() {
    let mut server = at_data(settings());
    assert_eq!(server.send(&[b"x".repeat(9_998), b"\r\n.\r\n".to_vec()].concat()), "250 2.0.0 ok\r\n");
    assert_eq!(server.stored[0].content.len(), 10_000);
}

#[test]
fn content_without_end_closes_the_connection() {
    let mut server = at_data(settings());
    let block = b"z".repeat(1 << 20);
    let replies: String = (0..70).map(|_| server.send(&block)).collect();
    assert!(replies.starts_with("552 5.3.4 ") && server.closed, "{replies}");
}

#[test]
fn text_sent_before_the_go_ahead_is_never_executed() {
    for text in [&b"DATA\r\nSubject: x\r\n.\r\nMAIL FROM:<evil@c.test>\r\n"[..], b"DATA\r\nR"] {
        let mut server = Server::new(settings());
        server.up_to_recipient();
        let replies = server.send(text);
        assert!(replies.starts_with("554 5.5.0 ") && replies.contains("\r\n421 4.7.0 "), "{replies}");
        assert!(server.closed && server.stored.is_empty());
        assert_eq!(server.send(b"NOOP\r\n"), "");
    }
}

#[test]
fn more_received_fields_than_the_limit_are_a_loop() {
    for (count, answer) in [(100, "250 2.0.0 "), (101, "554 5.4.6 ")] {
        let mut server = at_data(settings());
        let bytes = [b"Received: x\r\n".repeat(count), b"\r\nReceived: body\r\n.\r\n".to_vec()].concat();
        assert!(server.send(&bytes).starts_with(answer), "{count}");
    }
}

#[test]
fn bdat_takes_any_octets_in_chunks() {
    let mut server = Server::new(settings());
    server.up_to_recipient();
    let octets: Vec<u8> = (0..=255).chain(*b"\r\n.\r\nQUIT\r\n\n.\n").collect();
    let first = [format!("BDAT {}\r\n", octets.len()).as_bytes(), &octets].concat();
    assert_eq!(server.send(&first), format!("250 2.0.0 {} octets received\r\n", octets.len()));
    assert_eq!(server.send(b"bdat 3 last\r\n\r\n.NOOP\r\n"), "250 2.0.0 ok\r\n250 2.0.0 ok\r\n");
    assert_eq!(server.stored[0].content, [&octets[..], b"\r\n."].concat());
}

#[test]
fn bdat_may_end_with_an_empty_chunk_and_may_be_all_empty() {
    let mut server = Server::new(settings());
    server.up_to_recipient();
    assert_eq!(server.send(b"BDAT 1\r\nxBDAT 0\r\nBDAT 0 LAST\r\n").matches("250 2.0.0 ").count(), 3);
    server.up_to_recipient();
    assert_eq!(server.send(b"BDAT 0 LAST\r\n"), "250 2.0.0 ok\r\n");
    assert_eq!(server.stored.iter().map(|stored| stored.content.len()).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn bdat_over_the_limit_is_drained_and_the_connection_lives() {
    let mut server = Server::new(settings());
    server.up_to_recipient();
    let over = [b"BDAT 10001\r\n".to_vec(), b"RSET\r\n".repeat(1_667)[..10_001].to_vec()].concat();
    let replies = server.send(&over);
    assert!(replies.starts_with("552 5.3.4 ") && replies.matches("\r\n").count() == 1, "{replies}");
    assert_eq!(server.aborted, 1);
    let replies = server.send(b"BDAT 3\r\nxxxBDAT 2 LAST\r\nyy");
    assert_eq!(replies.matches("503 5.5.1 ").count(), 2, "{replies}");
    play(&mut server, "C: MAIL FROM:<a@c.test>\nS: 250 2.1.0 …");
    assert!(server.stored.is_empty());
}

#[test]
fn chunks_together_over_the_limit_are_refused() {
    let mut server = Server::new(settings());
    server.up_to_recipient();
    assert!(server.send(&[b"BDAT 6000\r\n".to_vec(), vec![0; 6_000]].concat()).starts_with("250 "));
    assert!(server.send(&[b"BDAT 6000 LAST\r\n".to_vec(), vec![0; 6_000]].concat()).starts_with("552 5.3.4 "));
    assert_eq!((server.aborted, server.stored.len()), (1, 0));
    assert_eq!(server.send(b"NOOP\r\n"), "250 2.0.0 ok\r\n");
}

#[test]
fn bdat_out_of_order_is_drained() {
    let mut server = Server::new(settings());
    assert!(server.send(b"BDAT 6 LAST\r\nRSET\r\n").starts_with("503 5.5.1 "));
    server.send(b"HELO c.test\r\nMAIL FROM:<>\r\n");
    let replies = server.send(b"BDAT 6\r\nRSET\r\n");
    assert!(replies.starts_with("554 5.5.1 ") && replies.matches("\r\n").count() == 1, "{replies}");
    server.send(b"RCPT TO:<alice@example.test>\r\n");
    assert!(server.send(b"BDAT 2 LAST\r\nok").starts_with("250 "));
    assert_eq!(server.stored[0].content, b"ok");
}

#[test]
fn bdat_of_no_known_size_closes_the_connection() {
    for (line, answer) in [
        ("BDAT x", "501 "),
        ("BDAT", "501 "),
        ("BDAT -1", "501 "),
        ("BDAT 1 LASTX", "501 "),
        ("BDAT 10000000000000000000", "552 "),
        ("BDAT 99999999999999999999", "501 "),
    ] {
        let mut server = Server::new(settings());
        server.up_to_recipient();
        let replies = server.send(format!("{line}\r\nRSET\r\n").as_bytes());
        assert!(replies.starts_with(answer) && replies.matches("\r\n").count() == 1, "{replies}");
        assert!(server.closed);
    }
}

#[test]
fn data_and_rcpt_after_bdat_are_out_of_order() {
    let mut server = Server::new(settings());
    server.up_to_recipient();
    server.send(b"BDAT 1\r\nx");
    play(
        &mut server,
        "C: DATA
        S: 503 5.5.1 …
        C: RCPT TO:<bob@example.test>
        S: 503 5.5.1 …
        C: RSET
        S: 250 …",
    );
}
