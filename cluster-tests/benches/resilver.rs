//! What a resilver costs those who use the mail meanwhile: a half of a mirror is deleted under a node that holds a GiB, an
//! empty directory put in its place, and deliveries and FETCHes go on. `cargo bench -p cluster-tests --bench resilver`
//! prints a Markdown table.
//!
//! `MAILRING_MIB` says how much mail there is, `MAILRING_ROUNDS` how often a half is deleted, the two in turn. Each
//! session asks at fixed times, so that a slow server is not asked less often; a latency counts from when it was time to
//! ask.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, ImapClient, PASSWORD, Quantiles, Random, SmtpClient, delete_disk, eventually, setting,
};

const OPTIONS: ClusterOptions =
    ClusterOptions { nodes: 1, replicas: 1, shards: 16, mirror: true, ..ClusterOptions::DEFAULT };
const ACCOUNTS: usize = 64;
const MIB: u64 = 1024;
const ROUNDS: u64 = 2;
/// Of those that fill the volume, and are fetched.
const LARGE_OCTETS: usize = 64 * 1024;
const SMALL_OCTETS: usize = 4 * 1024;
const FILLERS: usize = 8;
/// Sessions that deliver, and as many that fetch; how often each asks. Far below what the machine can do.
const SESSIONS: usize = 4;
const PERIOD: Duration = Duration::from_millis(50);
const CALM: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(600);

struct Figures {
    deliveries: Quantiles,
    fetches: Quantiles,
}

fn main() -> Result<()> {
    // `cargo test` builds and runs benches too; only `cargo bench` passes this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let (mib, rounds) = (setting("MAILRING_MIB", MIB), setting("MAILRING_ROUNDS", ROUNDS));
    let mut cluster = Cluster::start(OPTIONS)?;
    // The scrub at the end is not what is measured.
    cluster.nodes[0].reconfigure("[node]\n", "[node]\nscrub_octets_per_s = 1073741824\n")?;
    cluster.nodes[0].kill()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|i| format!("user{i}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    let sent = AtomicU64::new(0);
    let filling = Instant::now();
    fill(&cluster, mib, &sent)?;
    let large = sent.load(Ordering::Relaxed) as usize / ACCOUNTS;
    println!(
        "{mib} MiB of mail in {} messages, delivered in {:.0?}\n",
        sent.load(Ordering::Relaxed),
        filling.elapsed()
    );
    println!("| | delivery p50 ms | p99 ms | FETCH of 64 KiB p50 ms | p99 ms | operations |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    let mut summary = Vec::new();
    for round in 0..rounds {
        let half = (round % 2) as usize;
        let letter = ["a", "b"][half];
        let (before, ()) = foreground(&cluster, &sent, large, || {
            thread::sleep(CALM);
            Ok(())
        })?;
        row("before", &before);
        lose(&cluster, half)?;
        let (during, took) = foreground(&cluster, &sent, large, || {
            let began = Instant::now();
            cluster.admin(&["volume", "replace", "node1", "1", "--half", letter, "--wait"])?;
            Ok(began.elapsed())
        })?;
        row(&format!("while half {letter} is resilvered"), &during);
        let rate = mib as f64 / took.as_secs_f64();
        let ratio = |of: fn(&Figures) -> Duration| of(&during).as_secs_f64() / of(&before).as_secs_f64();
        summary.push(format!(
            "half {letter}: whole after {took:.1?}, {rate:.1} MiB/s of mail; p99 of deliveries {:.2} times that of \
             before, of FETCH {:.2} times",
            ratio(|figures| figures.deliveries.p99),
            ratio(|figures| figures.fetches.p99),
        ));
        let scrub: serde_json::Value = serde_json::from_str(&cluster.admin(&["scrub", "--json"])?)?;
        ensure!(scrub["clean"] == true, "the halves are not the same: {scrub:#}");
        summary.push(format!("        a scrub of {} records in each half found nothing", scrub["records"]));
    }
    println!();
    summary.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn row(name: &str, Figures { deliveries, fetches }: &Figures) {
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
    println!(
        "| {name} | {} | {} | {} | {} | {} |",
        ms(deliveries.p50),
        ms(deliveries.p99),
        ms(fetches.p50),
        ms(fetches.p99),
        deliveries.count + fetches.count,
    );
}

/// Deletes a half, waits until the node has noticed, and puts an empty directory in its place.
fn lose(cluster: &Cluster, half: usize) -> Result<()> {
    let disk = cluster.disk_directories(0)[half].clone();
    delete_disk(&disk)?;
    eventually("the half is out of use", PATIENCE, || {
        let mut client = cluster.smtp_client()?;
        client.deliver("notice@example.test", &["user0@example.test"], b"Subject: notice\r\n\r\n")?;
        let rows = cluster.volumes("node1")?;
        ensure!(rows.iter().any(|row| row["state"] == "stale"), "{rows:?}");
        Ok(())
    })?;
    Ok(fs::create_dir(&disk)?)
}

fn fill(cluster: &Cluster, mib: u64, sent: &AtomicU64) -> Result<()> {
    let count = mib * 1024 * 1024 / LARGE_OCTETS as u64;
    let deliver = || -> Result<()> {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        loop {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                sent.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
            deliver(&mut client, number, LARGE_OCTETS)?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..FILLERS).map(|_| scope.spawn(deliver)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a session panicked"))?)
    })
}

fn deliver(client: &mut SmtpClient, number: u64, octets: usize) -> Result<()> {
    let to = format!("user{}@example.test", number % ACCOUNTS as u64);
    let (code, text) = client.deliver("sender@example.test", &[&to], &message(number, octets))?;
    ensure!(code == 250, "{code} {text}");
    Ok(())
}

/// Like an attachment in base64: three quarters are left when it is compressed.
fn message(number: u64, octets: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut random = Random::new(number, octets as u64);
    let mut message = format!("From: sender@example.test\r\nSubject: {number}\r\n\r\n").into_bytes();
    while message.len() < octets {
        for _ in 0..8 {
            let mut bits = random.draw();
            for _ in 0..9 {
                message.push(DIGITS[(bits % 64) as usize]);
                bits /= 64;
            }
        }
        message.extend_from_slice(b"\r\n");
    }
    message
}

/// What deliveries and FETCHes take while something else is done.
/// `large`: the messages of each account that are fetched, its first ones.
fn foreground<T>(
    cluster: &Cluster,
    sent: &AtomicU64,
    large: usize,
    work: impl FnOnce() -> Result<T>,
) -> Result<(Figures, T)> {
    let stop = AtomicBool::new(false);
    let paced = |session: usize, ask: &mut dyn FnMut() -> Result<()>| -> Result<Vec<Duration>> {
        let mut due = Instant::now() + PERIOD.mul_f64(session as f64 / (2 * SESSIONS) as f64);
        let mut latencies = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            ask()?;
            latencies.push(due.elapsed());
            due += PERIOD;
        }
        Ok(latencies)
    };
    let delivers = |session: usize| -> Result<Vec<Duration>> {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        paced(2 * session, &mut || deliver(&mut client, sent.fetch_add(1, Ordering::Relaxed), SMALL_OCTETS))
    };
    let fetches = |session: usize| -> Result<Vec<Duration>> {
        let mut random = Random::new(session as u64, 7);
        let mut clients = Vec::new();
        for account in (session..ACCOUNTS).step_by(SESSIONS) {
            let user = format!("user{account}@example.test");
            let mut client = ImapClient::login(cluster.imap(0), &user, PASSWORD)?;
            client.select("INBOX")?;
            let mut uids = client.uids()?;
            uids.truncate(large);
            clients.push((client, uids));
        }
        paced(2 * session + 1, &mut || {
            let at = random.below(clients.len() as u64) as usize;
            let (client, uids) = &mut clients[at];
            let uid = uids[random.below(uids.len() as u64) as usize];
            client.body(uid)?.with_context(|| format!("no message with UID {uid}")).map(drop)
        })
    };
    thread::scope(|scope| {
        let (delivers, fetches) = (&delivers, &fetches);
        let delivering: Vec<_> = (0..SESSIONS).map(|session| scope.spawn(move || delivers(session))).collect();
        let fetching: Vec<_> = (0..SESSIONS).map(|session| scope.spawn(move || fetches(session))).collect();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let joined = |workers: Vec<thread::ScopedJoinHandle<'_, Result<Vec<Duration>>>>| -> Result<Quantiles> {
            let mut all = Vec::new();
            for worker in workers {
                all.extend(worker.join().map_err(|_| anyhow!("a session panicked"))??);
            }
            ensure!(!all.is_empty(), "nothing was measured");
            Ok(Quantiles::of(all))
        };
        let (deliveries, fetches) = (joined(delivering), joined(fetching));
        Ok((Figures { deliveries: deliveries?, fetches: fetches? }, done?))
    })
}
