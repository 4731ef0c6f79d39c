//! A thousand clients that say a byte now and then: others log in and are served as before, memory stays bounded, and
//! what the slow ones have to say in the end is taken.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, LineClient, Quantiles, SmtpClient, eventually, is_long};

/// 1,000 in all.
const SMTP: usize = 400;
const IMAP: usize = 300;
const POP3: usize = 300;
/// The test's own and the router's.
const DESCRIPTORS: usize = 4_096;
/// Between two bytes of a slow client.
const DRIP: Duration = Duration::from_millis(500);
const GROWTH_MAX_KIB: u64 = 256 * 1024;
/// Of it, for the next ones.
const KEPT_MAX_KIB: u64 = 32 * 1024;
/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Logins of each protocol that are measured.
const LOGINS: usize = 30;
/// The same in the long form.
const LOGINS_LONG: usize = 1_000;
/// Nobody is sent away in the middle of a login, however long the test takes on a busy machine.
const PATIENT: &str = "limits = { login_s = 1800, smtp_idle_s = 1800 }\n";
/// Before anything is measured.
const WARM_UP: usize = 10;
const ANN: &str = "ann@example.test";

#[test]
fn a_thousand_slow_clients_hold_up_no_login_and_lose_nothing() -> Result<()> {
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &own, &format!("--nofile={DESCRIPTORS}:")]).status()?;
    ensure!(raised.success(), "{DESCRIPTORS} descriptors are not allowed: {raised}");
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    cluster.routers[0].reconfigure("[router]\n", &format!("[router]\n{PATIENT}"))?;
    cluster.routers[0].terminate()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    cluster.add_accounts(&["ann", "slow"])?;
    logins(&cluster, WARM_UP)?;
    println!("before:");
    measured(&cluster)?;
    let before = cluster.routers[0].memory_kib()?;

    let mut senders = Vec::new();
    for number in 0..SMTP {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        client.command("MAIL FROM:<s@x.test>", 250)?;
        client.command("RCPT TO:<slow@example.test>", 250)?;
        client.command("DATA", 354)?;
        client.line.send(format!("Subject: {number}\r\n\r\n").as_bytes())?;
        senders.push(client);
    }
    let mut others = Vec::new();
    for (count, address, begin) in [(IMAP, cluster.imap(0), "a LOGIN "), (POP3, cluster.pop3(0), "USER ")] {
        for _ in 0..count {
            let mut client = LineClient::connect(address)?;
            client.line()?;
            client.send(begin.as_bytes())?;
            others.push(client);
        }
    }
    let over = AtomicBool::new(false);
    let growth = std::thread::scope(|scope| -> Result<u64> {
        let dripping = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                senders.iter_mut().try_for_each(|client| client.line.send(b"x"))?;
                others.iter_mut().try_for_each(|client| client.send(b"x"))?;
                std::thread::sleep(DRIP);
            }
            Ok(())
        });
        println!("with {} slow clients:", SMTP + IMAP + POP3);
        let served = measured(&cluster).and_then(|()| cluster.routers[0].memory_kib());
        over.store(true, Ordering::Relaxed);
        dripping.join().map_err(|_| anyhow::anyhow!("the slow clients panicked"))?.context("a slow client")?;
        Ok(served?.saturating_sub(before))
    })?;
    println!("{growth} KiB more memory in the router");
    ensure!(growth < GROWTH_MAX_KIB, "{growth} KiB more");
    for client in &mut senders {
        client.line.send(b"\r\n.\r\n")?;
    }
    for client in &mut senders {
        client.expect(250)?;
    }
    let stored = cluster.imap_client("slow@example.test")?.select("INBOX")?;
    ensure!(stored as usize == SMTP, "{stored} messages of {SMTP}");
    for client in &mut others {
        client.send(b"\r\n")?;
        let answer = client.line()?;
        ensure!(["a NO", "a BAD", "+OK", "-ERR"].iter().any(|word| answer.starts_with(word)), "{answer}");
    }
    drop((senders, others));
    let left = eventually("the memory is given back", PATIENCE, || {
        let left = cluster.routers[0].memory_kib()?.saturating_sub(before);
        ensure!(left < KEPT_MAX_KIB, "{left} KiB of {growth} KiB are kept");
        Ok(left)
    })?;
    println!("{left} KiB when they are gone");
    cluster.check_logs(&[])
}

/// Prints what a login takes in each protocol.
fn measured(cluster: &Cluster) -> Result<()> {
    let rounds = if is_long() { LOGINS_LONG } else { LOGINS };
    for (protocol, times) in ["SMTP to EHLO", "IMAP LOGIN", "POP3 PASS"].into_iter().zip(logins(cluster, rounds)?) {
        println!("{protocol}: {}", Quantiles::of(times));
    }
    Ok(())
}

/// From the connection to the answer; a transaction over SMTP follows, which must be taken.
fn logins(cluster: &Cluster, count: usize) -> Result<[Vec<Duration>; 3]> {
    let mut times = [const { Vec::new() }; 3];
    for number in 0..count {
        let began = Instant::now();
        let mut smtp = cluster.smtp_client()?;
        times[0].push(began.elapsed());
        let text = format!("Subject: {number}\r\n\r\nhello\r\n");
        let (code, text) = smtp.deliver("s@x.test", &[ANN], text.as_bytes())?;
        ensure!(code == 250, "{code} {text}");
        let began = Instant::now();
        cluster.imap_client(ANN)?;
        times[1].push(began.elapsed());
        let began = Instant::now();
        let mut pop3 = cluster.pop3_client(ANN)?;
        times[2].push(began.elapsed());
        // Its maildrop is free for the next one.
        pop3.command("QUIT")?;
    }
    Ok(times)
}
