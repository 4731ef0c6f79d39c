//! A sender whose link dies when its message is in: no reset, no end, no acknowledgement. It never has its 250, and its
//! retry adds no second copy (RFC 1047).

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Network, SmtpClient, dot_stuffed, eventually, in_own_network, message};

const OPTIONS: ClusterOptions = ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::DEFAULT };
const END: &[u8] = b".\r\n";
const SENDER: &str = "s@example.test";
const ALICE: &str = "alice@example.test";
const BOB: &str = "bob@example.test";
/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

fn count(cluster: &Cluster, account: &str) -> Result<u32> {
    cluster.imap_client(account)?.select("INBOX")
}

fn deliver(cluster: &Cluster, account: &str, content: &[u8]) -> Result<SmtpClient> {
    let mut client = cluster.smtp_client()?;
    let (code, text) = client.deliver(SENDER, &[account], content)?;
    ensure!(code == 250, "{code} {text}");
    Ok(client)
}

/// Sends all but the end of a message.
fn begin(cluster: &Cluster, content: &[u8]) -> Result<TcpStream> {
    let stream = TcpStream::connect(cluster.smtp(0))?;
    let mut replies = BufReader::new(stream.try_clone()?).lines();
    let mut expect = |code: &str| -> Result<()> {
        loop {
            let line = replies.next().context("the connection ended")??;
            if line.starts_with(&format!("{code} ")) {
                return Ok(());
            }
            ensure!(line.starts_with(&format!("{code}-")), "{line}");
        }
    };
    expect("220")?;
    let envelope =
        [("EHLO c.test", "250"), (&format!("MAIL FROM:<{SENDER}>"), "250"), (&format!("RCPT TO:<{ALICE}>"), "250")];
    for (command, code) in envelope.into_iter().chain([("DATA", "354")]) {
        (&stream).write_all(format!("{command}\r\n").as_bytes())?;
        expect(code)?;
    }
    let stuffed = dot_stuffed(content);
    (&stream).write_all(stuffed.strip_suffix(END).context("no end")?)?;
    Ok(stream)
}

fn retry_adds_no_copy(cluster: &Cluster, network: &mut Network, number: u32, after: &[u8]) -> Result<()> {
    let (lost, other) = (message(&format!("lost{number}")), message(&format!("other{number}")));
    let mut stream = begin(cluster, &lost)?;
    network.deafen(stream.local_addr()?.port())?;
    stream.write_all(END)?;
    eventually("the message is stored", PATIENCE, || {
        ensure!(count(cluster, ALICE)? == number, "{} messages", count(cluster, ALICE)?);
        Ok(())
    })?;
    stream.write_all(after)?;
    // As long as it takes until another sender, which hears its 250 and is silent too, counts as having it: the same mail
    // sent again is another one then.
    let before = count(cluster, BOB)?;
    let _silent = deliver(cluster, BOB, &other)?;
    eventually("the same mail is taken as another one", PATIENCE, || {
        deliver(cluster, BOB, &other)?;
        ensure!(count(cluster, BOB)? >= before + 2, "{} messages", count(cluster, BOB)?);
        Ok(())
    })?;
    eventually("the retry is taken", PATIENCE, || deliver(cluster, ALICE, &lost))?;
    ensure!(count(cluster, ALICE)? == number, "{} messages after the retry", count(cluster, ALICE)?);
    Ok(())
}

#[test]
fn a_sender_that_falls_silent_may_send_again_and_there_is_one_copy() -> Result<()> {
    in_own_network("a_sender_that_falls_silent_may_send_again_and_there_is_one_copy", |mut network| {
        let cluster = Cluster::start(OPTIONS)?;
        cluster.add_accounts(&["alice", "bob"])?;
        retry_adds_no_copy(&cluster, &mut network, 1, b"")?;
        // What it says without having heard anything shows nothing (RFC 2920).
        retry_adds_no_copy(&cluster, &mut network, 2, b"NOOP\r\n")
    })
}
