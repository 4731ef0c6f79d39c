//! Processes die by SIGKILL while mail is delivered, read, flagged, moved and expunged: nothing that was acknowledged is
//! lost or there twice, and in the end all replicas are the same.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Load, LoadOptions, PASSWORD, Random, check, eventually};

const ACCOUNTS: usize = 8;
/// Bounds only how long a test waits before it gives up; what the service took is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Changes that are acknowledged between two faults.
const PROGRESS: u64 = 40;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn start(options: ClusterOptions, seed: u64) -> Result<(Cluster, Load)> {
    let cluster = Cluster::start(options)?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|i| format!("user{i}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    let load = Load::start(LoadOptions {
        seed,
        accounts: locals.iter().map(|local| format!("{local}@example.test")).collect(),
        smtp: (0..options.routers).map(|router| cluster.smtp(router)).collect(),
        imap: (0..options.routers).map(|router| cluster.imap(router)).collect(),
        writers: 6,
        readers: 2,
    })?;
    Ok((cluster, load))
}

/// Waits until `PROGRESS` more changes are acknowledged.
fn progress(load: &Load) -> Result<()> {
    let goal = load.acknowledged() + PROGRESS;
    eventually("changes are acknowledged", PATIENCE, || {
        let acknowledged = load.acknowledged();
        ensure!(acknowledged >= goal, "{acknowledged} of {goal}");
        Ok(())
    })
}

/// How long until every account takes mail and is read.
fn service_back(cluster: &Cluster) -> Result<Duration> {
    let since = Instant::now();
    for account in 0..ACCOUNTS {
        let user = format!("user{account}@example.test");
        eventually("the account is served", PATIENCE, || {
            let mut imap = cluster_tests::ImapClient::login(cluster.imap(0), &user, PASSWORD)?;
            imap.select("INBOX")?;
            imap.ok("CREATE probe").map(drop).or_else(|_| imap.ok("STATUS probe (MESSAGES)").map(drop))?;
            imap.ok("DELETE probe").map(drop)
        })?;
    }
    Ok(since.elapsed())
}

/// Stops the load and checks everything.
fn finish(cluster: &Cluster, load: &mut Load, seed: u64, rounds: u64) -> Result<()> {
    let again = format!("MAILRING_SEED={seed} MAILRING_ROUNDS={rounds}");
    load.stop().with_context(|| again.clone())?;
    eventually("every mailbox is readable", PATIENCE, || load.read_all())?;
    let faults = check(&load.history.entries());
    ensure!(faults.is_empty(), "{again}: {} faults:\n{}", faults.len(), faults.join("\n"));
    let same = eventually("all replicas are the same", PATIENCE, || cluster.compare_replicas());
    let octets = same.with_context(|| again.clone())?;
    println!("{again}: {} changes acknowledged, replicas of {octets} octets are the same", load.acknowledged());
    Ok(())
}

#[test]
fn nodes_killed_under_load_lose_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 1), setting("MAILRING_ROUNDS", 6));
    let mut random = Random::new(seed, u64::MAX);
    let (mut cluster, mut load) = start(ClusterOptions { routers: 2, ..ClusterOptions::default() }, seed)?;
    let mut service = Vec::new();
    for round in 0..rounds {
        progress(&load)?;
        let victim = random.below(3) as usize;
        cluster.nodes[victim].kill()?;
        service.push(service_back(&cluster)?);
        progress(&load)?;
        // Every third time a second one dies as soon as the first is started again: no majority for a while.
        if round % 3 == 2 {
            let second = (victim + 1) % 3;
            cluster.nodes[second].kill()?;
            cluster.nodes[second].start()?;
        }
        cluster.nodes[victim].start()?;
        for node in &mut cluster.nodes {
            node.wait_ready()?;
        }
    }
    service.sort();
    println!("service back after a node died: median {:?}, longest {:?}", service[service.len() / 2], service.last());
    finish(&cluster, &mut load, seed, rounds)
}

#[test]
fn everything_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 2), setting("MAILRING_ROUNDS", 3));
    let (mut cluster, mut load) = start(ClusterOptions::default(), seed)?;
    for _ in 0..rounds {
        progress(&load)?;
        for node in &mut cluster.nodes {
            node.kill()?;
        }
        cluster.start_all()?;
        cluster.wait_ready()?;
    }
    progress(&load)?;
    finish(&cluster, &mut load, seed, rounds)
}

#[test]
fn a_single_replica_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 3), setting("MAILRING_ROUNDS", 4));
    let (mut cluster, mut load) = start(ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::default() }, seed)?;
    for _ in 0..rounds {
        progress(&load)?;
        cluster.nodes[0].kill()?;
        cluster.nodes[0].start()?;
        cluster.nodes[0].wait_ready()?;
    }
    progress(&load)?;
    finish(&cluster, &mut load, seed, rounds)
}

#[test]
fn a_router_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 4), setting("MAILRING_ROUNDS", 3));
    let options = ClusterOptions { nodes: 1, replicas: 1, routers: 2, ..ClusterOptions::default() };
    let (mut cluster, mut load) = start(options, seed)?;
    for round in 0..rounds {
        progress(&load)?;
        let victim = (round % 2) as usize;
        cluster.routers[victim].kill()?;
        cluster.routers[victim].start()?;
        cluster.routers[victim].wait_ready()?;
    }
    progress(&load)?;
    finish(&cluster, &mut load, seed, rounds)
}
