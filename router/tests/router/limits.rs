//! What one client, or many, can take; and how a router ends.

use crate::support::client::Client;
use crate::support::router::{PATIENCE, POP3, SMTP, TestRouter, listener, settings};
use router::Router;
use router::settings::{ListenerTls, Protocol};

#[tokio::test]
async fn connections_over_the_limit_are_told_so_and_places_come_free() {
    let router = TestRouter::with(|settings| settings.limits.connections_max = 2).await;
    let first = router.client(SMTP).await;
    let _second = router.client(POP3).await;
    assert!(router.connect(SMTP).await.rest().await.starts_with("421 "));
    assert!(router.connect(POP3).await.rest().await.starts_with("-ERR [SYS/TEMP]"));
    drop(first);
    router
        .eventually("a place is free", |router| router.router.metrics_text().contains("open{protocol=\"smtp\"} 0"))
        .await;
    assert!(router.connect(SMTP).await.line().await.starts_with("220 "));
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let router = TestRouter::with(|settings| settings.limits.connections_per_address_max = 1).await;
    let _first = router.client(SMTP).await;
    assert!(router.connect(SMTP).await.rest().await.starts_with("421 "));
}

#[tokio::test]
async fn a_wrong_setting_or_a_taken_port_ends_the_start() {
    let router = TestRouter::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = settings(dir.path());
    wrong.listeners[SMTP].address = router.address(SMTP);
    let error = Router::start(wrong, router.cluster.cluster()).await.err().unwrap();
    assert!(format!("{error:#}").starts_with("cannot listen on 127.0.0.1:"), "{error:#}");
    let mut wrong = settings(dir.path());
    wrong.tls.as_mut().unwrap().key = dir.path().join("missing.pem");
    let error = Router::start(wrong, router.cluster.cluster()).await.err().unwrap();
    assert!(format!("{error:#}").contains("missing.pem"), "{error:#}");
    let mut wrong = settings(dir.path());
    wrong.limits.recipients_max = 1;
    let error = Router::start(wrong, router.cluster.cluster()).await.err().unwrap();
    assert!(format!("{error:#}").starts_with("limits.recipients_max: "), "{error:#}");
}

#[tokio::test]
async fn idle_clients_are_sent_away_in_their_protocols_words() {
    let router = TestRouter::with(|settings| {
        settings.limits.smtp_idle_s = 1;
        settings.limits.pop3_idle_s = 1;
        settings.limits.login_s = 1;
    })
    .await;
    let (mut smtp, mut pop3) = (router.client(SMTP).await, router.client(POP3).await);
    assert!(smtp.rest().await.starts_with("421 4.4.2"));
    assert_eq!(pop3.rest().await, "");
}

#[tokio::test]
async fn at_shutdown_idle_sessions_are_told_and_a_message_under_way_is_finished() {
    let router = TestRouter::start().await;
    let mut idle = router.client(SMTP).await;
    let mut pop3 = router.client(POP3).await;
    let mut busy = router.client(SMTP).await;
    busy.expect("EHLO c.test", "250").await;
    busy.envelope("s@c.test", &["alice@example.test"]).await;
    busy.expect("DATA", "354 ").await;
    let (cluster, address) = (router.cluster.clone(), router.address(SMTP));
    let shutdown = tokio::spawn(router.router.shutdown());
    assert!(idle.rest().await.starts_with("421 4.3.2"));
    assert!(pop3.rest().await.starts_with("-ERR [SYS/TEMP]"));
    busy.send("last\r\n.\r\n").await;
    assert!(busy.reply().await.starts_with("250 "));
    assert!(busy.rest().await.starts_with("421 4.3.2"));
    drop((idle, pop3, busy));
    tokio::time::timeout(PATIENCE, shutdown).await.unwrap().unwrap();
    assert_eq!(cluster.contents("alice@example.test"), ["last\r\n"]);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn whoever_does_not_finish_is_cut_off() {
    let router = TestRouter::with(|settings| settings.limits.shutdown_s = 1).await;
    let mut stuck = router.client(SMTP).await;
    stuck.expect("EHLO c.test", "250").await;
    stuck.envelope("s@c.test", &["alice@example.test"]).await;
    stuck.expect("DATA", "354 ").await;
    stuck.send("half\r\n").await;
    tokio::time::timeout(PATIENCE, router.router.shutdown()).await.unwrap();
    assert_eq!(stuck.rest().await, "");
    assert_eq!(router.cluster.calls("deliver"), 0);
}

#[tokio::test]
async fn a_thousand_slow_clients_are_served_beside_a_quick_one() {
    let router = TestRouter::start().await;
    let before = resident_kib();
    let mut slow = Vec::new();
    for _ in 0..1_000 {
        slow.push(router.connect(SMTP).await);
    }
    for client in &mut slow {
        assert!(client.line().await.starts_with("220 "));
        client.send("EHLO slo").await;
    }
    let mut quick = router.client(SMTP).await;
    quick.expect("EHLO c.test", "250").await;
    assert!(quick.mail("s@c.test", &["alice@example.test"], "quick\r\n").await.starts_with("250 "));
    // Both ends of each connection are in this process, and builds for tests are not lean.
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 * 1_000, "{grown} KiB for 1,000 connections");
    for client in &mut slow {
        client.send("w.test\r\n").await;
        assert!(client.reply().await.starts_with("250-mx.example.test"));
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_router_answers_again_at_once_after_junk() {
    let router = TestRouter::with(|settings| {
        settings.listeners.push(listener(Protocol::Smtp, ListenerTls::Implicit));
    })
    .await;
    let implicit = router.router.local_addresses().len() - 1;
    for junk in [vec![0u8; 100_000], vec![b'A'; 2_000_000], b"\r\n".repeat(10_000), b"GET / HTTP/1.0\r\n\r\n".to_vec()]
    {
        for listener in [SMTP, POP3, implicit] {
            let mut client = Client::connect(router.address(listener)).await;
            // The router may close amid it.
            let _ = client.try_send(&junk).await;
        }
        router.client(SMTP).await.expect("NOOP", "250 ").await;
    }
    router
        .eventually("all junk is gone", |router| {
            let text = router.router.metrics_text();
            text.lines()
                .filter(|line| line.starts_with("mailring_router_connections_open{"))
                .all(|line| line.ends_with(" 0"))
        })
        .await;
}
