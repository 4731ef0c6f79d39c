//! STORE, COPY, MOVE, EXPUNGE.

use proto::MESSAGES_PER_CHANGE_MAX;
use types::{Flags, InternalDate, MailError};

use super::transcript::{Client, Server, play};

async fn opened(server: &Server, messages: usize) -> [Client; 1] {
    for number in 0..messages {
        server.node.deliver_text(&format!("Subject: {number}\r\n\r\nx"));
    }
    let mut client = server.client().await;
    client.command("SELECT INBOX").await;
    // Not to be recent any more.
    client.command("SELECT INBOX").await;
    [client]
}

#[tokio::test]
async fn store_tells_the_new_flags_once() {
    let server = Server::start().await;
    let mut client = opened(&server, 2).await;
    play(
        &mut client,
        "
        C: a STORE 1:2 +FLAGS (\\Seen)
        S: * 1 FETCH (FLAGS (\\Seen))
        S: * 2 FETCH (FLAGS (\\Seen))
        S: a OK <..>
        C: b NOOP
        S: b OK <..>
        C: c UID STORE 2 -FLAGS \\Seen
        S: * 2 FETCH (UID 2 FLAGS ())
        S: c OK <..>
        C: d STORE 1 FLAGS.SILENT (\\Flagged \\Deleted)
        S: d OK <..>
        C: e NOOP
        S: e OK <..>
        C: f FETCH 1 FLAGS
        S: * 1 FETCH (FLAGS (\\Flagged \\Deleted))
        S: f OK <..>
        C: g STORE 3 FLAGS ()
        S: g BAD <..>
        C: h UID STORE 9 FLAGS ()
        S: h OK <..>
        C: i STORE 1 FLAGS (\\Recent)
        S: i BAD <..>
        C: j STORE 1 FLAGS (\\Foo)
        S: j BAD <..>
        C: k STORE 2 +FLAGS (Custom)
        S: * FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft Custom)
        S: * OK [PERMANENTFLAGS <..>
        S: * 2 FETCH (FLAGS (Custom))
        S: k OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn a_conditional_store_names_what_it_left_alone() {
    let server = Server::start().await;
    let mut client = opened(&server, 3).await;
    play(
        &mut client,
        "
        C: a STORE 2 +FLAGS.SILENT (\\Seen)
        S: a OK <..>
        C: b STORE 1:3 (UNCHANGEDSINCE 7) +FLAGS.SILENT (\\Flagged)
        S: * OK [HIGHESTMODSEQ <..>] <..>
        S: * 1 FETCH (MODSEQ (9))
        S: * 3 FETCH (MODSEQ (9))
        S: b OK [MODIFIED 2] <..>
        C: c UID STORE 1:3 (UNCHANGEDSINCE 8) +FLAGS (\\Answered)
        S: * 2 FETCH (UID 2 FLAGS (\\Answered \\Seen) MODSEQ (10))
        S: c OK [MODIFIED 1,3] <..>
        C: d STORE 3 FLAGS ()
        S: * 3 FETCH (FLAGS () MODSEQ (11))
        S: d OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn expunge_counts_down_and_uid_expunge_spares_the_others() {
    let server = Server::start().await;
    let mut client = opened(&server, 5).await;
    play(
        &mut client,
        "
        C: a STORE 1,3:5 +FLAGS.SILENT (\\Deleted)
        S: a OK <..>
        C: b UID EXPUNGE 2:3
        S: * 3 EXPUNGE
        S: b OK <..>
        C: c EXPUNGE
        S: * 4 EXPUNGE
        S: * 3 EXPUNGE
        S: * 1 EXPUNGE
        S: c OK <..>
        C: d UID SEARCH ALL
        S: * SEARCH 2
        S: d OK <..>
        C: e NOOP
        S: e OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn copy_and_move_tell_the_new_uids() {
    let server = Server::start().await;
    let mut client = opened(&server, 3).await;
    play(
        &mut client,
        "
        C: a COPY 2:3 Trash
        S: a OK [COPYUID 1004 2:3 1:2] <..>
        C: b UID COPY 1 Trash
        S: b OK [COPYUID 1004 1 3] <..>
        C: c COPY 1 missing
        S: c NO [TRYCREATE] <..>
        C: d UID COPY 99 Trash
        S: d OK <..>
        C: e MOVE 1,3 Trash
        S: * OK [COPYUID 1004 1,3 4:5] <..>
        S: * 3 EXPUNGE
        S: * 1 EXPUNGE
        S: e OK <..>
        C: f UID MOVE 2 missing
        S: f NO [TRYCREATE] <..>
        C: g COPY 1 INBOX
        S: * 2 EXISTS
        S: * 1 RECENT
        S: g OK [COPYUID 1001 2 4] <..>
        C: h UID MOVE 2 a/../b
        S: h NO [CANNOT] <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn pipelined_commands_are_executed_in_order() {
    let server = Server::start().await;
    let mut client = opened(&server, 2).await;
    client[0]
        .send(
            "a STORE 1 +FLAGS.SILENT (\\Deleted)\r\nb EXPUNGE\r\nc FETCH 1 UID\r\nd APPEND INBOX {1+}\r\nx\r\ne UID \
             SEARCH ALL\r\n",
        )
        .await;
    play(
        &mut client,
        "
        S: a OK <..>
        S: * 1 EXPUNGE
        S: b OK <..>
        S: * 1 FETCH (UID 2)
        S: c OK <..>
        S: * 2 EXISTS
        S: * 1 RECENT
        S: d OK [APPENDUID 1001 3] <..>
        S: * SEARCH 2 3
        S: e OK <..>
        ",
    )
    .await;
}

const PART: usize = MESSAGES_PER_CHANGE_MAX as usize;

/// So many messages in INBOX, none of them recent.
async fn opened_with_many(server: &Server, messages: usize) -> Client {
    for _ in 0..messages {
        server.node.state().put(1, Flags::default(), InternalDate::utc(0), b"x".to_vec()).unwrap();
    }
    let [client] = opened(server, 0).await;
    client
}

#[tokio::test]
async fn a_store_of_many_messages_is_made_in_parts_and_tells_of_each_message_once() {
    let server = Server::start().await;
    let messages = 2 * PART + 5;
    let mut client = opened_with_many(&server, messages).await;
    for (item, told) in [("+FLAGS", true), ("-FLAGS.SILENT", false), ("FLAGS", true)] {
        let stores = server.node.calls("store");
        let mut lines = client.command(&format!("STORE 1:* {item} (\\Seen)")).await;
        assert_eq!(lines.pop().unwrap(), "x OK STORE done");
        let flags = |n: usize| format!("* {n} FETCH (FLAGS (\\Seen))");
        assert!(lines.into_iter().eq((1..=messages).filter(|_| told).map(flags)), "{item}");
        // What others have changed is asked for anew, where the client computes by itself.
        assert_eq!(server.node.calls("store") - stores, 3, "{item}");
        assert_eq!(client.command("NOOP").await.len(), 1, "{item}");
    }
}

#[tokio::test]
async fn a_store_that_fails_partway_has_told_what_was_done() {
    let server = Server::start().await;
    let mut client = opened_with_many(&server, 3 * PART).await;
    server.node.fail_later("store", 1, MailError::Busy);
    let lines = client.command("UID STORE 1:* (UNCHANGEDSINCE 1000000) +FLAGS.SILENT (\\Seen)").await;
    let told = lines.iter().filter(|line| line.contains(" FETCH (UID ")).count();
    assert_eq!(told, PART);
    assert!(lines.last().unwrap().starts_with("x NO [UNAVAILABLE] "), "{:?}", lines.last());
    assert_eq!(client.command("UID SEARCH SEEN").await[0].split(' ').count(), 2 + PART);
}

#[tokio::test]
async fn an_expunge_or_move_that_fails_partway_has_told_what_was_done_and_goes_on_when_repeated() {
    let server = Server::start().await;
    let mut client = opened_with_many(&server, 2 * PART + 5).await;
    client.command(&format!("STORE 1:{} +FLAGS.SILENT (\\Deleted)", PART + 5)).await;
    server.node.fail_later("expunge", 1, MailError::Busy);
    let lines = client.command("EXPUNGE").await;
    assert_eq!(lines.len(), PART + 1);
    assert_eq!((lines[0].as_str(), lines[PART - 1].as_str()), (&*format!("* {PART} EXPUNGE"), "* 1 EXPUNGE"));
    assert!(lines[PART].starts_with("x NO [UNAVAILABLE] "), "{}", lines[PART]);
    let lines = client.command("UID EXPUNGE 1:*").await;
    assert_eq!(lines[..5], [5, 4, 3, 2, 1].map(|n| format!("* {n} EXPUNGE")));
    assert_eq!(lines[5..], ["x OK EXPUNGE done"]);

    for _ in 0..7 {
        server.node.deliver_text("x");
    }
    client.command("SELECT INBOX").await;
    let messages = PART + 7;
    let first = PART + 6;
    server.node.fail_later("copy", 1, MailError::Busy);
    let lines = client.command(&format!("MOVE 1:{messages} Trash")).await;
    let end = first + PART - 1;
    assert_eq!(lines[0], format!("* OK [COPYUID 1004 {first}:{end} 1:{PART}] messages moved"));
    assert_eq!(lines[1], format!("* {PART} EXPUNGE"));
    assert!(lines.last().unwrap().starts_with("x NO [UNAVAILABLE] "), "{:?}", lines.last());
    let lines = client.command("MOVE 1:* Trash").await;
    let (first, last, to) = (end + 1, end + 7, PART + 1);
    assert_eq!(lines[0], format!("* OK [COPYUID 1004 {first}:{last} {to}:{}] messages moved", PART + 7));
    assert_eq!(lines.last().unwrap(), "x OK MOVE done");
}

#[tokio::test]
async fn a_close_expunges_all_of_many_messages() {
    let server = Server::start().await;
    let mut client = opened_with_many(&server, 2 * PART + 1).await;
    client.command("STORE 1:* +FLAGS.SILENT (\\Deleted)").await;
    assert_eq!(client.command("CLOSE").await, ["x OK mailbox closed"]);
    assert_eq!(client.command("STATUS INBOX (MESSAGES)").await[0], "* STATUS \"INBOX\" (MESSAGES 0)");
    assert_eq!(server.node.calls("expunge"), 3);
}

#[tokio::test]
async fn a_copy_is_one_request_and_refused_where_it_is_about_too_many_messages() {
    let server = Server::start().await;
    let mut client = opened_with_many(&server, 2 * PART).await;
    assert!(client.command("COPY 1:* Trash").await[0].starts_with("x OK [COPYUID "));
    assert_eq!(server.node.calls("copy"), 1);
    server.node.fail("copy", MailError::Limit("too many messages".to_owned()));
    assert!(client.command("COPY 1:* Trash").await[0].starts_with("x NO [LIMIT] "));
}
