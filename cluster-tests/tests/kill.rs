//! Processes die by SIGKILL while mail is delivered, read, flagged, moved and expunged: nothing that was acknowledged is
//! lost or there twice, and in the end all replicas are the same.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Instant;

use anyhow::Result;
use cluster_tests::{ClusterOptions, PROVEN, Random, Scenario, rounds, setting};

const SHARDS: u32 = ClusterOptions::DEFAULT.shards;
const PAIRS: [[usize; 2]; 3] = [[0, 1], [1, 2], [2, 0]];

#[test]
fn nodes_killed_under_load_lose_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 1), setting("MAILRING_ROUNDS", rounds(3, 6)));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(ClusterOptions { routers: 2, ..ClusterOptions::default() }, seed, rounds)?;
    let mut led = 0;
    for round in 0..rounds {
        scenario.progress_by(PROVEN)?;
        // Every third time two of the three die, each pair in its turn.
        let pair = (round % 3 == 2).then(|| PAIRS[(round / 3 % 3) as usize]);
        let of = pair.as_ref().map_or(&[0, 1, 2][..], |pair| &pair[..]);
        let victim = victim(&scenario, &mut random, of)?;
        led += scenario.cluster.led()?[victim];
        let killed = Instant::now();
        scenario.cluster.nodes[victim].kill()?;
        scenario.service_back_after("a node was killed", killed)?;
        scenario.progress_by(PROVEN)?;
        if let Some(pair) = pair {
            // The first is still away: no majority until this one is back.
            let second = if pair[0] == victim { pair[1] } else { pair[0] };
            let killed = Instant::now();
            scenario.cluster.nodes[second].kill()?;
            scenario.cluster.nodes[second].start()?;
            scenario.service_back_after("a second node was killed and started", killed)?;
        }
        scenario.cluster.nodes[victim].start()?;
        for node in &mut scenario.cluster.nodes {
            node.wait_ready()?;
        }
    }
    println!("a node that was killed first led {:.1} of {SHARDS} shards on average", led as f64 / rounds as f64);
    scenario.finish()
}

/// Three times out of four one that leads most shards, else any.
fn victim(scenario: &Scenario, random: &mut Random, of: &[usize]) -> Result<usize> {
    let led = scenario.cluster.led()?;
    let most = if random.below(4) < 3 { of.iter().map(|node| led[*node]).max().unwrap_or(0) } else { 0 };
    let first: Vec<usize> = of.iter().copied().filter(|node| led[*node] >= most).collect();
    Ok(first[random.below(first.len() as u64) as usize])
}

#[test]
fn everything_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 2), setting("MAILRING_ROUNDS", rounds(2, 3)));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let killed = Instant::now();
        scenario.cluster.kill_all()?;
        scenario.cluster.start_all()?;
        scenario.service_back_after("all was killed and started", killed)?;
        scenario.cluster.wait_ready()?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_single_replica_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 3), setting("MAILRING_ROUNDS", rounds(2, 4)));
    let options = ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let killed = Instant::now();
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.nodes[0].start()?;
        scenario.service_back_after("the node was killed and started", killed)?;
        scenario.cluster.nodes[0].wait_ready()?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_router_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 4), setting("MAILRING_ROUNDS", rounds(2, 3)));
    let options = ClusterOptions { nodes: 1, replicas: 1, routers: 2, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        let victim = (round % 2) as usize;
        scenario.cluster.routers[victim].kill()?;
        scenario.cluster.routers[victim].start()?;
        scenario.cluster.routers[victim].wait_ready()?;
    }
    scenario.progress()?;
    scenario.finish()
}
