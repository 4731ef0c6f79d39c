//! Processes die by SIGKILL while mail is delivered, read, flagged, moved and expunged: nothing that was acknowledged is
//! lost or there twice, and in the end all replicas are the same.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use anyhow::Result;
use cluster_tests::{ClusterOptions, Random, Scenario, Times, setting};

#[test]
fn nodes_killed_under_load_lose_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 1), setting("MAILRING_ROUNDS", 6));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(ClusterOptions { routers: 2, ..ClusterOptions::default() }, seed, rounds)?;
    let [mut without, mut after] = [Times::default(), Times::default()];
    for round in 0..rounds {
        scenario.progress()?;
        let victim = random.below(3) as usize;
        scenario.cluster.nodes[victim].kill()?;
        without.push(scenario.service_back()?);
        scenario.progress()?;
        // Every third time a second one dies when the first is still away: no majority for a while.
        if round % 3 == 2 {
            let second = (victim + 1) % 3;
            scenario.cluster.nodes[second].kill()?;
            scenario.cluster.nodes[second].start()?;
        }
        scenario.cluster.nodes[victim].start()?;
        if round % 3 == 2 {
            after.push(scenario.service_back()?);
        }
        for node in &mut scenario.cluster.nodes {
            node.wait_ready()?;
        }
    }
    println!("every account is served again without the node that died: {without}");
    println!("and after two that died are started again: {after}");
    scenario.finish()
}

#[test]
fn everything_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 2), setting("MAILRING_ROUNDS", 3));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    let mut after = Times::default();
    for _ in 0..rounds {
        scenario.progress()?;
        scenario.cluster.kill_all()?;
        scenario.cluster.start_all()?;
        after.push(scenario.service_back()?);
        scenario.cluster.wait_ready()?;
    }
    println!("every account is served after all processes are started again: {after}");
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_single_replica_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 3), setting("MAILRING_ROUNDS", 4));
    let options = ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    let mut after = Times::default();
    for _ in 0..rounds {
        scenario.progress()?;
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.nodes[0].start()?;
        after.push(scenario.service_back()?);
        scenario.cluster.nodes[0].wait_ready()?;
    }
    println!("every account is served after the only node is started again: {after}");
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_router_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 4), setting("MAILRING_ROUNDS", 3));
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
