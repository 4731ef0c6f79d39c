//! Greeting, STARTTLS, LOGIN, AUTHENTICATE, and how a session ends.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto::wire::directory_change::Change;
use types::MailError;

use super::super::run;
use super::node::{ACCOUNT, account_record};
use super::transcript::{OPEN, PATIENCE, STARTTLS, Server, play};

fn plain(acting_as: &str, user: &str, password: &str) -> String {
    STANDARD.encode(format!("{acting_as}\0{user}\0{password}"))
}

#[tokio::test]
async fn passwords_wait_for_tls() {
    let server = Server::start().await;
    let mut client = [server.connect(STARTTLS).await];
    play(
        &mut client,
        "
        S: * OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE STARTTLS LOGINDISABLED] mailring ready
        C: a LOGIN alice@example.test mailring-demo
        S: a NO [PRIVACYREQUIRED] <..>
        C: b AUTHENTICATE PLAIN
        S: b NO [PRIVACYREQUIRED] <..>
        C: c SELECT INBOX
        S: c BAD <..>
        C: d CAPABILITY
        S: * CAPABILITY IMAP4rev1 <..>
        S: d OK <..>
        ",
    )
    .await;
}

#[tokio::test]
async fn nothing_sent_in_clear_after_starttls_is_executed() {
    let server = Server::start().await;
    let mut client = server.connect(STARTTLS).await;
    client.line().await;
    client.send("a STARTTLS\r\nb NOOP\r\n").await;
    assert!(client.line().await.starts_with("a OK "));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let files = server.router.context.settings.tls.clone().unwrap();
    let pem = std::fs::read(files.certificate).unwrap();
    roots.add(rustls_pki_types::pem::PemObject::from_pem_slice(&pem).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from("imap.example.test").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect(name, client.stream).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    tls.write_all(b"c STARTTLS\r\nd LOGIN alice@example.test mailring-demo\r\ne LOGOUT\r\n").await.unwrap();
    let mut text = String::new();
    // The server closes without a reset; how it parts from TLS is not the matter here.
    let _ = tls.read_to_string(&mut text).await;
    assert!(text.starts_with("c BAD "), "{text}");
    assert!(text.contains("d OK [CAPABILITY ") && text.contains("e OK "), "{text}");
}

#[tokio::test]
async fn wrong_passwords_and_unknown_accounts_are_answered_alike() {
    let server = Server::start().await;
    let mut answers = Vec::new();
    for command in [
        "LOGIN alice@example.test wrong".to_owned(),
        "LOGIN nobody@example.test mailring-demo".to_owned(),
        "LOGIN nonsense \"\"".to_owned(),
        format!("AUTHENTICATE PLAIN {}", plain("", "alice@example.test", "wrong")),
        format!("AUTHENTICATE PLAIN {}", plain("bob@example.test", "alice@example.test", "mailring-demo")),
    ] {
        let mut client = server.connect(OPEN).await;
        client.line().await;
        answers.extend(client.command(&command).await);
    }
    answers.dedup();
    assert_eq!(answers, ["x NO [AUTHENTICATIONFAILED] wrong name or password"]);
}

#[tokio::test]
async fn authenticate_takes_plain_and_login_with_and_without_initial_response() {
    let server = Server::start().await;
    let good = plain("", "alice@example.test", "mailring-demo");
    let (user, password) = (STANDARD.encode("alice@example.test"), STANDARD.encode("mailring-demo"));
    for transcript in [
        format!("C: a AUTHENTICATE PLAIN {good}\nS: a OK [CAPABILITY <..>"),
        format!("C: a AUTHENTICATE PLAIN\nS: + \nC: {good}\nS: a OK [CAPABILITY <..> APPENDLIMIT=52428800] <..>"),
        format!(
            "C: a AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC: {user}\nS: + UGFzc3dvcmQ6\nC: {password}\nS: a OK <..>"
        ),
        "C: a AUTHENTICATE PLAIN\nS: + \nC: *\nS: a BAD <..>".to_owned(),
        "C: a AUTHENTICATE PLAIN\nS: + \nC: ???\nS: a BAD <..>".to_owned(),
        "C: a AUTHENTICATE PLAIN AAAA\nS: a BAD <..>".to_owned(),
        "C: a AUTHENTICATE GSSAPI\nS: a NO <..>".to_owned(),
    ] {
        let mut clients = [server.connect(OPEN).await];
        clients[0].line().await;
        play(&mut clients, &transcript).await;
        play(&mut clients, "C: z NOOP\nS: z OK <..>").await;
    }
}

#[tokio::test]
async fn after_login_nobody_logs_in_again() {
    Server::start()
        .await
        .play(
            "
            C: a LOGIN alice@example.test mailring-demo
            S: a BAD <..>
            C: b STARTTLS
            S: b BAD <..>
            C: c FETCH 1 FLAGS
            S: c BAD <..>
            C: d ID NIL
            S: * ID (\"name\" \"mailring\" \"version\" <..>)
            S: d OK <..>
            C: e ENABLE FOO
            S: * ENABLED
            S: e OK <..>
            C: f ENABLE CONDSTORE
            S: * ENABLED CONDSTORE
            S: f OK <..>
            C: g NAMESPACE
            S: * NAMESPACE ((\"\" \"/\")) NIL NIL
            S: g OK <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn before_login_the_version_is_nobodys_business() {
    let server = Server::start().await;
    let mut clients = [server.connect(OPEN).await];
    clients[0].line().await;
    play(&mut clients, "C: a ID (\"name\" \"x\")\nS: * ID (\"name\" \"mailring\")\nS: a OK <..>").await;
}

#[tokio::test]
async fn after_logout_nothing_is_executed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send("a LOGOUT\r\nb CREATE after\r\n").await;
    assert!(client.line().await.starts_with("* BYE "));
    assert!(client.line().await.starts_with("a OK "));
    assert_eq!(client.rest().await, [""; 0]);
    assert_eq!(server.node.calls("create_mailbox"), 0);
}

#[tokio::test]
async fn thirty_bad_commands_end_the_connection_and_fewer_do_not() {
    let server = Server::start().await;
    let mut client = server.connect(OPEN).await;
    client.line().await;
    client.send("a FOO\r\n".repeat(29)).await;
    for _ in 0..29 {
        assert!(client.line().await.starts_with("a BAD "));
    }
    // One that is right begins the count again.
    assert_eq!(client.command("NOOP").await.len(), 1);
    client.send("\r\n".repeat(31)).await;
    let rest = client.rest().await;
    assert_eq!(rest.len(), 31);
    assert!(rest[..30].iter().all(|line| line.starts_with("* BAD ")) && rest[30].starts_with("* BYE "), "{rest:?}");
}

#[tokio::test]
async fn silent_clients_are_logged_out() {
    let no_login = Server::with(|settings| settings.limits.login_s = 1).await;
    let mut before = no_login.connect(OPEN).await;
    before.line().await;
    let server = Server::with(|settings| settings.limits.imap_idle_s = 2).await;
    let mut after = server.client().await;
    let mut idle = server.connect(OPEN).await;
    idle.line().await;
    // In one packet, so that it is in time.
    idle.send("l LOGIN alice@example.test mailring-demo\r\na IDLE\r\n").await;
    assert!(idle.line().await.starts_with("l OK "));
    assert_eq!(idle.line().await, "+ idling");
    for client in [&mut before, &mut after, &mut idle] {
        let rest = client.rest().await;
        assert!(rest.len() == 1 && rest[0].starts_with("* BYE "), "{rest:?}");
    }
}

#[tokio::test]
async fn a_shard_without_leader_is_no_reason_to_end() {
    let server = Server::start().await;
    let mut client = server.connect(OPEN).await;
    client.line().await;
    server.node.fail("open_account", MailError::Busy);
    assert!(client.command("LOGIN alice@example.test mailring-demo").await[0].starts_with("x NO [UNAVAILABLE] "));
    assert!(client.command("LOGIN alice@example.test mailring-demo").await[0].starts_with("x OK "));
    for (operation, command) in [
        ("select", "SELECT INBOX"),
        ("append", "APPEND INBOX {1+}\r\nx"),
        ("mailboxes", "LIST \"\" *"),
        ("status", "STATUS INBOX (MESSAGES)"),
    ] {
        server.node.fail(operation, MailError::Deadline);
        // A read that fails so is tried again, and the client sees nothing of it.
        let answer = client.command(command).await;
        let last = answer.last().unwrap();
        assert!(last.starts_with("x NO [UNAVAILABLE] ") || last.starts_with("x OK "), "{last}");
        server.node.fail(operation, MailError::Busy);
        assert!(client.command(command).await.last().unwrap().starts_with("x NO [UNAVAILABLE] "));
        let answer = client.command(command).await;
        assert!(answer.last().unwrap().starts_with("x OK "), "{answer:?}");
    }
}

#[tokio::test]
async fn when_the_router_stops_clients_are_told() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let stopped = tokio::spawn(server.router.shutdown());
    let rest = client.rest().await;
    assert!(rest.len() == 1 && rest[0].starts_with("* BYE [UNAVAILABLE] "), "{rest:?}");
    drop(client);
    tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
}

#[test]
fn a_session_that_waits_takes_little_memory() {
    fn size<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    let octets = size(run);
    // Some 2 KiB; what it might do lies in boxes.
    assert!(octets < 3 * 1_024, "{octets}");
}

#[tokio::test]
async fn sessions_end_when_their_account_is_disabled_or_removed() {
    const ALICE: &str = "alice@example.test";
    for ending in [Change::Account(account_record(ACCOUNT, ALICE, false)), Change::AccountRemoved(ALICE.to_owned())] {
        let server = Server::start().await;
        let mut clients = [server.client().await, server.client().await, server.client().await];
        for client in &mut clients[1..] {
            client.command("SELECT INBOX").await;
        }
        clients[2].send("i IDLE\r\n").await;
        assert_eq!(clients[2].line().await, "+ idling");
        let mut stranger = server.connect(OPEN).await;
        stranger.line().await;
        server.node.administered(2, Change::Account(account_record(9, "bob@example.test", false)));
        server.router.cluster().revisions().wait_for(|revision| *revision == Some(2)).await.unwrap();
        assert_eq!(clients[0].command("NOOP").await.len(), 1, "another account's end");
        server.node.administered(3, ending);
        // They are silent, and are told at once.
        for client in &mut clients {
            assert_eq!(client.rest().await, ["* BYE account is disabled"]);
        }
        assert!(stranger.command("NOOP").await[0].starts_with("x OK "));
    }
}

#[tokio::test]
async fn commands_that_wait_behind_the_end_of_an_account_are_not_executed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    // The message is waited for, and taken; what comes after it is not.
    client.send("a APPEND INBOX {5}\r\n").await;
    assert!(client.line().await.starts_with("+ "));
    server.node.administered(2, Change::Account(account_record(ACCOUNT, "alice@example.test", false)));
    server.router.cluster().revisions().wait_for(|revision| *revision == Some(2)).await.unwrap();
    client.send("hello\r\nb CREATE New\r\n").await;
    let lines = client.rest().await;
    assert!(lines.len() == 2 && lines[0].starts_with("a OK ") && lines[1].starts_with("* BYE "), "{lines:?}");
    assert_eq!(server.node.calls("create_mailbox"), 0);
}
