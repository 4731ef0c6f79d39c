//! FETCH and SEARCH.

use types::{MailError, SystemFlags};

use super::transcript::Server;

const MESSAGE: &str = "Subject: hi\r\nFrom: bob@example.test\r\n\r\nbody of more than sixteen octets\r\n";

async fn server() -> Server {
    let server = Server::start().await;
    server.node.deliver_text(MESSAGE);
    server.node.deliver_text("Subject: two\r\n\r\nx");
    server
}

#[tokio::test]
async fn fetch_answers_each_item_in_the_words_of_the_question() {
    let server = server().await;
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    super::transcript::play(
        std::slice::from_mut(&mut client),
        "
        C: a FETCH 2 ALL
        S: * 2 FETCH (FLAGS (\\Recent) INTERNALDATE \"14-Nov-2023 23:13:20 +0100\" RFC822.SIZE 17 ENVELOPE (\"date\" <..>))
        S: a OK <..>
        C: b FETCH 1:2 (UID BODY BODYSTRUCTURE)
        S: * 1 FETCH (UID 1 BODY (\"text\" <..>) BODYSTRUCTURE (\"text\" <..> NIL NIL NIL NIL))
        S: * 2 FETCH (UID 2 BODY <..>
        S: b OK <..>
        C: c FETCH 1 (RFC822.HEADER BODY.PEEK[HEADER.FIELDS (subject \"x y\")])
        S: c BAD <..>
        C: d FETCH 1 (RFC822.TEXT BODY[1] BODY[2] BODY[HEADER.FIELDS (Subject)] BODY[1.MIME])
        S: * 1 FETCH (RFC822.TEXT {34}
        S: body of more than sixteen octets
        S:  BODY[1] {34}
        S: body of more than sixteen octets
        S:  BODY[2] NIL BODY[HEADER.FIELDS (Subject)] {15}
        S: Subject: hi
        S: 
        S:  BODY[1.MIME] {28}
        S: Content-Type: text/plain
        S: 
        S: )
        S: d OK <..>
        C: e FETCH 1 (BODY[]<3.4> BODY[]<1000.5> BODY.PEEK[HEADER.FIELDS.NOT (Subject)])
        S: * 1 FETCH (BODY[]<3> {4}
        S: ject BODY[]<1000> {0}
        S:  BODY[HEADER.FIELDS.NOT (Subject)] {26}
        S: From: bob@example.test
        S: 
        S: )
        S: e OK <..>
        C: f UID FETCH 2,9 UID
        S: * 2 FETCH (UID 2)
        S: f OK <..>
        C: g UID FETCH 77 FLAGS
        S: g OK <..>
        C: h FETCH 3 FLAGS
        S: h BAD <..>
        C: i UID FETCH *:1 (FLAGS)
        S: * 1 FETCH (UID 1 FLAGS (\\Recent))
        S: * 2 FETCH (UID 2 FLAGS (\\Recent))
        S: i OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn reading_a_body_sets_seen_and_says_so_once() {
    let server = server().await;
    server
        .play(
            "
            C: a SELECT INBOX
            S: * FLAGS <..>
            S: * OK <..>
            S: * 2 EXISTS
            S: * 2 RECENT
            S: * OK <..>
            S: * OK <..>
            S: * OK <..>
            S: * OK <..>
            S: a OK <..>
            C: b FETCH 2 BODY.PEEK[TEXT]
            S: * 2 FETCH (BODY[TEXT] {1}
            S: x)
            S: b OK <..>
            C: c FETCH 2 BODY[TEXT]
            S: * 2 FETCH (FLAGS (\\Seen \\Recent) BODY[TEXT] {1}
            S: x)
            S: c OK <..>
            C: d FETCH 2 RFC822.TEXT
            S: * 2 FETCH (RFC822.TEXT {1}
            S: x)
            S: d OK <..>
            C: e NOOP
            S: e OK <..>
            C: f FETCH 2 (BODY[TEXT] BODY.PEEK[TEXT])
            S: * 2 FETCH (BODY[TEXT] {1}
            S: x)
            S: f OK <..>
            ",
        )
        .await;
    assert_eq!(server.node.calls("store"), 1);
}

#[tokio::test]
async fn examine_never_sets_seen() {
    let server = server().await;
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    assert_eq!(client.command("FETCH 2 BODY[TEXT]").await.len(), 3);
    assert_eq!(server.node.calls("store"), 0);
}

fn seen(server: &Server) -> String {
    server.node.state().by_id(1).unwrap().with(SystemFlags::SEEN, true).to_string()
}

#[tokio::test]
async fn what_is_left_out_is_not_seen() {
    let server = server().await;
    for body in ["three", "four", "five", "six"] {
        server.node.deliver_text(body);
    }
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    server.node.state().unread = [2, 4, 5].into();
    let lines = client.command("FETCH 1:* (UID BODY[])").await;
    assert!(lines.last().unwrap().starts_with("x NO [CORRUPTION] "), "{lines:?}");
    // Behind the first one, whose rest might not have been there.
    let told: Vec<&String> = lines.iter().filter(|line| line.starts_with("* ")).collect();
    let expected = [
        &format!("* 1 FETCH (UID 1 BODY[] {{{}}}", MESSAGE.len()),
        "* 1 FETCH (UID 1 FLAGS (\\Seen \\Recent))",
        "* 3 FETCH (UID 3 FLAGS (\\Seen \\Recent) BODY[] {5}",
        "* 6 FETCH (UID 6 FLAGS (\\Seen \\Recent) BODY[] {3}",
    ];
    assert_eq!(told, expected);
    assert_eq!(seen(&server), "1,3,6");
    let calls = server.node.calls("store");
    assert_eq!(client.command("UID FETCH 4 BODY[]").await.len(), 1);
    assert_eq!((seen(&server), server.node.calls("store")), ("1,3,6".to_owned(), calls));
    // Nobody has set it meanwhile that it would have to be told of.
    assert_eq!(client.command("NOOP").await.len(), 1);
}

#[tokio::test]
async fn where_a_fetch_breaks_off_what_came_is_seen_and_nothing_else() {
    let server = Server::start().await;
    for body in ["one", "two", "three", "four"] {
        server.node.deliver_text(body);
    }
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    server.node.state().break_fetch_after = Some(2);
    server.node.fail_later("fetch", 1, MailError::Internal("of the test".to_owned()));
    let lines = client.command("FETCH 1:* BODY[]").await;
    assert!(lines.last().unwrap().starts_with("x NO "), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("FLAGS (\\Seen \\Recent)")).count(), 2, "{lines:?}");
    assert_eq!(seen(&server), "1:2");
    // What cannot be marked is not sent as if it were.
    server.node.fail("store", MailError::Internal("of the test".to_owned()));
    let lines = client.command("FETCH 1:* BODY[]").await;
    assert!(lines.len() == 1 && lines[0].starts_with("x NO "), "{lines:?}");
}

#[tokio::test]
async fn on_a_full_disk_mail_is_served_and_stays_unseen() {
    let server = Server::start().await;
    server.node.deliver_text("one");
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    server.node.fail("store", MailError::DiskFull);
    let lines = client.command("FETCH 1 BODY[]").await;
    assert!(lines.len() > 1 && lines.last().unwrap().starts_with("x OK "), "{lines:?}");
    assert!(lines[0].starts_with("* 1 FETCH (BODY[] {3}"), "{lines:?}");
    assert_eq!(seen(&server), "");
    let lines = client.command("FETCH 1 BODY[]").await;
    assert!(lines[0].starts_with("* 1 FETCH (FLAGS (\\Seen \\Recent) BODY[] {3}"), "{lines:?}");
}

#[tokio::test]
async fn many_messages_are_seen_by_few_changes_and_told_once() {
    let server = Server::start().await;
    for _ in 0..600 {
        server.node.deliver_text("x");
    }
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    let lines = client.command("FETCH 1:* BODY[]").await;
    let told: Vec<&String> = lines.iter().filter(|line| line.starts_with("* ")).collect();
    assert_eq!(told.len(), 600);
    for (seq, line) in (1..).zip(told) {
        assert_eq!(*line, format!("* {seq} FETCH (FLAGS (\\Seen \\Recent) BODY[] {{1}}"));
    }
    assert_eq!((seen(&server), server.node.calls("store")), ("1:600".to_owned(), 3));
    assert_eq!(client.command("NOOP").await.len(), 1);
}

#[tokio::test]
async fn a_fetch_goes_on_where_its_stream_broke() {
    let server = server().await;
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    let whole = client.command("FETCH 1:2 (FLAGS BODY.PEEK[])").await;
    for after in 0..8 {
        server.node.state().break_fetch_after = Some(after);
        assert_eq!(client.command("FETCH 1:2 (FLAGS BODY.PEEK[])").await, whole, "after {after} items");
    }
}

#[tokio::test]
async fn messages_that_cannot_be_read_are_left_out_and_named_at_the_end() {
    let server = server().await;
    for body in ["three", "four", "five", "six"] {
        server.node.deliver_text(body);
    }
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    let whole = client.command("FETCH 1:* (UID BODY.PEEK[])").await;
    server.node.state().unread = [2, 4, 5].into();
    let lines = client.command("FETCH 1:* (UID BODY.PEEK[])").await;
    let left: Vec<&String> = lines.iter().filter(|line| line.starts_with("* ")).collect();
    let starts = ["* 1 FETCH (UID 1 ", "* 3 FETCH (UID 3 ", "* 6 FETCH (UID 6 "];
    assert!(left.len() == 3 && left.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{lines:?}");
    assert!(lines[..lines.len() - 1].iter().all(|line| whole.contains(line)), "{lines:?}");
    let answer = "NO [CORRUPTION] stored data is damaged: 3 messages were left out, UIDs 2,4:5";
    assert!(lines.last().unwrap().ends_with(answer), "{lines:?}");
    // The session goes on, and each by itself is as it is among others.
    let answer = "NO [CORRUPTION] stored data is damaged: 1 message was left out, UID 4";
    assert!(client.command("UID FETCH 4 BODY.PEEK[]").await.last().unwrap().ends_with(answer));
    assert_eq!(client.command("UID FETCH 6 BODY.PEEK[]").await.len(), 3);
}

#[tokio::test]
async fn however_many_cannot_be_read_the_answer_stays_a_line() {
    let server = Server::start().await;
    for _ in 0..100 {
        server.node.deliver_text("x");
    }
    server.node.state().unread = (1..=100).filter(|uid| uid % 2 == 0).collect();
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    let lines = client.command("FETCH 1:* BODY.PEEK[]").await;
    let answer = lines.last().unwrap();
    assert!(answer.contains("50 messages were left out, UIDs 2,4,") && answer.ends_with(",40 and others"), "{answer}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("* ")).count(), 50);
}

/// Anything else in the place of what was announced would be taken for the message.
#[tokio::test]
async fn a_message_whose_rest_cannot_be_read_ends_the_connection() {
    let server = server().await;
    server.node.state().unread_rest = [1].into();
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    client.send("a FETCH 1:2 BODY.PEEK[]\r\n").await;
    assert_eq!(client.line().await, format!("* 1 FETCH (BODY[] {{{}}}", MESSAGE.len()));
    let mut rest = client.rest().await.join("\r\n").into_bytes();
    rest.extend(b"\r\n");
    rest.extend(&client.received);
    assert!(rest.len() < MESSAGE.len() && MESSAGE.as_bytes().starts_with(&rest), "{rest:?}");
}

#[tokio::test]
async fn a_message_that_breaks_off_stays_unseen() {
    let server = server().await;
    server.node.state().unread_rest = [1].into();
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    client.send("a FETCH 1:2 BODY[]\r\n").await;
    assert_eq!(client.line().await, format!("* 1 FETCH (BODY[] {{{}}}", MESSAGE.len()));
    client.rest().await;
    assert_eq!(seen(&server), "");
}

#[tokio::test]
async fn a_stored_message_comes_back_as_it_is_nul_and_all() {
    let server = server().await;
    server.node.deliver_text("a\0b\0");
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    assert_eq!(client.command("FETCH 3 BODY.PEEK[]").await[..2], ["* 3 FETCH (BODY[] {4}", "a\0b\0)"]);
}

#[tokio::test]
async fn large_messages_stream_through() {
    let server = server().await;
    let line = format!("{}\r\n", "0123456789".repeat(9));
    let message = format!("Subject: large\r\n\r\n{}", line.repeat(4_000));
    server.node.deliver_text(&message);
    let mut client = server.client().await;
    client.command("EXAMINE INBOX").await;
    let lines = client.command("FETCH 3 BODY.PEEK[]").await;
    assert_eq!(lines[0], format!("* 3 FETCH (BODY[] {{{}}}", message.len()));
    assert_eq!(lines.len(), 4_000 + 5);
}

/// RFC 7162 §3.1.
#[tokio::test]
async fn the_first_command_that_knows_condstore_brings_the_highest_modseq_once() {
    let server = Server::start().await;
    server.node.deliver_text("a");
    for command in [
        "ENABLE CONDSTORE",
        "FETCH 1 (MODSEQ)",
        "FETCH 1 (FLAGS) (CHANGEDSINCE 1)",
        "SEARCH MODSEQ 1",
        "STORE 1 (UNCHANGEDSINCE 1) +FLAGS (\\Seen)",
        "STATUS Trash (HIGHESTMODSEQ)",
    ] {
        let highest = |lines: &[String]| lines.iter().filter(|line| line.starts_with("* OK [HIGHESTMODSEQ 5]")).count();
        let mut client = server.client().await;
        client.command("EXAMINE INBOX").await;
        assert_eq!(highest(&client.command("FETCH 1 (FLAGS)").await), 0);
        let select = if command.starts_with("STORE") { "SELECT" } else { "EXAMINE" };
        client.command(&format!("{select} INBOX")).await;
        assert_eq!(highest(&client.command(command).await), 1, "{command}");
        assert_eq!(highest(&client.command("ENABLE CONDSTORE").await), 0);
        assert_eq!(highest(&client.command("FETCH 1 (MODSEQ)").await), 0);
    }
    // Without a mailbox there is nothing to tell; SELECT does.
    let mut client = server.client().await;
    assert_eq!(client.command("ENABLE CONDSTORE").await.len(), 2);
}

#[tokio::test]
async fn condstore_tells_modseq_from_the_command_that_asks_for_it() {
    server()
        .await
        .play(
            "
            C: a EXAMINE INBOX (CONDSTORE)
            S: * FLAGS <..>
            S: * OK <..>
            S: * 2 EXISTS
            S: * 2 RECENT
            S: * OK <..>
            S: * OK <..>
            S: * OK <..>
            S: * OK [HIGHESTMODSEQ 6] <..>
            S: a OK <..>
            C: b FETCH 1:2 (FLAGS)
            S: * 1 FETCH (FLAGS (\\Recent) MODSEQ (5))
            S: * 2 FETCH (FLAGS (\\Recent) MODSEQ (6))
            S: b OK <..>
            C: c UID FETCH 1:* (FLAGS) (CHANGEDSINCE 5)
            S: * 2 FETCH (UID 2 FLAGS (\\Recent) MODSEQ (6))
            S: c OK <..>
            C: d FETCH 1 (MODSEQ UID)
            S: * 1 FETCH (UID 1 MODSEQ (5))
            S: d OK <..>
            C: e SEARCH MODSEQ 6
            S: * SEARCH 2 (MODSEQ 6)
            S: e OK <..>
            C: f SEARCH MODSEQ 600
            S: * SEARCH
            S: f OK <..>
            C: g UID FETCH 1 FLAGS (CHANGEDSINCE 18446744073709551616)
            S: g BAD <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn search_answers_numbers_or_uids() {
    let server = server().await;
    server.node.state().remove(1, &types::UidSet::from_range(1, 1)).unwrap();
    server.node.deliver_text("Subject: three\r\n\r\ny");
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    for (search, found) in [
        ("SEARCH ALL", "* SEARCH 1 2"),
        ("UID SEARCH ALL", "* SEARCH 2 3"),
        ("SEARCH SUBJECT two", "* SEARCH 1"),
        ("UID SEARCH 2", "* SEARCH 3"),
        ("SEARCH UID 3", "* SEARCH 2"),
        ("SEARCH 2:99", "* SEARCH 2"),
        ("SEARCH NOT SUBJECT two", "* SEARCH 2"),
        ("SEARCH OR SUBJECT two OR SUBJECT three SUBJECT four", "* SEARCH 1 2"),
        ("SEARCH NEW", "* SEARCH 1 2"),
        ("SEARCH OLD", "* SEARCH"),
        ("SEARCH (UNSEEN (LARGER 16)) SMALLER 19", "* SEARCH 1"),
        ("SEARCH SINCE 14-Nov-2023 BEFORE 15-Nov-2023", "* SEARCH 1 2"),
        ("SEARCH CHARSET UTF-8 BODY y", "* SEARCH 2"),
        ("SEARCH KEYWORD $Junk", "* SEARCH"),
        ("SEARCH HEADER Subject \"\"", "* SEARCH 1 2"),
    ] {
        let lines = client.command(search).await;
        assert_eq!(lines[0], found, "{search}");
        assert_eq!(lines.len(), 2);
    }
    let refused = client.command("SEARCH CHARSET KLINGON ALL").await;
    assert!(refused[0].starts_with("x NO [BADCHARSET (US-ASCII UTF-8)] "));
}
