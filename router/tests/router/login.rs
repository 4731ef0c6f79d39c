//! Logins: who may, and what is not told to those who may not.

use router::Cluster;
use types::MailError;

use crate::support::cluster::PASSWORD;
use crate::support::router::{POP3, TestRouter};

#[tokio::test]
async fn unknown_disabled_and_wrong_are_answered_alike() {
    let router = TestRouter::start().await;
    router.cluster.disable_account("bob@example.test");
    router.heard().await;
    let mut answers = Vec::new();
    for (user, password) in [
        ("alice@example.test", "wrong"),
        ("bob@example.test", PASSWORD),
        ("nobody@example.test", PASSWORD),
        ("alice@elsewhere.test", PASSWORD),
        ("alice", PASSWORD),
    ] {
        let mut client = router.client(POP3).await;
        answers.push(client.login_pop3(user, password).await);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].starts_with("-ERR [AUTH]"), "{answers:?}");
    let mut client = router.client(POP3).await;
    assert!(client.login_pop3("ALICE@Example.Test", PASSWORD).await.starts_with("+OK"));
}

#[tokio::test]
async fn a_changed_password_ends_what_was_remembered() {
    let router = TestRouter::start().await;
    for _ in 0..2 {
        let mut client = router.client(POP3).await;
        assert!(client.login_pop3("alice@example.test", PASSWORD).await.starts_with("+OK"));
        client.expect("QUIT", "+OK").await;
    }
    router.cluster.disable_account("alice@example.test");
    router.heard().await;
    let mut client = router.client(POP3).await;
    assert!(client.login_pop3("alice@example.test", PASSWORD).await.starts_with("-ERR [AUTH]"));
    assert!(router.router.metrics_text().contains("mailring_router_logins_total{result=\"denied\"} 1"));
    assert!(router.router.metrics_text().contains("mailring_router_logins_total{result=\"ok\"} 2"));
}

#[tokio::test(start_paused = true)]
async fn wrong_passwords_slow_down_and_the_fifth_closes() {
    use router::auth::Failures;
    let begin = tokio::time::Instant::now();
    let mut failures = Failures::default();
    failures.failed().await;
    assert_eq!(begin.elapsed().as_secs(), 0);
    for i in 1..5 {
        failures.failed().await;
        assert_eq!(begin.elapsed().as_secs(), i);
    }
}

#[tokio::test]
async fn nobody_acts_as_somebody_else() {
    let router = TestRouter::start().await;
    let cluster: &Cluster = router.router.cluster();
    let auth = router::auth::Auth::new(cluster.clone(), Default::default()).unwrap();
    let alice = "alice@example.test";
    assert!(auth.login(alice, None, PASSWORD).await.is_ok());
    assert!(auth.login(alice, Some("Alice@example.test"), PASSWORD).await.is_ok());
    assert_eq!(auth.login(alice, Some("bob@example.test"), PASSWORD).await, Err(MailError::Denied));
    assert_eq!(auth.login(alice, Some(""), PASSWORD).await, Err(MailError::Denied));
}
