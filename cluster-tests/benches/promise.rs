//! What the promise costs: durable deliveries over SMTP to one copy, to a mirror, to three replicas and to three replicas
//! on mirrors, side by side in one run. `cargo bench -p cluster-tests --bench promise` prints a Markdown table.
//!
//! All four clusters run all the time, and those that are not measured have nothing to do. They take turns, so that what
//! else the machine does meets all of them; `MAILRING_ROUNDS` says how often. Figures are medians over the rounds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{Cluster, ClusterOptions, SmtpClient, setting};

const SHARDS: u32 = 16;
const ACCOUNTS: usize = 100;
const MESSAGE_OCTETS: usize = 4 * 1024;
const SESSIONS: [usize; 3] = [1, 10, 40];
/// With the start of the clusters, three rounds of twelve measurements stay below three minutes.
const RUN: Duration = Duration::from_millis(2_500);
const WARM_UP: Duration = Duration::from_millis(500);
const ROUNDS: u64 = 3;

/// One way to keep mail.
struct Configuration {
    name: &'static str,
    options: ClusterOptions,
}

/// One measurement of one configuration.
struct Figures {
    deliveries_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Rounds of the volumes' writers, over all nodes: each syncs every disk of its volume once.
    synced_writes: u64,
    messages: u64,
}

fn configurations() -> [Configuration; 4] {
    let options = |nodes: usize, mirror: bool| ClusterOptions {
        nodes,
        replicas: nodes as u32,
        shards: SHARDS,
        mirror,
        ..ClusterOptions::default()
    };
    [
        Configuration { name: "one copy", options: options(1, false) },
        Configuration { name: "mirror", options: options(1, true) },
        Configuration { name: "R = 3", options: options(3, false) },
        Configuration { name: "R = 3 on mirrors", options: options(3, true) },
    ]
}

fn main() -> Result<()> {
    // `cargo test` builds and runs benches too; only `cargo bench` passes this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let rounds = setting("MAILRING_ROUNDS", ROUNDS).max(1);
    let configurations = configurations();
    let locals: Vec<String> = (0..ACCOUNTS).map(|i| format!("user{i}")).collect();
    let mut clusters = Vec::new();
    for Configuration { options, .. } in &configurations {
        let cluster = Cluster::start(*options)?;
        cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
        clusters.push(cluster);
    }
    let mut measured: Vec<Vec<Figures>> = Vec::new();
    measured.resize_with(configurations.len() * SESSIONS.len(), Vec::new);
    let mut sent = 0;
    for _ in 0..rounds {
        for (s, sessions) in SESSIONS.into_iter().enumerate() {
            for (c, cluster) in clusters.iter().enumerate() {
                deliver(cluster, sessions, WARM_UP, &mut sent)?;
                measured[c * SESSIONS.len() + s].push(measure(cluster, sessions, &mut sent)?);
            }
        }
    }
    print(&configurations, &measured, rounds);
    Ok(())
}

fn measure(cluster: &Cluster, sessions: usize, sent: &mut usize) -> Result<Figures> {
    let before = synced_writes(cluster)?;
    let (mut latencies, took) = deliver(cluster, sessions, RUN, sent)?;
    let after = synced_writes(cluster)?;
    latencies.sort();
    let at = |share: f64| -> Result<f64> {
        let latency = latencies.get((latencies.len() as f64 * share) as usize).context("nothing was delivered")?;
        Ok(latency.as_secs_f64() * 1_000.0)
    };
    Ok(Figures {
        deliveries_per_s: latencies.len() as f64 / took.as_secs_f64(),
        p50_ms: at(0.5)?,
        p99_ms: at(0.99)?,
        synced_writes: after - before,
        messages: latencies.len() as u64,
    })
}

/// Over all nodes, since they started.
fn synced_writes(cluster: &Cluster) -> Result<u64> {
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&cluster.admin(&["node", "list", "--json"])?)?;
    nodes.iter().map(|node| node["synced_writes"].as_u64().with_context(|| format!("synced_writes: {node}"))).sum()
}

/// Sessions that deliver one message after the other for a while, each message another one: how long each took from
/// MAIL to its 250, and how long all of it took, until the last session had its answer.
fn deliver(cluster: &Cluster, sessions: usize, run: Duration, sent: &mut usize) -> Result<(Vec<Duration>, Duration)> {
    let clients = (0..sessions).map(|_| SmtpClient::connect(cluster.smtp(0))).collect::<Result<Vec<_>>>()?;
    let (first, start) = (*sent, Instant::now());
    let latencies = std::thread::scope(|scope| -> Result<Vec<Vec<Duration>>> {
        let deliver = |session: usize, mut client: SmtpClient| -> Result<Vec<Duration>> {
            let mut latencies = Vec::new();
            while start.elapsed() < run {
                let number = first + session + latencies.len() * sessions;
                let (to, message) = (format!("user{}@example.test", number % ACCOUNTS), message(number));
                let since = Instant::now();
                let (code, text) = client.deliver("sender@example.test", &[&to], &message)?;
                ensure!(code == 250, "{code} {text}");
                latencies.push(since.elapsed());
            }
            Ok(latencies)
        };
        let workers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(session, client)| scope.spawn(move || deliver(session, client)))
            .collect();
        workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow!("a session panicked"))?).collect()
    })?;
    let took = start.elapsed();
    *sent += sessions * latencies.iter().map(Vec::len).max().unwrap_or(0);
    Ok((latencies.into_iter().flatten().collect(), took))
}

fn message(number: usize) -> Vec<u8> {
    let mut message =
        format!("From: sender@example.test\r\nTo: user@example.test\r\nSubject: {number:012}\r\n\r\n").into_bytes();
    while message.len() < MESSAGE_OCTETS - 2 {
        let line = (MESSAGE_OCTETS - 2 - message.len()).min(76);
        message.extend(std::iter::repeat_n(b'x', line.saturating_sub(2)));
        message.extend_from_slice(b"\r\n");
    }
    message
}

fn print(configurations: &[Configuration], measured: &[Vec<Figures>], rounds: u64) {
    println!(
        "Durable deliveries of {MESSAGE_OCTETS} octets to {ACCOUNTS} accounts, medians of {rounds} rounds of {RUN:?} \
         (in brackets: lowest to highest)\n"
    );
    println!(
        "| kept as | sessions | deliveries/s | p50 ms | p99 ms | synced writes a message, on each node \
         | fsyncs a message, over all disks |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let rows = configurations.iter().flat_map(|one| SESSIONS.into_iter().map(move |sessions| (one, sessions)));
    for ((Configuration { name, options }, sessions), figures) in rows.zip(measured) {
        let all = |value: &dyn Fn(&Figures) -> f64| {
            let mut values: Vec<f64> = figures.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |value: &dyn Fn(&Figures) -> f64| all(value).get(figures.len() / 2).copied().unwrap_or(f64::NAN);
        let rates = all(&|one| one.deliveries_per_s);
        let (lowest, highest) = (rates.first().unwrap_or(&f64::NAN), rates.last().unwrap_or(&f64::NAN));
        let synced = median(&|one| one.synced_writes as f64 / one.messages as f64);
        let disks_of_a_node = if options.mirror { 2.0 } else { 1.0 };
        println!(
            "| {name} | {sessions} | {:.0} ({lowest:.0}–{highest:.0}) | {:.1} | {:.1} | {:.2} | {:.2} |",
            median(&|one| one.deliveries_per_s),
            median(&|one| one.p50_ms),
            median(&|one| one.p99_ms),
            synced / options.nodes as f64,
            synced * disks_of_a_node,
        );
    }
}
