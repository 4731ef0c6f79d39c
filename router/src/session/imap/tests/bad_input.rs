//! What no client should send, and the answers that it gets all the same.

use super::transcript::{OPEN, Server, play};

#[tokio::test]
async fn bad_syntax_is_bad_and_the_session_goes_on() {
    let server = Server::start().await;
    server
        .play(
            "
            C: 
            S: * BAD <..>
            C: a
            S: <..> BAD <..>
            C: a+ NOOP
            S: * BAD <..>
            C: a FOO
            S: a BAD <..>
            C: a SELECT \"unterminated
            S: a BAD <..>
            C: a SELECT {abc}
            S: a BAD <..>
            C: a SELECT {-1}
            S: a BAD <..>
            C: z NOOP
            S: z OK <..>
            C: a SELECT INBOX
            S: * FLAGS <..>
            S: * OK <..>
            S: * 0 EXISTS
            S: * 0 RECENT
            S: * OK <..>
            S: * OK <..>
            S: * OK <..>
            S: a OK <..>
            C: a FETCH 0 FLAGS
            S: a BAD <..>
            C: a FETCH 4294967296 FLAGS
            S: a BAD <..>
            C: a FETCH 1:* FLAGS
            S: a BAD <..>
            C: a UID FETCH 1:* FLAGS
            S: a OK <..>
            C: a FETCH 1 BODY[MIME]
            S: a BAD <..>
            C: a FETCH 1 BODY[]<0.0>
            S: a BAD <..>
            C: a SEARCH SINCE 31-Feb-2024
            S: a BAD <..>
            C: a IDLE x
            S: a BAD <..>
            C: z NOOP
            S: z OK <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn names_that_leave_the_account_or_cannot_be_written_are_refused() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for name in
        ["../../x", "/etc/x", "\"\"", "INBOX", "a&b", "&Jjo!", "&AGE-", "\"\u{fc}\"", &"x".repeat(10_000), "a/./b"]
    {
        let answer = client.command(&format!("CREATE {name}")).await;
        assert!(answer[0].starts_with("x NO ") || answer[0].starts_with("x BAD "), "{name}: {answer:?}");
    }
    client.send("y CREATE {4}\r\n").await;
    assert!(client.line().await.starts_with("+ "));
    client.send("a\r\nb\r\n").await;
    let answer = client.line().await;
    assert!(answer.starts_with("y NO ") || answer.starts_with("y BAD "), "{answer}");
    assert_eq!(server.node.state().boxes.len(), 4);
}

#[tokio::test]
async fn bare_line_feeds_and_nul_execute_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send("a CREATE one\nb CREATE \"t\0wo\"\r\nc NOOP\r\n").await;
    for expected in ["a BAD ", "b BAD ", "c OK "] {
        let line = client.line().await;
        assert!(line.starts_with(expected), "{line}");
    }
    assert_eq!(server.node.calls("create_mailbox"), 0);
}

#[tokio::test]
async fn before_login_no_client_gets_far_with_size() {
    let server = Server::start().await;
    let long = "x".repeat(1 << 20);
    let many = format!("a LOGIN{}\r\n", " {1+}\r\nx".repeat(2_000));
    for input in [
        "a LOGIN {4294967296}\r\n".to_owned(),
        "a LOGIN {18446744073709551616}\r\n".to_owned(),
        "a LOGIN {1048576}\r\n".to_owned(),
        format!("a LOGIN {{1048576+}}\r\n{long}"),
        format!("a LOGIN {long}\r\n"),
        many,
    ] {
        let mut client = server.connect(OPEN).await;
        client.line().await;
        client.send(input).await;
        let line = client.line().await;
        assert!(["a BAD ", "a NO ", "* BYE "].iter().any(|start| line.starts_with(start)), "{line:?}");
    }
}

#[tokio::test]
async fn deep_and_broad_commands_are_answered() {
    let server = Server::start().await;
    server.node.deliver_text("x");
    let nots = format!("SEARCH {}ALL", "NOT ".repeat(5_000));
    let parentheses = format!("SEARCH {}ALL{}", "(".repeat(50_000), ")".repeat(50_000));
    let long = format!("SEARCH TEXT \"{}\"", "x".repeat(100 << 10));
    let set = (1..9_000).map(|n| (n * 2).to_string()).collect::<Vec<_>>().join(",");
    let nested = format!("SEARCH {}ALL{}", "NOT (OR ALL ".repeat(45), ")".repeat(45));
    let ors = format!("SEARCH {}ALL", "OR ALL ".repeat(90));
    for command in [
        nots,
        parentheses,
        long,
        format!("UID FETCH {set} FLAGS"),
        format!("LIST \"\" {}", "*%".repeat(500)),
        format!("ID (\"name\" \"{}\")", "x".repeat(5_000)),
        nested,
        ors,
    ] {
        let mut client = server.client().await;
        client.command("SELECT INBOX").await;
        let answer = client.command(&command).await;
        let last = answer.iter().rfind(|line| !line.starts_with('(')).unwrap();
        assert!(last.starts_with("x ") || last.starts_with("* BYE "), "{last}");
    }
}

#[tokio::test]
async fn tls_and_http_on_the_plain_port_end_the_connection() {
    let server = Server::start().await;
    for input in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut client = server.connect(OPEN).await;
        client.line().await;
        client.send(input).await;
        let rest = client.rest().await;
        assert!(rest.len() == 1 && rest[0].starts_with("* BYE "), "{rest:?}");
    }
}

#[tokio::test]
async fn a_client_that_vanishes_harms_nobody() {
    let server = Server::start().await;
    for input in ["a LOGIN {100", "a IDLE\r\n", "a SELECT INBOX\r\nb IDLE\r\nDO"] {
        let mut client = server.client().await;
        client.send(input).await;
    }
    let mut client = [server.client().await];
    play(&mut client, "C: a NOOP\nS: a OK <..>").await;
}
