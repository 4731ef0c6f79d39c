//! APPEND.

use types::MailError;

use super::transcript::{OPEN, Server, play};

#[tokio::test]
async fn append_stores_flags_date_and_octets() {
    let server = Server::start().await;
    server
        .play(
            "
            C: a APPEND Drafts (\\Seen $Mine) \"14-Nov-2023 23:13:20 +0100\" {4}
            S: + <..>
            C: a
            C: b
            S: a OK [APPENDUID 1002 1] <..>
            C: b APPEND missing {1+}
            C: x
            S: b NO [TRYCREATE] <..>
            C: c APPEND a//b {1}
            S: c NO [CANNOT] <..>
            C: d NOOP
            S: d OK <..>
            ",
        )
        .await;
    let state = server.node.state();
    let message = &state.boxes[&2].messages[&1];
    assert_eq!(message.body, b"a\r\nb");
    assert_eq!(message.date, types::InternalDate { unix_s: 1_700_000_000, offset_min: 60 });
    assert_eq!(message.flags.names().collect::<Vec<_>>(), ["\\Seen", "$Mine"]);
}

#[tokio::test]
async fn what_goes_into_the_selected_mailbox_is_told_before_the_answer() {
    Server::start()
        .await
        .play(
            "
            C: a SELECT Sent
            S: * FLAGS <..>
            S: * OK <..>
            S: * 0 EXISTS
            S: * 0 RECENT
            S: * OK <..>
            S: * OK <..>
            S: * OK <..>
            S: a OK <..>
            C: b APPEND Sent {3}
            S: + <..>
            C: abc
            S: * 1 EXISTS
            S: * 1 RECENT
            S: b OK [APPENDUID 1003 1] <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn large_messages_come_through_whole() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let message: Vec<u8> = (0..3_000_000u32).map(|n| (n % 250) as u8 + 1).collect();
    client.send(format!("a APPEND INBOX {{{}}}\r\n", message.len())).await;
    assert!(client.line().await.starts_with("+ "));
    client.send(&message).await;
    client.send("\r\n").await;
    assert!(client.line().await.starts_with("a OK [APPENDUID 1001 1] "));
    assert_eq!(server.node.state().boxes[&1].messages[&1].body, message);
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_before_it_is_sent() {
    let server = Server::with(|settings| settings.limits.message_octets_max = 100_000).await;
    server
        .play(
            "
            C: a APPEND INBOX {100001}
            S: a NO [TOOBIG] <..>
            C: b APPEND INBOX {0}
            S: b BAD <..>
            C: c CAPABILITY
            S: * CAPABILITY <..> APPENDLIMIT=100000
            S: c OK <..>
            C: d APPEND missing {70000}
            S: d NO [TRYCREATE] <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn nul_in_a_message_is_refused_and_nothing_stored() {
    let server = Server::start().await;
    let mut client = [server.client().await];
    client[0].send("a APPEND INBOX {3+}\r\nx\0y\r\nb APPEND INBOX {1+}\r\nxyz\r\nc NOOP\r\n").await;
    play(&mut client, "S: a BAD <..>\nS: b BAD <..>\nS: c OK <..>").await;
    assert!(server.node.state().boxes[&1].messages.is_empty());
}

#[tokio::test]
async fn a_connection_lost_amid_a_message_stores_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send("a APPEND INBOX {300}\r\n").await;
    assert!(client.line().await.starts_with("+ "));
    client.send("half").await;
    drop(client);
    server.play("C: a NOOP\nS: a OK <..>").await;
    assert_eq!(server.node.calls("append"), 0);
}

#[tokio::test]
async fn before_login_and_over_quota_append_is_refused() {
    let server = Server::start().await;
    let mut stranger = [server.connect(OPEN).await];
    stranger[0].line().await;
    play(&mut stranger, "C: a APPEND INBOX {3+}\nC: abc\nS: a BAD <..>\nC: b NOOP\nS: b OK <..>").await;
    server.node.fail("append", MailError::OverQuota);
    server.play("C: a APPEND INBOX {3+}\nC: abc\nS: a NO [OVERQUOTA] <..>").await;
    // Where its outcome is unknown, it is asked for again, under the same request id.
    server.node.fail("append", MailError::Deadline);
    server.play("C: a APPEND INBOX {3+}\nC: abc\nS: a OK [APPENDUID <..>").await;
    assert_eq!(server.node.calls("append"), 3);
}
