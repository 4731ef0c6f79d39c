//! Bad IMAP input over a running cluster: each row gets a clear answer, a new connection is greeted at once, memory
//! stays bounded, and nothing outside the account is touched.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, LineClient, PASSWORD, Row, eventually, play_rows};

/// The next tagged answer, BYE or `+`; other untagged ones are passed over. Without its tag, `* BAD` as `BAD`.
fn answer(client: &mut LineClient) -> Result<String> {
    loop {
        let line = String::from_utf8_lossy(&client.line_bytes()?).into_owned();
        if let Some(untagged) = line.strip_prefix("* ") {
            if untagged.starts_with("BYE") || untagged.starts_with("BAD") {
                return Ok(untagged.to_owned());
            }
            if let Some(octets) = line.strip_suffix('}').and_then(|line| line.rsplit('{').next()?.parse().ok()) {
                client.exact(octets)?;
            }
            continue;
        }
        if line.starts_with('+') {
            return Ok(line);
        }
        // What follows a literal of an untagged answer has no tag either.
        if let Some((tag, rest)) = line.split_once(' ')
            && tag.starts_with('t')
        {
            return Ok(rest.to_owned());
        }
    }
}

fn before_login() -> Vec<Row> {
    let bytes = |name: &str, bytes: &[u8], wanted: &'static str| Row::bytes(name, vec![(bytes.to_vec(), wanted)]);
    let tiny = "{1+}\r\nx ".repeat(2_000);
    vec![
        Row::lines("empty line", &[("", "BAD"), ("t NOOP", "OK")]),
        Row::lines("tag only", &[("t", "BAD")]),
        Row::lines("tag with plus", &[("t+ NOOP", "BAD")]),
        Row::lines("unknown command", &[("t FROB", "BAD"), ("t NOOP", "OK")]),
        Row::lines("SELECT before login", &[("t SELECT INBOX", "BAD|NO")]),
        Row::lines("LOGIN with one argument", &[("t LOGIN x", "BAD")]),
        Row::lines("unterminated quote", &[("t LOGIN \"x", "BAD")]),
        bytes("NUL in a quoted string", b"t LOGIN \"a\0b\" c\r\n", "BAD"),
        Row::lines("literal {abc}", &[("t LOGIN {abc}", "BAD")]),
        Row::lines("literal {-1}", &[("t LOGIN {-1}", "BAD")]),
        Row::lines("literal of 4 GiB", &[("t LOGIN {4294967295}", "BAD|NO|BYE")]),
        Row::lines("literal of 2^64", &[("t LOGIN {18446744073709551616}", "BAD|NO|BYE")]),
        Row::lines("literal of 1 MiB", &[("t LOGIN {1048576}", "BAD|NO|BYE")]),
        Row::lines("non-synchronising literal of 4 GiB", &[("t LOGIN {4294967295+}", "BAD|NO|BYE")]),
        bytes("line of 1 MiB", format!("t LOGIN {} x\r\n", "u".repeat(1 << 20)).as_bytes(), "BAD|NO|BYE|."),
        bytes("2,000 tiny literals", format!("t LOGIN {tiny}\r\n").as_bytes(), "BAD|NO|BYE|."),
        bytes("bare LF", b"t NOOP\nt NOOP\r\n", "BAD|BYE|."),
        bytes("HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "BAD|BYE|."),
        bytes(
            "TLS hello",
            &[&b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"[..], &[7; 160], b"\r\n"].concat(),
            "BAD|BYE|.",
        ),
        Row::lines("ID of 5 KiB", &[(&format!("t ID (\"x\" \"{}\")", "y".repeat(5_000)), "BAD|OK")]),
        Row::lines("unknown mechanism", &[("t AUTHENTICATE FROB", "NO")]),
        Row::lines("bad base64", &[("t AUTHENTICATE PLAIN", "+"), ("!!!", "BAD|NO")]),
        Row::lines("cancelled", &[("t AUTHENTICATE PLAIN", "+"), ("*", "BAD")]),
        Row::lines("wrong password", &[("t LOGIN ann@example.test wrong", "NO [AUTHENTICATIONFAILED]")]),
        Row::lines("unknown account", &[("t LOGIN nobody@example.test wrong", "NO [AUTHENTICATIONFAILED]")]),
        Row::lines("LOGOUT, then more", &[("t LOGOUT", "BYE"), ("t NOOP", "OK LOGOUT|OK|.")]),
    ]
}

fn after_login() -> Vec<Row> {
    let one =
        |name: &str, command: &str, wanted: &'static str| Row::lines(name, &[(command, wanted), ("t NOOP", "OK")]);
    let append = |name: &str, octets: &str, wanted: &'static str| {
        Row::lines(name, &[(&format!("t APPEND INBOX {octets}"), wanted)])
    };
    let deep = |open: &str, times: usize, close: &str, inner: &str| {
        format!("t SEARCH {}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let set: String = (1..9_000).map(|uid| format!("{},", uid * 2)).collect::<String>() + "20000";
    let mut rows = vec![
        Row::lines("LOGIN after login", &[("t LOGIN a b", "BAD")]),
        Row::lines("STARTTLS after login", &[("t STARTTLS", "BAD")]),
        Row::lines("FETCH with nothing selected", &[("t FETCH 1 FLAGS", "BAD|NO")]),
        one("CREATE ../../x", "t CREATE ../../x", "NO|BAD"),
        one("CREATE /etc/x", "t CREATE /etc/x", "NO|BAD"),
        one("CREATE empty", "t CREATE \"\"", "NO|BAD"),
        one("CREATE INBOX", "t CREATE INBOX", "NO|BAD"),
        one("bad UTF-7 a&b", "t CREATE a&b", "NO|BAD"),
        one("bad UTF-7 &Jjo!", "t CREATE &Jjo!", "NO|BAD"),
        one("bad UTF-7 &AGE-", "t CREATE &AGE-", "NO|BAD"),
        Row::bytes("raw 8-bit name", vec![(b"t CREATE \"\xc3\xa9\"\r\n".to_vec(), "NO|BAD")]),
        Row::bytes("CR LF in a name", vec![(b"t CREATE {4+}\r\na\r\nb\r\n".to_vec(), "NO|BAD")]),
        Row::bytes("NUL in a name", vec![(b"t CREATE {3+}\r\na\0b\r\n".to_vec(), "NO|BAD")]),
        one("name of 10,000 characters", &format!("t CREATE {}", "n".repeat(10_000)), "NO|BAD"),
        one("DELETE INBOX", "t DELETE INBOX", "NO"),
        one("DELETE of a missing one", "t DELETE missing", "NO"),
        one("RENAME of a missing one", "t RENAME missing other", "NO"),
        one("ENABLE FOO", "t ENABLE FOO", "OK"),
        one("LIST of 1,000 wildcards", &format!("t LIST \"\" {}", "*%".repeat(500)), "OK|BAD|NO"),
        append("APPEND of zero octets", "{0+}\r\n", "NO|BAD"),
        append("APPEND over the limit", "{99999999999}", "NO [TOOBIG]|BAD"),
        Row::bytes("NUL in APPEND", vec![(b"t APPEND INBOX {3+}\r\na\0b\r\n".to_vec(), "NO|BAD")]),
        Row::bytes(
            "APPEND to a missing mailbox",
            vec![(b"t APPEND missing {3+}\r\nabc\r\n".to_vec(), "NO [TRYCREATE]")],
        ),
        Row::lines("IDLE followed by garbage", &[("t IDLE", "+"), ("FROB", "BAD|.")]),
    ];
    let selected =
        |name: &str, command: &str, wanted: &'static str| one(name, command, wanted).after(&[("t SELECT INBOX", "OK")]);
    // BYE is an answer to these.
    let bounded = |name: &str, command: &str, wanted: &'static str| {
        Row::lines(name, &[(command, wanted)]).after(&[("t SELECT INBOX", "OK")])
    };
    rows.extend([
        selected("sequence 0", "t FETCH 0 FLAGS", "BAD"),
        selected("sequence 2^32", "t FETCH 4294967296 FLAGS", "BAD"),
        selected("past the end", "t FETCH 99 FLAGS", "BAD|NO|OK"),
        selected("UID past the end", "t UID FETCH 99 FLAGS", "OK"),
        selected("*:1", "t FETCH *:1 FLAGS", "OK"),
        selected("BODY[99.99]", "t FETCH 1 BODY.PEEK[99.99]", "OK"),
        selected("BODY[MIME]", "t FETCH 1 BODY.PEEK[MIME]", "BAD"),
        selected("<0.0>", "t FETCH 1 BODY.PEEK[]<0.0>", "BAD"),
        selected("partial past the end", "t FETCH 1 BODY.PEEK[]<99999.10>", "OK"),
        selected("unknown charset", "t SEARCH CHARSET X-FROB TEXT x", "NO [BADCHARSET"),
        selected("bad date", "t SEARCH BEFORE 31-Feb-2026", "BAD"),
        selected("bad month", "t SEARCH BEFORE 1-Foo-2026", "BAD"),
        selected("STORE \\Recent", "t STORE 1 +FLAGS (\\Recent)", "BAD|NO"),
        selected("STORE \\Foo", "t STORE 1 +FLAGS (\\Foo)", "BAD|NO"),
        selected("COPY to a missing mailbox", "t COPY 1 missing", "NO [TRYCREATE]"),
        selected("CHANGEDSINCE 2^64", "t FETCH 1 FLAGS (CHANGEDSINCE 18446744073709551616)", "BAD"),
        bounded("SEARCH of 100 KiB", &format!("t SEARCH TEXT \"{}\"", "x".repeat(100 * 1024)), "OK|BAD|NO|BYE|."),
        bounded("50,000 parentheses", &deep("(", 50_000, ")", "ALL"), "OK|BAD|NO|BYE|."),
        bounded("5,000 NOT", &deep("NOT ", 5_000, "", "ALL"), "OK|BAD|NO|BYE|."),
        bounded("a set of 9,000 items", &format!("t UID FETCH {set} FLAGS"), "OK|BAD|NO|BYE|."),
        one("STORE in EXAMINE", "t STORE 1 +FLAGS (\\Seen)", "NO").after(&[("t EXAMINE INBOX", "OK")]),
        one("EXPUNGE in EXAMINE", "t EXPUNGE", "NO").after(&[("t EXAMINE INBOX", "OK")]),
    ]);
    let login = format!("t LOGIN ann@example.test {PASSWORD}");
    rows.into_iter().map(|row| row.after(&[(&login, "OK")])).collect()
}

#[test]
fn every_row_of_bad_imap_gets_its_answer() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann", "ben"])?;
    let (code, text) = cluster.smtp_client()?.deliver("s@x.test", &["ann@example.test"], b"Subject: x\r\n\r\ny\r\n")?;
    ensure!(code == 250, "{code} {text}");
    let began = Instant::now();
    play_rows(cluster.imap(0), &before_login(), "* OK", answer)?;
    play_rows(cluster.imap(0), &after_login(), "* OK", answer)?;
    println!("all rows took {:?}", began.elapsed());
    let mut ann = cluster.imap_client("ann@example.test")?;
    ensure!(ann.select("INBOX")? == 1, "INBOX has changed");
    thirty_bad_commands_end_the_connection(&cluster)?;
    a_literal_that_breaks_off_stores_nothing(&cluster)?;
    uid_validity_is_new_after_delete_and_create(&cluster)?;
    announced_literals_cost_little(&cluster)?;
    ensure!(cluster.routers[0].is_running() && cluster.nodes[0].is_running(), "a process has ended");
    cluster.check_logs(&[])
}

fn thirty_bad_commands_end_the_connection(cluster: &Cluster) -> Result<()> {
    let mut client = LineClient::connect(cluster.imap(0))?;
    client.line()?;
    for _ in 0..40 {
        // It may be closed by now.
        drop(client.send(b"t FROB\r\n"));
        match answer(&mut client) {
            Ok(answer) if answer.starts_with("BAD") => {}
            Ok(answer) if answer.starts_with("BYE") => {
                ensure!(client.closes(), "stays open after BYE");
                return Ok(());
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    anyhow::bail!("40 bad commands, and no BYE")
}

fn a_literal_that_breaks_off_stores_nothing(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.imap_client("ben@example.test")?;
    client.send("APPEND INBOX {1000}")?;
    ensure!(client.response()?.starts_with(b"+"), "no go-ahead");
    client.line.send(b"Subject: half\r\n")?;
    drop(client);
    let mut client = cluster.imap_client("ben@example.test")?;
    ensure!(client.select("INBOX")? == 0, "something was stored");
    Ok(())
}

fn uid_validity_is_new_after_delete_and_create(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.imap_client("ben@example.test")?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        client.ok("CREATE again")?;
        let status = client.ok("STATUS again (UIDVALIDITY)")?.concat();
        let status = String::from_utf8_lossy(&status).into_owned();
        ensure!(!seen.contains(&status), "{status} twice");
        seen.push(status);
        client.ok("DELETE again")?;
    }
    Ok(())
}

/// 200 connections with large literals that never come, before login and after it.
fn announced_literals_cost_little(cluster: &Cluster) -> Result<()> {
    let before = cluster.routers[0].memory_kib()?;
    let mut held = Vec::new();
    for number in 0..200 {
        let client = if number % 2 == 0 {
            let mut client = ImapClient::connect(cluster.imap(0))?;
            client.line.send(b"t LOGIN {4096+}\r\nhalf of it")?;
            client
        } else {
            let mut client = cluster.imap_client("ben@example.test")?;
            client.send("APPEND INBOX {40000000}")?;
            ensure!(client.response()?.starts_with(b"+"), "no go-ahead");
            client.line.send(&[b'x'; 64 * 1024])?;
            client
        };
        held.push(client);
    }
    ensure!(cluster.imap_client("ann@example.test")?.select("INBOX")? == 1, "nobody else is served");
    let growth = cluster.routers[0].memory_kib()?.saturating_sub(before);
    ensure!(growth < 256 * 1024, "200 connections cost {growth} KiB");
    drop(held);
    eventually("the memory is given back", Duration::from_secs(60), || {
        let now = cluster.routers[0].memory_kib()?.saturating_sub(before);
        ensure!(now < growth.max(64 * 1024), "{now} KiB of {growth} KiB");
        Ok(())
    })
}
