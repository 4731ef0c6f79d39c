//! The power of disks is cut under load, of all of them at once too: whatever was acknowledged is there when it comes
//! back. This is what "250 means synced" is worth; see `cluster-tests/src/disk.rs` for how.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use anyhow::Result;
use cluster_tests::{ClusterOptions, Random, Scenario, disks_possible, rounds, setting};

/// Cuts the power of these nodes' disks, one right after the other, and brings everything back.
fn cut(scenario: &mut Scenario, nodes: &[usize]) -> Result<()> {
    let cluster = &mut scenario.cluster;
    for &node in nodes {
        cluster.disks[node].cut()?;
    }
    for &node in nodes {
        cluster.nodes[node].kill()?;
        cluster.disks[node].restore()?;
    }
    cluster.start_all()?;
    cluster.wait_ready()
}

#[test]
fn all_disks_of_three_nodes_lose_power_at_once_and_nothing_is_lost() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 31), setting("MAILRING_ROUNDS", rounds(2, 3)));
    let mut scenario = Scenario::start(ClusterOptions { own_disks: true, ..ClusterOptions::default() }, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        cut(&mut scenario, &[0, 1, 2])?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn the_disk_of_one_of_three_nodes_loses_power_and_nobody_notices() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 32), setting("MAILRING_ROUNDS", rounds(1, 2)));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(ClusterOptions { own_disks: true, ..ClusterOptions::default() }, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let victim = random.below(3) as usize;
        scenario.cluster.disks[victim].cut()?;
        println!("served {:?} after a disk lost its power", scenario.service_back()?);
        scenario.progress()?;
        cut(&mut scenario, &[victim])?;
    }
    scenario.finish()
}

#[test]
fn the_only_disk_of_a_single_replica_loses_power_and_nothing_is_lost() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 33), setting("MAILRING_ROUNDS", rounds(2, 3)));
    let options = ClusterOptions { nodes: 1, replicas: 1, own_disks: true, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        cut(&mut scenario, &[0])?;
    }
    scenario.progress()?;
    scenario.finish()
}
