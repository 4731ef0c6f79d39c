//! Sessions outlive nodes: while nodes come, go and are restarted, clients that read, write and wait see at most a pause.
//!
//! `MAILRING_ACCOUNTS`, `MAILRING_MESSAGES` and `MAILRING_IDLE` make a run larger; the long form is in docs/reliability.md.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, Idlers, ImapClient, PASSWORD, Quantiles, SmtpClient, eventually, message, setting,
};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(300);
const SENDERS: usize = 2;
const READERS: usize = 2;
/// Between two operations of a client: the machine is to be used, not filled.
const PACE: Duration = Duration::from_millis(20);

/// What is logged when a node dies, and calls for nobody in these tests.
const ALLOWED: [&str; 2] =
    ["directory is not reachable, going on with what is known", "node does not answer, others are asked"];

/// What was measured in each phase: before nodes come and go, while they do, and after.
#[derive(Default)]
struct Measured {
    phase: AtomicUsize,
    times: Mutex<[Vec<Duration>; 3]>,
}

impl Measured {
    fn add(&self, time: Duration) -> Result<()> {
        let phase = self.phase.load(Ordering::SeqCst);
        self.times.lock().map_err(|_| anyhow!("a client panicked"))?[phase].push(time);
        Ok(())
    }

    fn of(&self, phase: usize) -> Result<Quantiles> {
        let times = self.times.lock().map_err(|_| anyhow!("a client panicked"))?[phase].clone();
        ensure!(!times.is_empty(), "nothing was measured");
        Ok(Quantiles::of(times))
    }
}

/// Clients that deliver, and clients that read and flag, one connection each for all of the time: any error ends one, and is
/// told by [`Clients::stop`].
struct Clients {
    stop: Arc<AtomicBool>,
    /// Deliveries acknowledged, by account.
    delivered: Arc<Vec<AtomicU64>>,
    deliveries: Arc<Measured>,
    changes: Arc<Measured>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Clients {
    fn start(cluster: &Cluster, accounts: &[String]) -> Clients {
        let mut clients = Clients {
            stop: Arc::default(),
            delivered: Arc::new(accounts.iter().map(|_| AtomicU64::new(0)).collect()),
            deliveries: Arc::default(),
            changes: Arc::default(),
            threads: Vec::new(),
        };
        for sender in 0..SENDERS {
            let (address, accounts, stop) = (cluster.smtp(0), accounts.to_vec(), clients.stop.clone());
            let (delivered, measured) = (clients.delivered.clone(), clients.deliveries.clone());
            clients.threads.push(std::thread::spawn(move || {
                let mut smtp = SmtpClient::connect(address)?;
                for number in (sender..).step_by(SENDERS) {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let account = number % accounts.len();
                    let began = Instant::now();
                    let text = message(&format!("s{number}"));
                    let (code, said) = smtp.deliver("s@example.test", &[&accounts[account]], &text)?;
                    ensure!(code == 250, "a delivery was answered {code} {said}");
                    measured.add(began.elapsed())?;
                    delivered[account].fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(PACE);
                }
                Ok(())
            }));
        }
        for account in accounts.iter().take(READERS) {
            let (address, account, stop) = (cluster.imap(0), account.clone(), clients.stop.clone());
            let measured = clients.changes.clone();
            clients.threads.push(std::thread::spawn(move || {
                let mut imap = ImapClient::login(address, &account, PASSWORD)?;
                let mut flagged = 0;
                while !stop.load(Ordering::SeqCst) {
                    let messages = imap.select("INBOX")?;
                    if messages > 0 {
                        flagged = flagged % messages + 1;
                        let began = Instant::now();
                        imap.ok(&format!("STORE {flagged} +FLAGS.SILENT (\\Flagged)"))?;
                        measured.add(began.elapsed())?;
                        let seen = imap.ok(&format!("FETCH {flagged} (FLAGS BODY.PEEK[])"))?;
                        ensure!(!seen.is_empty(), "message {flagged} of {messages} is not there");
                    }
                    std::thread::sleep(PACE);
                }
                Ok(())
            }));
        }
        clients
    }

    /// Waits until the deliveries are as many.
    fn reach(&self, deliveries: u64) -> Result<()> {
        eventually("mail is delivered", PATIENCE, || {
            ensure!(self.threads.iter().all(|thread| !thread.is_finished()), "a client ended");
            let all: u64 = self.counts().iter().sum();
            ensure!(all >= deliveries, "{all} of {deliveries}");
            Ok(())
        })
    }

    fn counts(&self) -> Vec<u64> {
        self.delivered.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client panicked"))?.context("a client saw an error")?;
        }
        Ok(())
    }

    fn begin_phase(&self, phase: usize) {
        for measured in [&self.deliveries, &self.changes] {
            measured.phase.store(phase, Ordering::SeqCst);
        }
    }

    fn tell(&self) -> Result<()> {
        for (what, measured) in [("deliveries", &self.deliveries), ("flag changes", &self.changes)] {
            let (before, during) = (measured.of(0)?, measured.of(1)?);
            println!("{what}: before {before}; while nodes come and go {during}");
        }
        Ok(())
    }
}

/// Each account has what was acknowledged, once.
fn check_mail(cluster: &Cluster, accounts: &[String], delivered: &[u64]) -> Result<()> {
    for (account, count) in accounts.iter().zip(delivered) {
        let mut imap = cluster.imap_client(account)?;
        let messages = u64::from(imap.select("INBOX")?);
        ensure!(messages == *count, "{account} has {messages} messages, and {count} were acknowledged");
    }
    Ok(())
}

fn nodes_come_and_go(options: ClusterOptions) -> Result<()> {
    let accounts = setting("MAILRING_ACCOUNTS", 20) as usize;
    let messages = setting("MAILRING_MESSAGES", 200);
    let idle = setting("MAILRING_IDLE", 40) as usize;
    let mut cluster = Cluster::start(options)?;
    let locals: Vec<String> = (0..accounts).map(|account| format!("user{account}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    let accounts: Vec<String> = locals.iter().map(|local| format!("{local}@example.test")).collect();
    let idlers = Idlers::start(cluster.imap(0), &accounts, idle)?;
    let mut clients = Clients::start(&cluster, &accounts);
    clients.reach(messages / 2)?;
    clients.begin_phase(1);
    let began = Instant::now();
    for _ in 0..2 {
        let node = cluster.add_node()?;
        let name = cluster.nodes[node].name.clone();
        cluster.admin(&["node", "join", &name, "--wait"])?;
    }
    for node in [0, 4] {
        let name = cluster.nodes[node].name.clone();
        cluster.admin(&["node", "drain", &name, "--wait"])?;
        eventually("it holds nothing and has no vote", PATIENCE, || {
            cluster.admin(&["node", "remove", &name]).map(drop)
        })?;
        cluster.nodes[node].terminate()?;
    }
    clients.begin_phase(2);
    println!("3 nodes became 4, 5, 4 and 3 in {:.1?}", began.elapsed());
    clients.reach(messages)?;
    clients.stop()?;
    let delivered = clients.counts();
    eventually("every session was told of every message", PATIENCE, || idlers.check(&delivered))?;
    idlers.stop();
    clients.tell()?;
    check_mail(&cluster, &accounts, &delivered)?;
    cluster.compare_replicas().map(drop)
}

#[test]
fn no_session_notices_that_nodes_come_and_go() -> Result<()> {
    nodes_come_and_go(ClusterOptions::DEFAULT)
}

#[test]
fn no_session_notices_that_nodes_come_and_go_with_one_replica() -> Result<()> {
    nodes_come_and_go(ClusterOptions { replicas: 1, ..ClusterOptions::DEFAULT })
}

/// A client amid a large FETCH, which it reads slowly, and sessions in IDLE, while every node is restarted in turn.
#[test]
fn a_rolling_restart_cuts_off_nobody() -> Result<()> {
    /// Of each large message.
    const LARGE_OCTETS: usize = 5 << 20;
    let large = setting("MAILRING_LARGE", 8) as usize;
    let idle = setting("MAILRING_IDLE", 40) as usize;
    let mut cluster = Cluster::start(ClusterOptions::DEFAULT)?;
    cluster.add_accounts(&["large", "user0", "user1", "user2"])?;
    let accounts: Vec<String> = (0..3).map(|account| format!("user{account}@example.test")).collect();
    let mut bodies = Vec::new();
    let mut writer = cluster.imap_client("large@example.test")?;
    for number in 0..large {
        let mut body = format!("Subject: large {number}\r\n\r\n").into_bytes();
        while body.len() < LARGE_OCTETS {
            let line = format!("{number} {:060}\r\n", body.len());
            body.extend_from_slice(line.as_bytes());
        }
        writer.append("INBOX", &body)?;
        bodies.push(body);
    }
    let idlers = Idlers::start(cluster.imap(0), &accounts, idle)?;
    let mut clients = Clients::start(&cluster, &accounts);
    let restarted = Arc::new(AtomicUsize::new(0));
    let reading = std::thread::spawn({
        let (address, restarted, nodes) = (cluster.imap(0), restarted.clone(), cluster.nodes.len());
        move || -> Result<()> {
            let mut reader = ImapClient::login(address, "large@example.test", PASSWORD)?;
            reader.select("INBOX")?;
            let tag = reader.send("FETCH 1:* BODY.PEEK[]")?;
            for (number, body) in bodies.iter().enumerate() {
                // A share of it before each restart, and the rest behind the last.
                let turn = number * (nodes + 1) / bodies.len();
                eventually("the nodes before were restarted", PATIENCE, || {
                    ensure!(restarted.load(Ordering::SeqCst) >= turn);
                    Ok(())
                })?;
                let response = reader.response()?;
                ensure!(response.len() > body.len(), "{:?}", String::from_utf8_lossy(&response));
                let found = response.windows(body.len()).any(|part| part == &body[..]);
                ensure!(found, "message {} came damaged", number + 1);
            }
            let (_, tagged) = reader.finish(&tag)?;
            ensure!(tagged.starts_with("OK"), "{tagged}");
            Ok(())
        }
    });
    clients.reach(20)?;
    for node in 0..cluster.nodes.len() {
        let name = cluster.nodes[node].name.clone();
        eventually("everything goes on without it", PATIENCE, || {
            cluster.admin(&["node", "safe-to-stop", &name]).map(drop)
        })?;
        let began = Instant::now();
        cluster.nodes[node].terminate()?;
        cluster.nodes[node].start()?;
        cluster.nodes[node].wait_ready()?;
        println!("{name} was away for {:.1?}", began.elapsed());
        restarted.fetch_add(1, Ordering::SeqCst);
    }
    reading.join().map_err(|_| anyhow!("the reader panicked"))??;
    clients.reach(60)?;
    clients.stop()?;
    let delivered = clients.counts();
    eventually("every session was told of every message", PATIENCE, || idlers.check(&delivered))?;
    idlers.stop();
    check_mail(&cluster, &accounts, &delivered)
}

/// Another session expunges what a client reads slowly, and what it has not come to yet; then the node dies that the first
/// message comes from, and holds it.
#[test]
fn a_fetch_whose_message_is_expunged_and_whose_leader_dies_amid_it_comes_whole() -> Result<()> {
    /// Far more than all buffers before a client that does not read.
    const LARGE_OCTETS: usize = 32 << 20;
    const READER: &str = "reader@example.test";
    let mut cluster = Cluster::start(ClusterOptions::DEFAULT)?;
    cluster.add_accounts(&["reader"])?;
    let mut writer = cluster.imap_client(READER)?;
    let mut large = b"Subject: large\r\n\r\n".to_vec();
    while large.len() < LARGE_OCTETS {
        let line = format!("{:060}\r\n", large.len());
        large.extend_from_slice(line.as_bytes());
    }
    let small = message("small");
    for body in [&large, &small, &small] {
        writer.append("INBOX", body)?;
    }
    writer.select("INBOX")?;
    let leader = eventually("every shard is led where it should be", PATIENCE, || {
        let led = cluster.accounts_by_leader()?;
        led.iter().position(|accounts| accounts.iter().any(|account| account == READER)).context("no leader")
    })?;
    let mut reader = ImapClient::login(cluster.imap(0), READER, PASSWORD)?;
    reader.select("INBOX")?;
    let tag = reader.send("FETCH 1:3 BODY.PEEK[]")?;
    ensure!(reader.line.exact(1)? == b"*", "the fetch is under way");
    writer.ok("STORE 1:2 +FLAGS.SILENT (\\Deleted)")?;
    writer.ok("EXPUNGE")?;
    cluster.nodes[leader].kill()?;
    let first = reader.response()?;
    ensure!(first.starts_with(b" 1 FETCH") && first.windows(large.len()).any(|part| part == &large[..]), "not whole");
    let (untagged, tagged) = reader.finish(&tag)?;
    ensure!(tagged.starts_with("OK"), "{tagged}");
    // The second one, which had not begun, is left out (RFC 2180 §4.1.2).
    let fetched: Vec<&Vec<u8>> = untagged.iter().filter(|line| line.windows(6).any(|part| part == b"BODY[]")).collect();
    let is_third =
        |line: &&Vec<u8>| line.starts_with(b"* 3 FETCH") && line.windows(small.len()).any(|part| part == small);
    ensure!(fetched.len() == 1 && fetched.iter().all(is_third), "{} came", fetched.len());
    let mut goes_on = 0;
    for node in &cluster.nodes {
        goes_on += node.logged("the rest of an expunged message is read")?;
    }
    ensure!(goes_on > 0, "all of it had come before the node died");
    // The session goes on, and is told.
    let untagged = reader.ok("NOOP")?;
    ensure!(untagged.iter().filter(|line| line.ends_with(b" EXPUNGE")).count() == 2, "{} responses", untagged.len());
    cluster.check_logs(&ALLOWED)
}
