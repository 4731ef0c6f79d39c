//! What an idle session costs a router: resident memory with thousands of IMAP sessions in IDLE, each of an account of
//! its own with INBOX selected, in clear and over TLS. `cargo bench -p cluster-tests --bench idle_sessions`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, LineClient, PASSWORD};

const SESSIONS: usize = 2_000;
/// Before the first reading: what exists once, and not for each session, is there then.
const WARM_UP: usize = 50;
/// PASSWORD at the least cost that there is: the bench is not about logging in.
const CHEAP_HASH: &str =
    "$argon2id$v=19$m=8,t=1,p=1$bWFpbHJpbmctdGVzdC1zYQ$HKxz9A6u0pixv9Y5RgFoqKQXolid7BZl3Aj0AofC47Q";
/// The allocator gives memory back for ten seconds after it was used.
const STEADY: Duration = Duration::from_secs(12);
const STEADY_MAX: Duration = Duration::from_secs(90);

fn main() -> Result<()> {
    // `cargo test` builds and runs benches too; only `cargo bench` passes this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    for tls in [false, true] {
        // A router of its own for each, so that the second does not find the first one's memory.
        let cluster =
            Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 16, ..ClusterOptions::default() })?;
        add_accounts(&cluster)?;
        let ca = cluster.ca()?;
        let mut held = Vec::new();
        hold(&cluster, &ca, tls, 0..WARM_UP, &mut held)?;
        let before = steady_kib(&cluster)?;
        hold(&cluster, &ca, tls, WARM_UP..WARM_UP + SESSIONS, &mut held)?;
        let after = steady_kib(&cluster)?;
        println!(
            "{}: {SESSIONS} idle sessions: {before} KiB before, {after} KiB with them, {:.1} KiB a session",
            if tls { "TLS" } else { "plain" },
            after.saturating_sub(before) as f64 / SESSIONS as f64
        );
    }
    Ok(())
}

fn account(number: usize) -> String {
    format!("user{number}@example.test")
}

fn add_accounts(cluster: &Cluster) -> Result<()> {
    cluster.admin(&["domain", "add", "example.test"])?;
    let file = cluster.path().join("accounts.csv");
    let rows: String =
        (0..WARM_UP + SESSIONS).map(|number| format!("{},\"{CHEAP_HASH}\"\n", account(number))).collect();
    fs::write(&file, format!("account,password_hash\n{rows}"))?;
    let began = Instant::now();
    cluster.admin(&["account", "import", &file.to_string_lossy()])?;
    println!("{} accounts with hashes imported in {:?}", WARM_UP + SESSIONS, began.elapsed());
    Ok(())
}

fn hold(
    cluster: &Cluster,
    ca: &[u8],
    tls: bool,
    accounts: impl Iterator<Item = usize>,
    held: &mut Vec<ImapClient>,
) -> Result<()> {
    for number in accounts {
        let line = match tls {
            true => LineClient::connect_tls(cluster.imaps(0), ca)?,
            false => LineClient::connect(cluster.imap(0))?,
        };
        let mut imap = ImapClient::greeted(line)?;
        imap.ok(&format!("LOGIN {} {PASSWORD}", account(number))).with_context(|| account(number))?;
        imap.select("INBOX")?;
        imap.send("IDLE")?;
        ensure!(imap.response()?.starts_with(b"+"));
        held.push(imap);
    }
    Ok(())
}

/// The router's resident memory once it falls no more.
fn steady_kib(cluster: &Cluster) -> Result<u64> {
    let router = &cluster.routers[0];
    let (began, mut least, mut since) = (Instant::now(), router.memory_kib()?, Instant::now());
    while since.elapsed() < STEADY && began.elapsed() < STEADY_MAX {
        std::thread::sleep(Duration::from_millis(500));
        let now = router.memory_kib()?;
        if now + 64 < least {
            (least, since) = (now, Instant::now());
        }
    }
    Ok(least)
}
