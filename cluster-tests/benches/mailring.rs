//! Deliveries a second over SMTP and the time to SELECT a large mailbox, for `single` and for three nodes and a router,
//! over real processes. `cargo bench -p cluster-tests` prints a table; figures are of this machine, with everything on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, SmtpClient};

const SHARDS: u32 = 16;
const ACCOUNTS: usize = 100;
const MESSAGE_OCTETS: usize = 4 * 1024;
const RUN: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(2);
const LARGE_MAILBOX: usize = 30_000;
const FILLERS: usize = 40;

fn main() -> Result<()> {
    // `cargo test` builds and runs benches too; only `cargo bench` passes this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    for name in ["single", "3 nodes, R = 3"] {
        let mut cluster = match name {
            "single" => Cluster::single(SHARDS)?,
            _ => Cluster::start(ClusterOptions { shards: SHARDS, ..ClusterOptions::default() })?,
        };
        let locals: Vec<String> = (0..ACCOUNTS).map(|i| format!("user{i}")).collect();
        cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
        for sessions in [10, 40] {
            deliveries(&cluster, name, sessions)?;
        }
        select(&mut cluster, name)?;
    }
    Ok(())
}

fn message() -> Vec<u8> {
    let mut message = b"From: sender@example.test\r\nTo: user@example.test\r\nSubject: benchmark\r\n\r\n".to_vec();
    while message.len() < MESSAGE_OCTETS - 2 {
        let line = (MESSAGE_OCTETS - 2 - message.len()).min(76);
        message.extend(std::iter::repeat_n(b'x', line.saturating_sub(2)));
        message.extend_from_slice(b"\r\n");
    }
    message
}

fn deliveries(cluster: &Cluster, name: &str, sessions: usize) -> Result<()> {
    let (counting, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let delivered = AtomicU64::new(0);
    let message = message();
    let statistics = || -> Result<(u64, u64)> {
        let status: serde_json::Value = serde_json::from_str(&cluster.admin(&["node", "list", "--json"])?)?;
        let sum =
            |key: &str| status.as_array().map_or(0, |nodes| nodes.iter().filter_map(|node| node[key].as_u64()).sum());
        Ok((sum("synced_writes"), sum("appended_entries")))
    };
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let workers: Vec<_> = (0..sessions)
            .map(|session| {
                let (counting, done, delivered, message) = (&counting, &done, &delivered, &message);
                scope.spawn(move || -> Result<Vec<Duration>> {
                    let mut client = SmtpClient::connect(cluster.smtp(0))?;
                    let mut latencies = Vec::new();
                    let mut next = session;
                    while !done.load(Ordering::Relaxed) {
                        let to = format!("user{}@example.test", next % ACCOUNTS);
                        next += sessions;
                        let start = Instant::now();
                        let (code, text) = client.deliver("sender@example.test", &[&to], message)?;
                        ensure!(code == 250, "{code} {text}");
                        if counting.load(Ordering::Relaxed) {
                            latencies.push(start.elapsed());
                            delivered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok(latencies)
                })
            })
            .collect();
        std::thread::sleep(WARM_UP);
        let before = statistics()?;
        counting.store(true, Ordering::Relaxed);
        std::thread::sleep(RUN);
        counting.store(false, Ordering::Relaxed);
        let after = statistics()?;
        done.store(true, Ordering::Relaxed);
        let messages = delivered.load(Ordering::Relaxed).max(1) as f64;
        println!(
            "{name}: synced writes a message {:.2}, log entries a message {:.2} (all replicas)",
            (after.0 - before.0) as f64 / messages,
            (after.1 - before.1) as f64 / messages
        );
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a session panicked"))??);
        }
        Ok(all)
    })?;
    latencies.sort();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    println!(
        "{name}: {sessions} sessions: {:.0} deliveries/s of {MESSAGE_OCTETS} octets, p50 {:?}, p99 {:?}",
        latencies.len() as f64 / RUN.as_secs_f64(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}

fn select(cluster: &mut Cluster, name: &str) -> Result<()> {
    let user = "user0@example.test";
    let exists = cluster.imap_client(user)?.select("INBOX")? as usize;
    std::thread::scope(|scope| -> Result<()> {
        let fillers: Vec<_> = (0..FILLERS)
            .map(|filler| {
                let cluster = &*cluster;
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster.smtp_client()?;
                    for number in (exists + filler..LARGE_MAILBOX).step_by(FILLERS) {
                        // Each its own: the same mail at once on several connections is taken one by one.
                        let message = format!("Subject: {number}\r\n\r\ny\r\n");
                        let (code, text) = client.deliver("s@example.test", &[user], message.as_bytes())?;
                        ensure!(code == 250, "{code} {text}");
                    }
                    Ok(())
                })
            })
            .collect();
        for filler in fillers {
            filler.join().map_err(|_| anyhow::anyhow!("a session panicked"))??;
        }
        Ok(())
    })?;
    cluster.kill_all()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    let mut imap = cluster.imap_client(user)?;
    let cold = time(|| imap.select("INBOX").map(|_| ()))?;
    let mut warm = Vec::new();
    for _ in 0..50 {
        warm.push(time(|| imap.select("INBOX").map(|_| ()))?);
    }
    warm.sort();
    let median = warm.get(warm.len() / 2).context("no runs")?;
    let exists = imap.select("INBOX")?;
    println!("{name}: SELECT of {exists} messages: first after a restart {cold:?}, warm median {median:?}");
    Ok(())
}

fn time(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
