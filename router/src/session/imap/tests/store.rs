//! STORE, COPY, MOVE, EXPUNGE.

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
