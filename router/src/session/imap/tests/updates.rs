//! What a session is told of what others do.

use tokio::time::Instant;
use types::{Flags, InternalDate, MailError};

use super::transcript::{Client, PATIENCE, Server, play};

const SELECTED: &str = "
    C: a SELECT INBOX
    S: * FLAGS <..>
    S: * OK <..>
    S: * 3 EXISTS
    S: <..>RECENT
    S: * OK <..>
    S: * OK <..>
    S: * OK <..>
    S: * OK <..>
    S: a OK <..>
    C2: a SELECT INBOX
    S2: * FLAGS <..>
    S2: * OK <..>
    S2: * 3 EXISTS
    S2: <..>RECENT
    S2: * OK <..>
    S2: * OK <..>
    S2: * OK <..>
    S2: * OK <..>
    S2: a OK <..>
    ";

async fn two_clients() -> (Server, [Client; 2]) {
    let server = Server::start().await;
    for number in 0..3 {
        server.node.deliver_text(&format!("Subject: {number}\r\n\r\nx"));
    }
    let mut clients = [server.client().await, server.client().await];
    play(&mut clients, SELECTED).await;
    (server, clients)
}

#[tokio::test]
async fn noop_tells_of_new_changed_and_expunged_messages() {
    let (server, mut clients) = two_clients().await;
    play(&mut clients, "C: b STORE 1:2 +FLAGS.SILENT (\\Deleted $New)\nS: * FLAGS <..>\nS: * OK <..>\nS: b OK <..>")
        .await;
    play(&mut clients, "C: c UID EXPUNGE 1\nS: * 1 EXPUNGE\nS: * 2 RECENT\nS: c OK <..>").await;
    server.node.deliver_text("new");
    play(
        &mut clients,
        "
        C2: d NOOP
        S2: * 1 EXPUNGE
        S2: * FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $New)
        S2: * OK [PERMANENTFLAGS <..>
        S2: * 1 FETCH (FLAGS (\\Deleted $New))
        S2: * 3 EXISTS
        S2: * 1 RECENT
        S2: d OK <..>
        C2: e NOOP
        S2: e OK <..>
        C: f CHECK
        S: * 3 EXISTS
        S: f OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn no_expunge_is_sent_while_fetch_store_or_search_by_number_is_answered() {
    let (server, mut clients) = two_clients().await;
    play(&mut clients, "C2: b STORE 1 +FLAGS.SILENT (\\Deleted)\nS2: b OK <..>").await;
    play(&mut clients, "C2: c EXPUNGE\nS2: * 1 EXPUNGE\nS2: c OK <..>").await;
    // Whenever the first client's session hears of it, by number no EXPUNGE may come: 2 and 3 keep meaning what they
    // meant.
    let (asked, until) = (server.node.calls("changes"), Instant::now() + PATIENCE);
    while server.node.calls("changes") == asked {
        assert!(Instant::now() < until);
        play(
            &mut clients,
            "
            C: d FETCH 2:3 (UID)
            S: * 2 FETCH (UID 2)
            S: * 3 FETCH (UID 3)
            S: d OK <..>
            C: e SEARCH UID 3
            S: * SEARCH 3
            S: e OK <..>
            C: f FETCH 1:2 (FLAGS)
            S: * 2 FETCH (FLAGS (<..>))
            S: f OK <..>
            C: g STORE 1 +FLAGS (\\Seen)
            S: g OK <..>
            ",
        )
        .await;
    }
    play(&mut clients, "C: h COPY 1 Trash\nS: * 1 EXPUNGE\nS: * 2 RECENT\nS: h <..>").await;
    play(&mut clients, "C: i FETCH 2 UID\nS: * 2 FETCH (UID 3)\nS: i OK <..>").await;
}

/// RFC 3501 §6.4.7, RFC 2180 §4.4.1: whether the session has heard of the expunge makes no difference.
#[tokio::test]
async fn copy_and_move_by_number_are_all_or_nothing() {
    let (server, mut clients) = two_clients().await;
    play(
        &mut clients,
        "
        C2: b STORE 2 +FLAGS.SILENT (\\Deleted)
        S2: b OK <..>
        C2: c EXPUNGE
        S2: * 2 EXPUNGE
        S2: c OK <..>
        C: d MOVE 1:3 Trash
        S: * 2 EXPUNGE
        S: * 2 RECENT
        S: d NO [EXPUNGEISSUED] <..>
        C: e UID COPY 2,77 Trash
        S: e OK no messages
        C2: f STORE 2 +FLAGS.SILENT (\\Deleted)
        S2: f OK <..>
        C2: g EXPUNGE
        S2: * 2 EXPUNGE
        S2: g OK <..>
        ",
    )
    .await;
    let (asked, until) = (server.node.calls("changes"), Instant::now() + PATIENCE);
    while server.node.calls("changes") == asked {
        assert!(Instant::now() < until);
        play(&mut clients, "C: h FETCH 1 (UID)\nS: * 1 FETCH (UID 1)\nS: h OK <..>").await;
    }
    let copies = server.node.calls("copy");
    play(&mut clients, "C: i COPY 1:2 Trash\nS: * 2 EXPUNGE\nS: * 1 RECENT\nS: i NO [EXPUNGEISSUED] <..>").await;
    assert_eq!(server.node.calls("copy"), copies, "it had heard");
    assert!(server.node.state().boxes[&4].messages.is_empty());
    // All of the UIDs are gone and the session has not heard: they are ignored (RFC 3501 §6.4.8).
    let uid = server.node.deliver_text("x");
    play(&mut clients, "C: j NOOP\nS: * 2 EXISTS\nS: * 2 RECENT\nS: j OK <..>").await;
    server.node.state().remove(1, &[uid].into_iter().collect()).unwrap();
    play(&mut clients, "C: k UID COPY 4 Trash\nS: k OK no messages\nC: l COPY 1 Trash\nS: l OK [COPYUID <..>").await;
}

#[tokio::test]
async fn the_watch_alone_brings_updates_with_any_command() {
    let (server, mut clients) = two_clients().await;
    server.node.deliver_text("new");
    let until = Instant::now() + PATIENCE;
    loop {
        let lines = clients[0].command("UID SEARCH ALL").await;
        if lines.contains(&"* 4 EXISTS".to_owned()) {
            break;
        }
        assert!(Instant::now() < until);
    }
    let asked = server.node.calls("changes");
    for _ in 0..10 {
        assert_eq!(clients[0].command("UID SEARCH ALL").await.len(), 2);
    }
    assert_eq!(server.node.calls("changes"), asked, "without news nobody asks");
}

#[tokio::test]
async fn idle_is_told_at_once() {
    let (server, mut clients) = two_clients().await;
    play(&mut clients, "C: b IDLE\nS: + idling").await;
    server.node.deliver_text("new");
    play(&mut clients, "S: * 4 EXISTS\nS: * 4 RECENT").await;
    play(
        &mut clients,
        "
        C2: b STORE 2 +FLAGS.SILENT (\\Deleted)
        S2: * 4 EXISTS
        S2: b OK <..>
        S: * 2 FETCH (FLAGS (\\Deleted \\Recent))
        C2: c EXPUNGE
        S2: * 2 EXPUNGE
        S2: c OK <..>
        S: * 2 EXPUNGE
        S: * 3 RECENT
        C: DONE
        S: b OK <..>
        C: c IDLE
        S: + idling
        C: GARBAGE
        S: c BAD <..>
        C: d NOOP
        S: d OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn idle_works_without_a_mailbox_and_in_one_packet() {
    let server = Server::start().await;
    let mut client = [server.client().await];
    client[0].send("a IDLE\r\nDONE\r\nb IDLE\r\n").await;
    play(&mut client, "S: + idling\nS: a OK <..>\nS: + idling\nC: done\nS: b OK <..>").await;
}

#[tokio::test]
async fn when_history_is_forgotten_the_whole_mailbox_is_compared() {
    let (server, mut clients) = two_clients().await;
    play(&mut clients, "C2: b STORE 1,3 +FLAGS.SILENT (\\Deleted)\nS2: b OK <..>").await;
    play(&mut clients, "C2: c UID EXPUNGE 1\nS2: * 1 EXPUNGE\nS2: c OK <..>").await;
    server.node.deliver_text("new");
    server.node.state().forgetful = true;
    play(
        &mut clients,
        "
        C: d NOOP
        S: * 1 EXPUNGE
        S: * 2 RECENT
        S: * 2 FETCH (FLAGS (\\Deleted \\Recent))
        S: * 3 EXISTS
        S: * 3 RECENT
        S: d OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn a_mailbox_deleted_by_others_empties_and_the_session_lives() {
    let server = Server::start().await;
    let mut clients = [server.client().await, server.client().await];
    for command in ["CREATE Gone", "APPEND Gone {1+}\r\nx", "SELECT Gone"] {
        clients[0].command(command).await;
    }
    play(
        &mut clients,
        "
        C2: a DELETE Gone
        S2: a OK <..>
        C: b FETCH 1 FLAGS
        S: b NO [NONEXISTENT] <..>
        C: c SEARCH ALL
        S: c NO [NONEXISTENT] <..>
        C: d NOOP
        S: * 1 EXPUNGE
        S: * 0 RECENT
        S: d OK <..>
        C: e EXPUNGE
        S: e NO [NONEXISTENT] <..>
        C: f IDLE
        S: + idling
        C: DONE
        S: f OK <..>
        C: g CLOSE
        S: g OK <..>
        C: h FETCH 1 FLAGS
        S: h BAD <..>
        ",
    )
    .await;
    for command in ["CREATE Gone", "APPEND Gone {1+}\r\nx", "SELECT Gone"] {
        clients[0].command(command).await;
    }
    play(
        &mut clients,
        "
        C: a DELETE Gone
        S: * NO [NONEXISTENT] <..>
        S: * 1 EXPUNGE
        S: * 0 RECENT
        S: a OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn while_the_shard_has_no_leader_updates_wait() {
    let (server, mut clients) = two_clients().await;
    server.node.deliver_text("new");
    server.node.fail("changes", MailError::Busy);
    // It may have heard of the message and asked before the fault, or ask a second time for another reason.
    let first = clients[0].command("NOOP").await;
    let second = clients[0].command("NOOP").await;
    assert!(first.len() == 1 && second.contains(&"* 4 EXISTS".to_owned()), "{first:?} {second:?}");
}

#[tokio::test]
async fn what_happened_while_the_watch_was_lost_is_told_when_it_is_back() {
    let (server, mut clients) = two_clients().await;
    play(&mut clients, "C: b IDLE\nS: + idling").await;
    // More than the watch can hold: it breaks, and the router takes it up again.
    for _ in 0..5_000 {
        server.node.tell(99, 1);
    }
    server.node.state().put(1, Flags::default(), InternalDate::utc(0), b"unheard".to_vec()).unwrap();
    play(&mut clients, "S: * 4 EXISTS\nS: <..>RECENT\nC: DONE\nS: b OK <..>").await;
}

#[tokio::test]
async fn a_change_of_unknown_outcome_is_asked_for_again() {
    let (server, mut clients) = two_clients().await;
    server.node.fail("store", MailError::Deadline);
    let asked = server.node.calls("store");
    play(&mut clients, "C: b STORE 1 +FLAGS (\\Seen)\nS: * 1 FETCH (<..>\nS: b OK <..>").await;
    assert_eq!(server.node.calls("store"), asked + 2);
}
