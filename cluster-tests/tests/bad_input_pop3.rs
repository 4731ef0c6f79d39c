//! Bad POP3 input over a running cluster: each row gets a clear answer, a new connection is greeted at once, and no
//! message goes that was not to go.

use anyhow::{Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, LineClient, PASSWORD, Pop3Client, Row, play_rows};

const USER: &str = "USER ann@example.test";

fn of_row(number: usize) -> String {
    format!("row{number}@example.test")
}

fn before_login() -> Vec<Row> {
    let long = |octets: usize| format!("USER {}\r\n", "u".repeat(octets)).into_bytes();
    vec![
        Row::lines("unknown command", &[("FROB", "-ERR"), ("CAPA", "+OK")]),
        Row::lines("STAT before login", &[("STAT", "-ERR")]),
        Row::lines("RETR before login", &[("RETR 1", "-ERR")]),
        Row::lines("PASS without USER", &[("PASS x", "-ERR")]),
        Row::lines("wrong password", &[(USER, "+OK"), ("PASS wrong", "-ERR [AUTH]")]),
        Row::lines("unknown account", &[("USER nobody@example.test", "+OK"), ("PASS wrong", "-ERR [AUTH]")]),
        Row::lines("APOP", &[("APOP ann@example.test c4c9334bac560ecc979e58001b3e22fb", "-ERR")]),
        Row::lines("unknown mechanism", &[("AUTH FROB", "-ERR")]),
        Row::lines("bad base64", &[("AUTH PLAIN !!!", "-ERR")]),
        Row::lines("cancelled AUTH", &[("AUTH PLAIN", "+ "), ("*", "-ERR")]),
        Row::bytes("line of 5 KiB", vec![(long(5 * 1024), "-ERR|.")]),
        Row::bytes("line of 1 MiB", vec![(long(1 << 20), "-ERR|.")]),
        Row::bytes("NUL", vec![(b"USER a\0b\r\n".to_vec(), "-ERR")]),
        Row::bytes("HTTP request", vec![(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "-ERR|.")]),
    ]
}

/// Each in a maildrop of its own, which nobody has locked a moment ago, with two messages. RSET stands before each end, so
/// that nothing goes.
fn after_login() -> Vec<Row> {
    let refused = [
        "RETR 0",
        "RETR 3",
        "RETR -1",
        "RETR 18446744073709551616",
        "RETR x",
        "RETR",
        "TOP 1",
        "TOP 1 -1",
        "TOP 9 1",
        "UIDL 99",
        "UIDL 0",
        "LIST 0",
        "LIST x",
        "DELE 0",
        "DELE 3",
        "STLS",
        "USER ben@example.test",
        "AUTH PLAIN",
        "FROB",
    ];
    let mut rows: Vec<Row> = refused.iter().map(|line| Row::lines(*line, &[(line, "-ERR"), ("NOOP", "+OK")])).collect();
    rows.push(Row::lines("RETR of a deleted one", &[("DELE 1", "+OK"), ("RETR 1", "-ERR"), ("RSET", "+OK")]));
    rows.push(Row::lines("DELE twice", &[("DELE 1", "+OK"), ("DELE 1", "-ERR"), ("RSET", "+OK")]));
    rows.push(Row::lines("TOP of a deleted one", &[("DELE 2", "+OK"), ("TOP 2 0", "-ERR"), ("RSET", "+OK")]));
    let pass = format!("PASS {PASSWORD}");
    rows.into_iter()
        .enumerate()
        .map(|(number, row)| row.after(&[(&format!("USER {}", of_row(number)), "+OK"), (&pass, "+OK")]))
        .map(|mut row| {
            row.steps.push((b"QUIT\r\n".to_vec(), "+OK."));
            row
        })
        .collect()
}

#[test]
fn every_row_of_bad_pop3_gets_its_answer() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() })?;
    let mut accounts: Vec<String> = (0..after_login().len()).map(of_row).collect();
    accounts.extend(["ann", "ben"].map(|local| format!("{local}@example.test")));
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    cluster.add_accounts(&accounts.iter().filter_map(|name| name.strip_suffix("@example.test")).collect::<Vec<_>>())?;
    for text in ["one", "two"] {
        let message = format!("Subject: {text}\r\n\r\n.leading dot\r\n");
        let (code, text) = cluster.smtp_client()?.deliver("s@x.test", &accounts, message.as_bytes())?;
        ensure!(code == 250, "{code} {text}");
    }
    play_rows(cluster.pop3(0), &before_login(), "+OK", LineClient::line)?;
    play_rows(cluster.pop3(0), &after_login(), "+OK", LineClient::line)?;
    a_session_that_breaks_off_deletes_nothing(&cluster)?;
    one_session_at_a_time(&cluster)?;
    what_is_told_is_what_comes(&cluster)?;
    ensure!(cluster.routers[0].is_running() && cluster.nodes[0].is_running(), "a process has ended");
    cluster.check_logs(&[])
}

fn login(cluster: &Cluster) -> Result<Pop3Client> {
    cluster.pop3_client("ann@example.test")
}

/// RFC 1939 §6: without QUIT there is no UPDATE state.
fn a_session_that_breaks_off_deletes_nothing(cluster: &Cluster) -> Result<()> {
    let mut client = login(cluster)?;
    client.command("DELE 1")?;
    drop(client);
    let stat = login(cluster)?.command("STAT")?;
    ensure!(stat.starts_with("2 "), "{stat}");
    Ok(())
}

/// RFC 2449 §8.1.2.
fn one_session_at_a_time(cluster: &Cluster) -> Result<()> {
    let held = login(cluster)?;
    let mut second = Pop3Client::connect(cluster.pop3(0))?;
    second.command(USER)?;
    second.line.send(format!("PASS {PASSWORD}\r\n").as_bytes())?;
    let refused = second.line.line()?;
    ensure!(refused.starts_with("-ERR [IN-USE]"), "{refused}");
    drop(held);
    login(cluster).map(drop)
}

/// RETR has as many octets as LIST says, UIDL has 1 to 70 characters of 0x21 to 0x7E and stays the same.
fn what_is_told_is_what_comes(cluster: &Cluster) -> Result<()> {
    let uidl = |client: &mut Pop3Client| -> Result<Vec<String>> {
        let lines = client.lines("UIDL")?;
        Ok(lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect())
    };
    let mut client = login(cluster)?;
    for number in 1..=2 {
        let list = client.command(&format!("LIST {number}"))?;
        let octets: usize = list.split(' ').nth(1).unwrap_or_default().parse()?;
        let message = client.retrieve(number)?;
        ensure!(message.len() == octets, "{} octets came, {octets} were told", message.len());
        ensure!(message.ends_with(b"\r\n\r\n.leading dot\r\n"), "dots");
    }
    let first = uidl(&mut client)?;
    client.command("QUIT")?;
    for line in &first {
        let id = line.split(' ').nth(1).unwrap_or_default();
        ensure!((1..=70).contains(&id.len()) && id.bytes().all(|byte| (0x21..=0x7e).contains(&byte)), "{line}");
    }
    ensure!(uidl(&mut login(cluster)?)? == first, "UIDL has changed");
    Ok(())
}
