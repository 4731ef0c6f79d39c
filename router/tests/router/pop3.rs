//! Maildrops by POP3: exact, locked, and never short of a message that was not deleted on purpose.

use types::MailError;

use crate::support::client::Client;
use crate::support::cluster::{Fault, PASSWORD, shard_of};
use crate::support::router::{PATIENCE, POP3, POP3S, TestRouter};

const ALICE: &str = "alice@example.test";

async fn with_messages(messages: &[&str]) -> TestRouter {
    let router = TestRouter::start().await;
    messages.iter().for_each(|message| router.cluster.put(ALICE, message.as_bytes()));
    router
}

async fn logged_in(router: &TestRouter) -> Client {
    let mut client = router.client(POP3).await;
    let reply = client.login_pop3(ALICE, PASSWORD).await;
    assert!(reply.starts_with("+OK "), "{reply}");
    client
}

#[tokio::test]
async fn messages_are_listed_and_retrieved_octet_for_octet() {
    let long = "A: b\r\n\r\n.dot\r\n".to_owned() + &"long enough for many pieces\r\n".repeat(500);
    let router = with_messages(&["A: b\r\n\r\nshort\r\n", &long]).await;
    let mut client = logged_in(&router).await;
    assert_eq!(client.ask("STAT").await, format!("+OK 2 {}", 15 + long.len()));
    assert_eq!(client.ask("LIST 2").await, format!("+OK 2 {}", long.len()));
    assert_eq!(client.ask("RETR 2").await, format!("+OK {} octets", long.len()));
    assert_eq!(client.multi_line().await, long);
    assert_eq!(client.ask("TOP 2 1").await, "+OK top of message follows");
    assert_eq!(client.multi_line().await, "A: b\r\n\r\n.dot\r\n");
    client.expect("UIDL", "+OK").await;
    assert_eq!(client.multi_line().await, "1 77.1\r\n2 77.2\r\n");
    client.expect("RETR 3", "-ERR").await;
    client.expect("QUIT", "+OK").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_connection_dropped_before_quit_deletes_nothing() {
    let router = with_messages(&["one\r\n", "two\r\n"]).await;
    let mut client = logged_in(&router).await;
    client.expect("DELE 1", "+OK").await;
    drop(client);
    router.eventually("the lock is free", |router| router.cluster.state.lock().locks.is_empty()).await;
    assert_eq!(router.cluster.inbox(ALICE).len(), 2);

    let mut client = logged_in(&router).await;
    client.expect("DELE 1", "+OK").await;
    client.expect("QUIT", "+OK").await;
    let left = router.cluster.inbox(ALICE);
    assert_eq!((left.len(), left[0].uid), (1, 2));
}

#[tokio::test]
async fn quit_deletes_exactly_what_was_marked_and_not_what_came_meanwhile() {
    let router = with_messages(&["1\r\n", "2\r\n", "3\r\n"]).await;
    let mut client = logged_in(&router).await;
    client.expect("DELE 1", "+OK").await;
    client.expect("DELE 3", "+OK").await;
    router.cluster.put(ALICE, b"4\r\n");
    client.expect("QUIT", "+OK").await;
    assert_eq!(router.cluster.inbox(ALICE).iter().map(|message| message.uid).collect::<Vec<_>>(), [2, 4]);
}

#[tokio::test]
async fn a_quit_whose_update_failed_is_not_ok_and_one_that_may_have_is_asked_for_again() {
    let router = with_messages(&["1\r\n", "2\r\n"]).await;
    let mut client = logged_in(&router).await;
    client.expect("DELE 1", "+OK").await;
    router.cluster.plan("expunge", ALICE, Fault::Before(MailError::Busy));
    client.expect("QUIT", "-ERR [SYS/TEMP]").await;
    assert_eq!(client.rest().await, "");
    assert_eq!((router.cluster.inbox(ALICE).len(), router.cluster.calls("expunge")), (2, 1));
    // What was not done, or perhaps, is tried again.
    for (fault, left) in [(MailError::Unavailable, 1), (MailError::Deadline, 0)] {
        let mut client = logged_in(&router).await;
        client.expect("DELE 1", "+OK").await;
        router.cluster.plan("expunge", ALICE, Fault::Before(fault));
        client.expect("QUIT", "+OK").await;
        assert_eq!(router.cluster.inbox(ALICE).len(), left);
    }
}

#[tokio::test]
async fn a_maildrop_has_one_session_at_a_time() {
    let router = with_messages(&["1\r\n"]).await;
    let mut first = logged_in(&router).await;
    let mut second = router.client(POP3).await;
    let reply = second.login_pop3(ALICE, PASSWORD).await;
    assert!(reply.starts_with("-ERR [IN-USE]"), "{reply}");
    // Another account is another maildrop.
    assert!(second.login_pop3("bob@example.test", PASSWORD).await.starts_with("+OK"));
    first.expect("QUIT", "+OK").await;
    logged_in(&router).await;
}

#[tokio::test]
async fn a_session_outlives_a_change_of_leader() {
    let router = with_messages(&["1\r\n", "2\r\n"]).await;
    let account = router.cluster.id(ALICE);
    let mut client = logged_in(&router).await;
    router.cluster.lead(shard_of(account), 3);
    router
        .eventually("the lock is held at the new leader", |router| {
            router.cluster.calls("hold_maildrop") > 1 && router.cluster.state.lock().locks.contains_key(&account)
        })
        .await;
    client.expect("RETR 2", "+OK").await;
    assert_eq!(client.multi_line().await, "2\r\n");
    client.expect("DELE 2", "+OK").await;
    client.expect("QUIT", "+OK").await;
    assert_eq!(router.cluster.inbox(ALICE).len(), 1);
}

#[tokio::test]
async fn a_session_whose_lock_somebody_else_took_is_closed() {
    let router = with_messages(&["1\r\n"]).await;
    let account = router.cluster.id(ALICE);
    let mut client = logged_in(&router).await;
    client.expect("DELE 1", "+OK").await;
    {
        let mut state = router.cluster.state.lock();
        state.locks.insert(account, u64::MAX);
    }
    router.cluster.break_streams(shard_of(account));
    assert_eq!(client.rest().await, "");
    assert_eq!(router.cluster.inbox(ALICE).len(), 1);
}

#[tokio::test]
async fn a_retrieval_goes_on_where_its_node_stopped() {
    let message = "A: b\r\n\r\n".to_owned() + &"0123456789\r\n".repeat(100);
    let router = with_messages(&[&message]).await;
    let mut client = logged_in(&router).await;
    for after in [0, 1, 2, 30] {
        router.cluster.plan("fetch", ALICE, Fault::Break(after));
        client.expect("RETR 1", &format!("+OK {}", message.len())).await;
        assert_eq!(client.multi_line().await, message);
    }
    // Others may be asked meanwhile.
    assert!(router.cluster.calls("fetch") > 2 * 4);
}

#[tokio::test]
async fn a_message_that_is_gone_is_said_to_be() {
    let router = with_messages(&["1\r\n", "2\r\n"]).await;
    let mut client = logged_in(&router).await;
    let account = router.cluster.id(ALICE);
    router.cluster.state.lock().accounts.get_mut(&account).unwrap().messages.remove(0);
    client.expect("RETR 1", "-ERR").await;
    client.expect("RETR 2", "+OK").await;
    assert_eq!(client.multi_line().await, "2\r\n");
}

#[tokio::test]
async fn passwords_travel_over_tls_on_both_kinds_of_port() {
    let router = TestRouter::with(|settings| {
        settings.listeners[POP3].allow_plaintext_login = false;
    })
    .await;
    let mut client = router.client(POP3).await;
    client.expect("USER alice@example.test", "-ERR").await;
    client.send("STLS\r\nUSER bob@example.test\r\n").await;
    assert!(client.reply().await.starts_with("+OK"));
    client.start_tls().await;
    client.expect("PASS mailring-demo", "-ERR").await;
    assert!(client.login_pop3(ALICE, PASSWORD).await.starts_with("+OK"));

    let mut client = router.connect(POP3S).await;
    client.start_tls().await;
    assert!(client.line().await.starts_with("+OK"));
    assert!(client.login_pop3("bob@example.test", PASSWORD).await.starts_with("+OK"));
}

#[tokio::test]
async fn a_maildrop_of_thirty_thousand_messages_is_listed_whole() {
    let router = TestRouter::start().await;
    for i in 0..30_000 {
        router.cluster.put(ALICE, format!("{i}\r\n").as_bytes());
    }
    let mut client = logged_in(&router).await;
    client.expect("UIDL", "+OK 30000 messages").await;
    let listing = tokio::time::timeout(PATIENCE, client.multi_line()).await.unwrap();
    assert_eq!(listing.lines().count(), 30_000);
    assert!(listing.ends_with("30000 77.30000\r\n"));
}

#[tokio::test]
async fn a_session_ends_when_its_account_is_disabled_and_deletes_nothing() {
    let router = with_messages(&["1\r\n", "2\r\n"]).await;
    let mut client = logged_in(&router).await;
    let mut other = router.client(POP3).await;
    assert!(other.login_pop3("carol@example.test", PASSWORD).await.starts_with("+OK "));
    client.expect("DELE 1", "+OK").await;
    router.cluster.disable_account(ALICE);
    assert_eq!(client.rest().await, "-ERR [AUTH] account is disabled\r\n");
    other.expect("NOOP", "+OK").await;
    assert_eq!(router.cluster.inbox(ALICE).len(), 2);
    router.eventually("the lock is free", |router| router.cluster.state.lock().locks.len() == 1).await;
}
