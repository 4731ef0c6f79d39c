//! Mail by SMTP: who receives it, once, and what is answered when that cannot be.

use std::time::Duration;

use proto::wire::DomainRecord;
use proto::wire::directory_change::Change;
use router::settings::Limits;
use types::MailError;

use crate::support::client::Client;
use crate::support::cluster::Fault;
use crate::support::router::{OPERATION_MS, PATIENCE, SMTP, SUBMISSION, TestRouter};

const MESSAGE: &str = "Subject: hello\r\n\r\n..dot and text\r\n";
const CONTENT: &str = "Subject: hello\r\n\r\n.dot and text\r\n";

async fn greeted(router: &TestRouter) -> Client {
    let mut client = router.client(SMTP).await;
    client.expect("EHLO client.example.net", "250-mx.example.test|250-PIPELINING|").await;
    client
}

fn unfolded(header: &str) -> String {
    header.replace("\r\n\t", " ")
}

#[tokio::test]
async fn a_message_reaches_each_of_its_recipients_byte_for_byte_under_trace_headers() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    let reply = client.mail("s@client.example.net", &["alice@example.test", "Dave@Example.ORG"], MESSAGE).await;
    assert!(reply.starts_with("250 2.0.0 stored as "), "{reply}");
    client.expect("QUIT", "221 ").await;
    assert_eq!(client.rest().await, "");
    for name in ["alice@example.test", "dave@example.org"] {
        assert_eq!(router.cluster.contents(name), [CONTENT]);
        let body = String::from_utf8(router.cluster.inbox(name).remove(0).body).unwrap();
        assert!(
            body.starts_with("Return-Path: <s@client.example.net>\r\nReceived: from client.example.net ([127.0.0.1])"),
            "{body}"
        );
        assert!(unfolded(&body).contains(" by mx.example.test with ESMTP id ") && !body.contains(" for <"), "{body}");
        assert!(router.cluster.inbox(name)[0].unix_s > 1_700_000_000);
    }
}

#[tokio::test]
async fn recipients_are_accepted_or_refused_one_by_one() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    client.expect("MAIL FROM:<>", "250 2.1.0").await;
    client.expect("RCPT TO:<nobody@example.test>", "550 5.1.1").await;
    client.expect("RCPT TO:<alice@elsewhere.test>", "550 5.7.1").await;
    client.expect("RCPT TO:<alice%elsewhere.test@example.test>", "550 5.1.1").await;
    client.expect("RCPT TO:<\"alice@elsewhere.test\"@example.test>", "550 5.1.1").await;
    client.expect("RCPT TO:<@example.test:alice@elsewhere.test>", "550 5.7.1").await;
    client.expect("RCPT TO:<alice@[127.0.0.1]>", "550 5.7.1").await;
    client.expect("DATA", "554 5.5.1").await;
    client.expect("RCPT TO:<\"Alice\"@example.test>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.send("x\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("250 2.0.0"));
    assert_eq!(router.cluster.contents("alice@example.test"), ["x\r\n"]);
    let body = String::from_utf8(router.cluster.inbox("alice@example.test").remove(0).body).unwrap();
    assert!(
        body.starts_with("Return-Path: <>\r\n") && unfolded(&body).contains(" for <Alice@example.test>;"),
        "{body}"
    );
}

#[tokio::test]
async fn nothing_is_refused_for_good_while_there_is_no_domain() {
    let router = TestRouter::start().await;
    for domain in ["example.test", "example.org"] {
        router.cluster.change(Change::DomainRemoved(domain.to_owned()));
    }
    router.heard().await;
    let mut client = greeted(&router).await;
    client.expect("MAIL FROM:<s@client.example.net>", "250 2.1.0").await;
    for path in ["alice@example.test", "postmaster@example.test", "postmaster", "\"a b\"@example.test"] {
        client.expect(&format!("RCPT TO:<{path}>"), "451 4.3.5 no domain is set up here yet").await;
    }
    client.expect("RCPT TO:<alice@[127.0.0.1]>", "550 5.7.1").await;
    client.expect("DATA", "554 5.5.1").await;
    // With the first one, others are not ours.
    router.cluster.change(Change::Domain(DomainRecord { name: "example.test".to_owned() }));
    router.heard().await;
    client.expect("RCPT TO:<alice@elsewhere.test>", "550 5.7.1").await;
    client.expect("RCPT TO:<nobody@example.test>", "550 5.1.1").await;
    client.expect("RCPT TO:<\"a b\"@elsewhere.test>", "550 5.7.1").await;
}

#[tokio::test]
async fn mail_waits_for_an_account_that_is_between_two_shards_and_is_stored_once() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    router.cluster.hold("alice@example.test");
    let moving = async {
        while router.cluster.calls("deliver") < 3 {
            tokio::task::yield_now().await;
        }
        router.cluster.move_to("alice@example.test", 3);
    };
    let mail = client.mail("s@c.test", &["alice@example.test", "bob@example.test"], MESSAGE);
    let (reply, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(mail, moving) }).await.unwrap();
    assert!(reply.starts_with("250 "), "{reply}");
    for name in ["alice@example.test", "bob@example.test"] {
        assert_eq!(router.cluster.contents(name), [CONTENT]);
    }
}

#[tokio::test]
async fn an_alias_reaches_each_account_once() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    let recipients = ["team@example.test", "alice@example.test", "ALICE@example.test", "bob@example.test"];
    let reply = client.mail("s@c.test", &recipients, MESSAGE).await;
    assert!(reply.starts_with("250 "), "{reply}");
    for name in ["alice@example.test", "bob@example.test"] {
        assert_eq!(router.cluster.contents(name), [CONTENT]);
    }
}

#[tokio::test]
async fn postmaster_reaches_somebody_with_and_without_a_domain() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    assert!(client.mail("", &["Postmaster"], "bare\r\n").await.starts_with("250 "));
    assert!(client.mail("", &["postmaster@example.org"], "org\r\n").await.starts_with("250 "));
    assert_eq!(router.cluster.contents("alice@example.test"), ["bare\r\n"]);
    assert_eq!(router.cluster.contents("dave@example.org"), ["org\r\n"]);
}

#[tokio::test]
async fn when_one_shard_fails_all_is_deferred_and_the_retry_stores_each_copy_once() {
    let router = TestRouter::with(|settings| settings.limits.operation_ms = OPERATION_MS).await;
    // The answer of one shard is lost on every try within the operation's time, of another once.
    for _ in 0..50 {
        router.cluster.plan("deliver", "bob@example.test", Fault::Before(MailError::Unavailable));
    }
    let mut client = greeted(&router).await;
    let recipients = ["alice@example.test", "bob@example.test", "dave@example.org"];
    let reply = client.mail("s@c.test", &recipients, MESSAGE).await;
    assert!(reply.starts_with("451 4.3.0"), "{reply}");
    assert_eq!(router.cluster.contents("bob@example.test").len(), 0);
    assert_eq!(router.cluster.contents("alice@example.test").len(), 1);
    assert!(client.ask("QUIT").await.starts_with("221"));
    assert_eq!(router.cluster.state.lock().settled, 0);

    router.cluster.state.lock().faults.clear();
    let mut client = greeted(&router).await;
    let reply = client.mail("s@c.test", &recipients, MESSAGE).await;
    assert!(reply.starts_with("250 "), "{reply}");
    for name in recipients {
        assert_eq!(router.cluster.contents(name), [CONTENT], "{name}");
    }
    client.expect("NOOP", "250 ").await;
    router.eventually("all three are settled", |router| router.cluster.state.lock().fingerprints.is_empty()).await;
}

#[tokio::test]
async fn a_delivery_whose_answer_is_lost_is_tried_again_and_stored_once() {
    let router = TestRouter::start().await;
    router.cluster.plan("deliver", "alice@example.test", Fault::After(MailError::Deadline));
    let mut client = greeted(&router).await;
    let reply = client.mail("s@c.test", &["alice@example.test"], MESSAGE).await;
    assert!(reply.starts_with("250 "), "{reply}");
    assert_eq!(router.cluster.contents("alice@example.test"), [CONTENT]);
    assert!(router.cluster.calls("deliver") >= 2);
}

#[tokio::test]
async fn the_same_mail_sent_again_on_purpose_is_stored_again() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    for _ in 0..5 {
        assert!(client.mail("s@c.test", &["alice@example.test"], MESSAGE).await.starts_with("250 "));
    }
    assert_eq!(router.cluster.contents("alice@example.test").len(), 5);
}

#[tokio::test]
async fn the_same_mail_on_two_connections_at_once_is_two_messages() {
    let router = TestRouter::start().await;
    let (mut first, mut second) = (greeted(&router).await, greeted(&router).await);
    for client in [&mut first, &mut second] {
        client.envelope("s@c.test", &["alice@example.test"]).await;
        client.expect("DATA", "354 ").await;
        client.send(format!("{MESSAGE}.\r\n")).await;
    }
    // Neither says another word; both stay.
    assert!(first.reply().await.starts_with("250 "));
    assert!(second.reply().await.starts_with("250 "));
    assert_eq!(router.cluster.contents("alice@example.test").len(), 2);
}

/// How a client speaks, and how it goes.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Plain,
    Tls,
    /// Its end is a reset.
    Rude,
}

async fn greeted_in(manner: Manner, router: &TestRouter) -> Client {
    let mut client = match manner {
        Manner::Rude => Client::connect_rude(router.address(SMTP)).await,
        Manner::Plain | Manner::Tls => router.connect(SMTP).await,
    };
    client.line().await;
    client.expect("EHLO client.example.net", "250").await;
    if matches!(manner, Manner::Tls) {
        client.expect("STARTTLS", "220 ").await;
        client.start_tls().await;
        client.expect("EHLO client.example.net", "250").await;
    }
    client
}

/// Up to the final dot, and what goes with it in one packet; its answer is not read.
async fn send_to_alice(client: &mut Client, after: &str) {
    client.envelope("s@c.test", &["alice@example.test"]).await;
    client.expect("DATA", "354 ").await;
    client.send(format!("{MESSAGE}.\r\n{after}")).await;
}

#[tokio::test]
async fn a_client_that_has_its_250_and_drops_the_connection_may_send_the_same_again() {
    for manner in [Manner::Plain, Manner::Tls] {
        let router = TestRouter::start().await;
        for sent in 1..=3 {
            let mut client = greeted_in(manner, &router).await;
            let reply = client.mail("s@c.test", &["alice@example.test"], MESSAGE).await;
            assert!(reply.starts_with("250 "), "{reply}");
            drop(client);
            assert_eq!(router.cluster.contents("alice@example.test").len(), sent, "{manner:?}");
        }
    }
}

#[tokio::test]
async fn a_250_that_never_arrived_is_not_settled_so_the_retry_adds_no_copy() {
    for manner in [Manner::Plain, Manner::Tls, Manner::Rude] {
        for after in ["", "QUIT\r\n"] {
            // The sender goes at once, or when the 250 is there but not read.
            for late in [false, true] {
                let router = TestRouter::start().await;
                let mut client = greeted_in(manner, &router).await;
                send_to_alice(&mut client, after).await;
                if late {
                    let stored = |router: &TestRouter| router.router.metrics_text().contains("{result=\"stored\"} 1");
                    router.eventually("the 250 is written", stored).await;
                }
                drop(client);
                router.eventually("the message is stored", |router| router.cluster.calls("deliver") == 1).await;
                let mut client = greeted_in(manner, &router).await;
                let reply = client.mail("s@c.test", &["alice@example.test"], MESSAGE).await;
                assert!(reply.starts_with("250 "), "{reply}");
                let stored = router.cluster.contents("alice@example.test");
                assert_eq!(stored, [CONTENT], "{manner:?} {after:?} late {late}");
            }
        }
    }
}

#[tokio::test]
async fn a_quit_in_one_packet_with_the_message_is_settled_when_the_client_has_read_all() {
    for manner in [Manner::Plain, Manner::Tls] {
        let router = TestRouter::start().await;
        for sent in 1..=2 {
            let mut client = greeted_in(manner, &router).await;
            send_to_alice(&mut client, "QUIT\r\n").await;
            assert!(client.reply().await.starts_with("250 "));
            assert!(client.reply().await.starts_with("221 "));
            drop(client);
            assert_eq!(router.cluster.contents("alice@example.test").len(), sent, "{manner:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_only_ends_its_own_side_has_its_250_and_is_let_go() {
    let router = TestRouter::start().await;
    for sent in 1..=2 {
        let mut client = greeted(&router).await;
        send_to_alice(&mut client, "").await;
        client.shut_down().await;
        assert!(client.rest().await.starts_with("250 "));
        assert_eq!(router.cluster.contents("alice@example.test").len(), sent);
    }
}

#[tokio::test]
async fn what_senders_know_is_settled_before_the_router_stops() {
    let router = TestRouter::start().await;
    let mut quit = greeted(&router).await;
    assert!(quit.mail("s@c.test", &["alice@example.test"], MESSAGE).await.starts_with("250 "));
    quit.expect("QUIT", "221 ").await;
    let mut dropped = greeted(&router).await;
    assert!(dropped.mail("s@c.test", &["bob@example.test"], MESSAGE).await.starts_with("250 "));
    drop(dropped);
    // Told to try again elsewhere, amid the second in which it may have its 250 or not.
    let mut told = greeted(&router).await;
    assert!(told.mail("s@c.test", &["carol@example.test"], MESSAGE).await.starts_with("250 "));
    let stopped = tokio::spawn(router.router.shutdown());
    assert!(told.reply().await.starts_with("421 "));
    drop(told);
    tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
    assert_eq!(router.cluster.state.lock().fingerprints.len(), 0);
}

#[tokio::test]
async fn a_recipient_whose_shard_has_no_leader_is_deferred_before_the_message() {
    let router = TestRouter::with(|settings| settings.limits.operation_ms = OPERATION_MS).await;
    let mut client = greeted(&router).await;
    router.cluster.state.lock().down.extend([1, 2, 3]);
    // Nobody knows yet: a message finds out, and probes go on.
    let reply = client.mail("s@c.test", &["alice@example.test"], MESSAGE).await;
    assert!(reply.starts_with("451 4.3.0"), "{reply}");
    client.expect("MAIL FROM:<s@c.test>", "250 ").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let reply = client.ask("RCPT TO:<alice@example.test>").await;
        if reply.starts_with("451 4.3.0") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{reply}");
        client.expect("RSET", "250 ").await;
        client.expect("MAIL FROM:<s@c.test>", "250 ").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // An unknown one is still told so.
    client.expect("RCPT TO:<nobody@example.test>", "550 5.1.1").await;
    router.cluster.state.lock().down.clear();
    loop {
        if client.ask("RCPT TO:<alice@example.test>").await.starts_with("250 ") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it never came back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_connection_dropped_before_the_dot_stores_nothing() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    client.envelope("s@c.test", &["alice@example.test"]).await;
    client.expect("DATA", "354 ").await;
    client.send("half a message\r\n").await;
    drop(client);
    greeted(&router).await.expect("NOOP", "250 ").await;
    assert_eq!((router.cluster.calls("deliver"), router.cluster.contents("alice@example.test").len()), (0, 0));
}

#[tokio::test]
async fn over_quota_and_vanished_recipients_are_answered_by_the_table() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    let (alice, carol) = (router.cluster.id("alice@example.test"), router.cluster.id("carol@example.test"));
    router.cluster.state.lock().over_quota.insert(alice);
    let reply = client.mail("s@c.test", &["alice@example.test", "bob@example.test"], MESSAGE).await;
    assert!(reply.starts_with("452 4.2.2"), "{reply}");
    router.cluster.state.lock().accounts.remove(&carol);
    let reply = client.mail("s@c.test", &["carol@example.test"], "gone\r\n").await;
    assert!(reply.starts_with("550 5.1.1"), "{reply}");
    // Among others the retry's RCPT is to tell which.
    let reply = client.mail("s@c.test", &["carol@example.test", "bob@example.test"], "gone\r\n").await;
    assert!(reply.starts_with("451 4.3.0"), "{reply}");
}

#[tokio::test]
async fn smuggled_commands_are_part_of_one_message_or_refused() {
    let router = TestRouter::start().await;
    for mark in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n\0.\r\n", "\r\r\n.\r\r\n"] {
        let mut client = greeted(&router).await;
        client.envelope("s@c.test", &["alice@example.test"]).await;
        client.expect("DATA", "354 ").await;
        client
            .send(format!("a{mark}MAIL FROM:<evil@c.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nb\r\n.\r\n"))
            .await;
        assert!(client.reply().await.starts_with("554 5.6.0"));
        client.expect("NOOP", "250 2.0.0 ok").await;
    }
    assert_eq!(router.cluster.calls("deliver"), 0);
}

#[tokio::test]
async fn commands_injected_before_tls_are_not_executed_after_it() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    client.send("STARTTLS\r\nMAIL FROM:<evil@c.test>\r\nRCPT TO:<alice@example.test>\r\n").await;
    assert!(client.reply().await.starts_with("220 "));
    client.start_tls().await;
    client.expect("MAIL FROM:<s@c.test>", "503 5.5.1").await;
    client.expect("EHLO client.example.net", "250-mx.example.test|").await;
    client.expect("RCPT TO:<alice@example.test>", "503 5.5.1").await;
    client.expect("STARTTLS", "503 ").await;
    assert!(client.mail("s@c.test", &["alice@example.test"], MESSAGE).await.starts_with("250 "));
    let body = String::from_utf8(router.cluster.inbox("alice@example.test").remove(0).body).unwrap();
    assert!(unfolded(&body).contains(" with ESMTPS id "), "{body}");
}

#[tokio::test]
async fn an_oversize_message_is_refused_and_the_connection_lives() {
    let limits = Limits { message_octets_max: 200_000, ..Limits::default() };
    let router = TestRouter::with(|settings| settings.limits = limits).await;
    let mut client = greeted(&router).await;
    client.expect("MAIL FROM:<s@c.test> SIZE=200001", "552 5.3.4").await;
    let line = "x".repeat(998) + "\r\n";
    let reply = client.mail("s@c.test", &["alice@example.test"], &line.repeat(300)).await;
    assert!(reply.starts_with("552 5.3.4"), "{reply}");
    let reply = client.mail("s@c.test", &["alice@example.test"], &line.repeat(199)).await;
    assert!(reply.starts_with("250 "), "{reply}");
    assert_eq!(router.cluster.contents("alice@example.test"), [line.repeat(199)]);
}

#[tokio::test]
async fn a_large_message_goes_by_way_of_a_file_unchanged() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    let message: String = (0..60_000).map(|i| format!("line {i} of a message that does not fit\r\n")).collect();
    assert!(message.len() > 2 * 1024 * 1024);
    let reply = client.mail("s@c.test", &["team@example.test"], &message).await;
    assert!(reply.starts_with("250 "), "{reply}");
    assert!(router.cluster.contents("bob@example.test") == [message]);
}

#[tokio::test]
async fn bdat_chunks_make_one_message_of_any_bytes() {
    let router = TestRouter::start().await;
    let mut client = greeted(&router).await;
    client
        .send("MAIL FROM:<s@c.test>\r\nRCPT TO:<alice@example.test>\r\nBDAT 6\r\na\n.\r\nbBDAT 3 LAST\r\n\r.\n")
        .await;
    for start in ["250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0 stored as"] {
        let reply = client.reply().await;
        assert!(reply.starts_with(start), "{reply}");
    }
    assert_eq!(router.cluster.contents("alice@example.test"), ["a\n.\r\nb\r.\n"]);
}

#[tokio::test]
async fn a_client_that_talks_before_the_greeting_is_turned_away() {
    let router = TestRouter::with(|settings| settings.limits.smtp_greeting_delay_ms = 2_000).await;
    let mut client = router.connect(SMTP).await;
    client.send("EHLO early.example.net\r\n").await;
    let all = client.rest().await;
    assert!(all.starts_with("554 ") && all.lines().count() == 1, "{all}");
    let mut patient = router.client(SMTP).await;
    patient.expect("NOOP", "250 ").await;
}

#[tokio::test]
async fn a_tls_hello_or_http_on_the_plain_port_ends_with_words() {
    let router = TestRouter::start().await;
    for (hello, start) in [(&b"\x16\x03\x01\x02\x00\x01"[..], "554 "), (b"GET / HTTP/1.1\r\n\r\n", "554 ")] {
        let mut client = router.client(SMTP).await;
        client.send(hello).await;
        let all = client.rest().await;
        assert!(all.starts_with(start), "{all}");
    }
}

#[tokio::test]
async fn submission_greets_and_authenticates_but_takes_no_mail_yet() {
    let router = TestRouter::start().await;
    let mut client = router.client(SUBMISSION).await;
    client.expect("EHLO client.example.net", "250-mx.example.test|").await;
    client.expect("AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABtYWlscmluZy1kZW1v", "538 ").await;
    client.expect("MAIL FROM:<alice@example.test>", "530 5.7.0").await;
    client.expect("STARTTLS", "220 ").await;
    client.start_tls().await;
    let reply = client.ask("EHLO client.example.net").await;
    assert!(reply.contains("250-AUTH PLAIN LOGIN") || reply.contains("250 AUTH PLAIN LOGIN"), "{reply}");
    // \0alice@example.test\0wrong
    client.expect("AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdAB3cm9uZw==", "535 5.7.8").await;
    // \0alice@example.test\0mailring-demo
    client.expect("AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABtYWlscmluZy1kZW1v", "235 2.7.0").await;
    client.expect("MAIL FROM:<alice@example.test>", "451 4.3.2").await;
    client.expect("RCPT TO:<bob@example.test>", "503 ").await;
    assert_eq!(router.cluster.calls("deliver"), 0);
}

#[tokio::test]
async fn before_the_directory_is_known_mail_is_deferred() {
    let cluster = crate::support::cluster::TestCluster::new();
    cluster.state.lock().down.extend([1, 2, 3]);
    let dir = tempfile::tempdir().unwrap();
    let settings = crate::support::router::settings(dir.path());
    let router = router::Router::start(settings, cluster.cluster()).await.unwrap();
    assert!(!router.ready());
    let mut client = Client::connect(router.local_addresses()[SMTP]).await;
    client.line().await;
    client.expect("EHLO c.test", "250").await;
    client.expect("MAIL FROM:<s@c.test>", "250 ").await;
    client.expect("RCPT TO:<alice@example.test>", "451 4.3.0").await;
    client.expect("RCPT TO:<alice@elsewhere.test>", "451 4.3.0").await;
    client.expect("RCPT TO:<postmaster>", "451 4.3.0").await;
    cluster.state.lock().down.clear();
    router.cluster().wait_ready().await;
    client.expect("RCPT TO:<alice@example.test>", "250 ").await;
}
