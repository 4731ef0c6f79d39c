//! Bad SMTP input over a running cluster: each row gets a clear answer, a new connection is greeted at once, and
//! nothing is stored that was not acknowledged.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, LineClient, Row, SmtpClient, Step, eventually, play_rows};

/// Bytes as they are, behind EHLO, MAIL and RCPT and an accepted DATA.
fn content(name: &str, bytes: &[u8], codes: &'static str) -> Row {
    let mut row = Row::lines(
        name,
        &[
            ("EHLO c.test", "250"),
            ("MAIL FROM:<s@x.test>", "250"),
            ("RCPT TO:<ann@example.test>", "250"),
            ("DATA", "354"),
        ],
    );
    row.steps.push((bytes.to_vec(), codes));
    row
}

fn order_and_syntax() -> Vec<Row> {
    vec![
        Row::lines("unknown verb", &[("EHLO c.test", "250"), ("FROB x", "500|502"), ("NOOP", "250")]),
        Row::lines("MAIL before EHLO", &[("MAIL FROM:<a@x.test>", "503")]),
        Row::lines("RCPT before MAIL", &[("EHLO c.test", "250"), ("RCPT TO:<ann@example.test>", "503")]),
        Row::lines("DATA before MAIL", &[("EHLO c.test", "250"), ("DATA", "503|554")]),
        Row::lines("DATA before RCPT", &[("EHLO c.test", "250"), ("MAIL FROM:<>", "250"), ("DATA", "503|554")]),
        Row::lines("second MAIL", &[("EHLO c.test", "250"), ("MAIL FROM:<>", "250"), ("MAIL FROM:<>", "503")]),
        Row::lines("bare EHLO", &[("EHLO", "501")]),
        Row::lines("bare HELO", &[("HELO", "501")]),
        Row::lines(
            "EHLO clears",
            &[("EHLO c.test", "250"), ("MAIL FROM:<>", "250"), ("EHLO c.test", "250"), ("DATA", "503|554")],
        ),
        Row::lines(
            "RSET clears",
            &[("EHLO c.test", "250"), ("MAIL FROM:<>", "250"), ("RSET", "250"), ("DATA", "503|554")],
        ),
        Row::lines("no angle brackets", &[("EHLO c.test", "250"), ("MAIL FROM:a@x.test", "501")]),
        Row::lines("no colon", &[("EHLO c.test", "250"), ("MAIL FROM <a@x.test>", "500|501")]),
        Row::lines("unknown MAIL parameter", &[("EHLO c.test", "250"), ("MAIL FROM:<> FROB=1", "555")]),
        Row::lines(
            "unknown RCPT parameter",
            &[("EHLO c.test", "250"), ("MAIL FROM:<>", "250"), ("RCPT TO:<ann@example.test> FROB", "555")],
        ),
        Row::lines("BODY=JUNK", &[("EHLO c.test", "250"), ("MAIL FROM:<> BODY=JUNK", "501|555")]),
        Row::lines("VRFY and EXPN", &[("EHLO c.test", "250"), ("VRFY ann", "252|502|550"), ("EXPN list", "252|502")]),
        Row::lines("QUIT closes", &[("QUIT", "221.")]),
    ]
}

fn sizes() -> Vec<Row> {
    let long = |count: usize| "l".repeat(count);
    let labels = vec![long(60); 5].join(".");
    let mut received = "Received: from a by b; Thu, 1 Jan 2026 00:00:00 +0000\r\n".repeat(101);
    received.push_str("\r\nlooping\r\n.\r\n");
    let mail = |rest: &str| (format!("MAIL FROM:<{rest}\r\n").into_bytes(), "501|552|553");
    let ehlo = || (b"EHLO c.test\r\n".to_vec(), "250");
    let to_ann = || (b"RCPT TO:<ann@example.test>\r\n".to_vec(), "250");
    let null = || (b"MAIL FROM:<>\r\n".to_vec(), "250");
    vec![
        Row::bytes("local part of 1,000 octets", vec![ehlo(), mail(&format!("{}@x.test>", long(1000)))]),
        Row::bytes("domain over 255 octets", vec![ehlo(), mail(&format!("a@{labels}.test>"))]),
        Row::bytes(
            "command line of 4 KiB",
            vec![ehlo(), (format!("NOOP {}\r\n", long(4096)).into_bytes(), "500|501"), (b"NOOP\r\n".to_vec(), "250")],
        ),
        Row::bytes("line of 1 MiB", vec![ehlo(), (format!("NOOP {}\r\n", long(1 << 20)).into_bytes(), "500|421|.")]),
        Row::bytes("SIZE over the limit", vec![ehlo(), mail("> SIZE=99999999999")]),
        Row::bytes("SIZE=abc", vec![ehlo(), mail("> SIZE=abc")]),
        Row::bytes("SIZE=2^64", vec![ehlo(), mail("> SIZE=18446744073709551616")]),
        Row::bytes("SIZE=-1", vec![ehlo(), mail("> SIZE=-1")]),
        Row::bytes("BDAT x", vec![ehlo(), null(), to_ann(), (b"BDAT x\r\n".to_vec(), "501")]),
        Row::bytes(
            "BDAT 10^19",
            vec![ehlo(), null(), to_ann(), (b"BDAT 10000000000000000000 LAST\r\n".to_vec(), "501|552|521")],
        ),
        content("more than 100 Received", received.as_bytes(), "554"),
    ]
}

fn bytes() -> Vec<Row> {
    let ehlo = || (b"EHLO c.test\r\n".to_vec(), "250");
    vec![
        Row::bytes("NUL in a command", vec![ehlo(), (b"NOOP \0\r\n".to_vec(), "500|501")]),
        // The line goes on until CRLF: with what follows it is no command.
        Row::bytes(
            "command ended by bare LF",
            vec![ehlo(), (b"MAIL FROM:<>\nRCPT TO:<ann@example.test>\r\n".to_vec(), "500|501|553|555")],
        ),
        Row::bytes("bare CR in a command", vec![ehlo(), (b"NOOP\rNOOP\r\n".to_vec(), "500|501|502|554")]),
        Row::bytes(
            "8-bit address without SMTPUTF8",
            vec![ehlo(), ("MAIL FROM:<j\u{f6}rg@x.test>\r\n".as_bytes().to_vec(), "501|553")],
        ),
        Row::bytes("NUL in an EHLO name", vec![(b"EHLO c\0.test\r\n".to_vec(), "500|501")]),
    ]
}

/// End marks that some servers take for the end of the message and others do not (VU#302671). Behind each stands a
/// second transaction: it must never be answered.
fn smuggling() -> Vec<Row> {
    let marks: [(&'static str, &[u8]); 9] = [
        ("\\n.\\n", b"\n.\n"),
        ("\\n.\\r\\n", b"\n.\r\n"),
        ("\\r\\n.\\n", b"\r\n.\n"),
        ("\\r.\\r\\n", b"\r.\r\n"),
        ("\\r.\\r", b"\r.\r"),
        ("\\r\\n.\\r", b"\r\n.\r"),
        ("\\r\\n\\0.\\r\\n", b"\r\n\0.\r\n"),
        ("\\n.\\r", b"\n.\r"),
        ("\\r\\r\\n.\\r\\r\\n", b"\r\r\n.\r\r\n"),
    ];
    let smuggled =
        b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<ben@example.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n";
    marks
        .into_iter()
        .map(|(name, mark)| {
            let bytes = [b"Subject: first\r\n\r\ntext", mark, smuggled].concat();
            let mut row = content(name, &bytes, "250|554|550|521");
            // One answer came for all of it: the next is that to NOOP.
            row.steps.push((b"NOOP\r\n".to_vec(), "250"));
            row
        })
        .collect()
}

fn policy() -> Vec<Row> {
    let to = |recipient: &str, codes: &'static str| -> Vec<Step> {
        vec![
            (b"EHLO c.test\r\n".to_vec(), "250"),
            (b"MAIL FROM:<s@x.test>\r\n".to_vec(), "250"),
            (format!("RCPT TO:<{recipient}>\r\n").into_bytes(), codes),
        ]
    };
    let mut junk: Vec<Step> = (0..24).map(|_| (b"\x01junk\r\n".to_vec(), "500|502|421")).collect();
    junk.push((b"junk\r\n".to_vec(), "421|500|."));
    vec![
        Row::bytes("unknown user", to("nobody@example.test", "550")),
        Row::bytes("relay", to("a@elsewhere.test", "550|554")),
        Row::bytes("percent hack", to("a%elsewhere.test@example.test", "550|554")),
        Row::bytes("source route", to("@example.test:a@elsewhere.test", "550|554|501|553")),
        Row::bytes("UUCP", to("elsewhere.test!a", "550|554|501|553")),
        Row::bytes("quoted percent", to("\"a@elsewhere.test\"@example.test", "550|554|553")),
        Row::lines("AUTH at role mx", &[("EHLO c.test", "250"), ("AUTH PLAIN AGEAYg==", "502|503|504|530|538")]),
        Row::lines("STARTTLS with an argument", &[("EHLO c.test", "250"), ("STARTTLS now", "501")]),
        Row::bytes("25 junk lines", junk),
        Row::bytes("HTTP request", vec![(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "500|502|554|221|421|.")]),
        Row::bytes(
            "TLS hello on the plain port",
            vec![(
                [&b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"[..], &[7; 160], b"\r\n"].concat(),
                "500|501|502|554|221|421|.",
            )],
        ),
    ]
}

/// One reply of any number of lines: its code and text.
fn reply(client: &mut LineClient) -> Result<String> {
    loop {
        let line = client.line()?;
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(line);
        }
    }
}

fn greeted(cluster: &Cluster) -> Result<()> {
    let mut client = SmtpClient::connect(cluster.smtp(0))?;
    client.command("NOOP", 250)?;
    client.command("QUIT", 221)?;
    Ok(())
}

#[test]
fn every_row_of_bad_smtp_gets_its_answer() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann", "ben"])?;
    let before = cluster.routers[0].memory_kib()?;
    for rows in [order_and_syntax(), sizes(), bytes(), smuggling(), policy()] {
        play_rows(cluster.smtp(0), &rows, "220 ", reply)?;
    }
    let ben = cluster.imap_client("ben@example.test")?.select("INBOX")?;
    ensure!(ben == 0, "{ben} smuggled messages");
    too_many_recipients(&cluster)?;
    oversize_and_aborted(&cluster)?;
    endless(&cluster, before)?;
    ensure!(cluster.routers[0].is_running() && cluster.nodes[0].is_running(), "a process has ended");
    cluster.check_logs(&[])
}

/// At least 100 are taken; beyond the limit it is 452 4.5.3, and those before stay.
fn too_many_recipients(cluster: &Cluster) -> Result<()> {
    let mut client = SmtpClient::connect(cluster.smtp(0))?;
    client.command("MAIL FROM:<>", 250)?;
    for number in 0..1_200 {
        client.line.send(b"RCPT TO:<ann@example.test>\r\n")?;
        match client.reply()? {
            (250, _) => {}
            (452, text) if number >= 100 => {
                ensure!(text.starts_with("4.5.3"), "{text}");
                client.command("DATA", 354)?;
                client.line.send(b"Subject: many\r\n\r\nx\r\n.\r\n")?;
                client.expect(250)?;
                return Ok(());
            }
            (code, text) => bail!("recipient {number}: {code} {text}"),
        }
    }
    bail!("no limit of recipients");
}

/// Too large a message is refused after its end, and the connection lives; one that breaks off is not stored.
fn oversize_and_aborted(cluster: &Cluster) -> Result<()> {
    let mut client = SmtpClient::connect(cluster.smtp(0))?;
    client.command("MAIL FROM:<>", 250)?;
    client.command("RCPT TO:<ben@example.test>", 250)?;
    client.command("DATA", 354)?;
    let line = format!("{}\r\n", "x".repeat(990)).repeat(1_000);
    for _ in 0..55 {
        client.line.send(line.as_bytes())?;
    }
    client.line.send(b".\r\n")?;
    client.expect(552)?;
    client.command("NOOP", 250)?;
    client.command("MAIL FROM:<>", 250)?;
    client.command("RCPT TO:<ben@example.test>", 250)?;
    client.command("DATA", 354)?;
    client.line.send(b"Subject: broken off\r\n\r\nhalf of it")?;
    drop(client);
    greeted(cluster)?;
    ensure!(cluster.imap_client("ben@example.test")?.select("INBOX")? == 0, "something was stored");
    Ok(())
}

/// 200 lines without an end and 200 bodies that never come: memory stays bounded and comes back, others are served.
fn endless(cluster: &Cluster, before: u64) -> Result<()> {
    let mut held = Vec::new();
    let piece = vec![b'x'; 64 * 1024];
    for number in 0..400 {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        if number % 2 == 0 {
            // The server may have closed by then, which is an answer too.
            drop(client.line.send(&piece).and_then(|()| client.line.send(&piece)));
        } else {
            client.command("MAIL FROM:<>", 250)?;
            client.command("RCPT TO:<ann@example.test>", 250)?;
            client.line.send(b"BDAT 40000000 LAST\r\n")?;
            client.line.send(&piece)?;
        }
        held.push(client);
    }
    let mut client = SmtpClient::connect(cluster.smtp(0))?;
    let (code, text) = client.deliver("s@x.test", &["ann@example.test"], b"Subject: amid\r\n\r\nx\r\n")?;
    ensure!(code == 250, "{code} {text}");
    let growth = cluster.routers[0].memory_kib()?.saturating_sub(before);
    ensure!(growth < 256 * 1024, "400 connections cost {growth} KiB");
    drop(held);
    eventually("the memory is given back", Duration::from_secs(60), || {
        let now = cluster.routers[0].memory_kib()?.saturating_sub(before);
        ensure!(now < growth.max(64 * 1024), "{now} KiB of {growth} KiB");
        Ok(())
    })
}
