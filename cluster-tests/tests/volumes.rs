//! Nodes with several volumes: shards are spread over them, and a volume that is lost takes only its own replicas with
//! it, which come back from the other nodes.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Scenario, delete_disk, disks_possible, eventually, rounds, setting};

const PATIENCE: Duration = Duration::from_secs(120);

/// How many replicas each volume of node 1 has, and whether it is down.
fn volumes(scenario: &Scenario) -> Result<Vec<(u64, bool)>> {
    let rows = scenario.cluster.volumes("node1")?;
    rows.iter().map(|row| Ok((row["replicas"].as_u64().context("replicas")?, row["state"] == "down"))).collect()
}

#[test]
fn a_lost_volume_takes_only_its_replicas_along_and_they_come_back_from_others() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 71), setting("MAILRING_ROUNDS", rounds(1, 2)));
    let options = ClusterOptions { volumes: 3, shards: 9, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    eventually("shards are spread evenly", PATIENCE, || {
        let found = volumes(&scenario)?;
        ensure!(found == [(3, false); 3], "{found:?}");
        Ok(())
    })?;
    for round in 0..rounds {
        scenario.progress()?;
        // Not the first, which has the directory's replica.
        let lost = 1 + (round % 2) as usize;
        let disk = scenario.cluster.disk_directories(0)[lost].clone();
        scenario.cluster.nodes[0].kill()?;
        delete_disk(&disk)?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        eventually("the other volumes have its replicas", PATIENCE, || {
            let found = volumes(&scenario)?;
            let replicas: u64 = found.iter().map(|(replicas, _)| replicas).sum();
            ensure!(replicas == 9 && found[lost] == (0, true), "{found:?}");
            Ok(())
        })?;
        scenario.progress()?;
        fs::create_dir(&disk)?;
        let number = (lost + 1).to_string();
        scenario.cluster.admin(&["volume", "replace", "node1", &number])?;
        eventually("all is well", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_volume_that_comes_back_after_its_replicas_were_rebuilt_brings_nothing_back() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 72), setting("MAILRING_ROUNDS", 1));
    let options = ClusterOptions { volumes: 2, shards: 6, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let disk = scenario.cluster.disk_directories(0)[1].clone();
        let aside = disk.with_extension("aside");
        scenario.cluster.nodes[0].kill()?;
        fs::rename(&disk, &aside)?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        eventually("the first volume has all replicas", PATIENCE, || {
            let found = volumes(&scenario)?;
            ensure!(found == [(6, false), (0, true)], "{found:?}");
            Ok(())
        })?;
        eventually("they vote again", PATIENCE, || {
            let shards: serde_json::Value =
                serde_json::from_str(&scenario.cluster.admin(&["shard", "list", "--json"])?)?;
            let whole = |shard: &serde_json::Value| shard["voters"].as_array().is_some_and(|voters| voters.len() == 3);
            ensure!(shards.as_array().is_some_and(|shards| shards.iter().all(whole)), "{shards}");
            Ok(())
        })?;
        scenario.progress()?;
        scenario.cluster.nodes[0].kill()?;
        fs::rename(&aside, &disk)?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        eventually("the volume is back, with nothing in it", PATIENCE, || {
            let found = volumes(&scenario)?;
            ensure!(found == [(6, false), (0, false)], "{found:?}");
            Ok(())
        })?;
        eventually("all is well", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_volume_that_is_deleted_while_the_node_runs_is_replaced_while_it_runs() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 74), setting("MAILRING_ROUNDS", 1));
    let options = ClusterOptions { volumes: 2, shards: 6, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let disk = scenario.cluster.disk_directories(0)[1].clone();
        delete_disk(&disk)?;
        fs::create_dir(&disk)?;
        eventually("the volume is given up", PATIENCE, || {
            let found = volumes(&scenario)?;
            ensure!(found[1] == (0, true), "{found:?}");
            Ok(())
        })?;
        eventually("an empty disk is taken in its place", PATIENCE, || {
            scenario.cluster.admin(&["volume", "replace", "node1", "2"]).map(drop)
        })?;
        eventually("all is well", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn another_volume_named_first_is_refused() -> Result<()> {
    let options = ClusterOptions { nodes: 1, replicas: 1, volumes: 2, ..ClusterOptions::DEFAULT };
    let mut cluster = Cluster::start(options)?;
    cluster.nodes[0].kill()?;
    cluster.nodes[0].reconfigure("disk-a", "disk-x")?;
    cluster.nodes[0].reconfigure("disk-b", "disk-a")?;
    cluster.nodes[0].reconfigure("disk-x", "disk-b")?;
    cluster.nodes[0].start()?;
    let (code, said) = cluster.nodes[0].ended()?;
    ensure!(code == Some(1) && said.contains("is another volume named first?"), "{code:?} {said}");
    Ok(())
}

#[test]
fn a_volume_whose_disk_fails_while_the_node_runs_is_given_up_and_the_node_goes_on() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 73), setting("MAILRING_ROUNDS", 1));
    let options = ClusterOptions { volumes: 2, shards: 6, own_disks: true, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        // The second of node 1.
        scenario.cluster.disks[1].cut()?;
        println!("served {:?} after a volume failed", scenario.service_back()?);
        eventually("the first volume has all replicas", PATIENCE, || {
            let found = volumes(&scenario)?;
            ensure!(found == [(6, false), (0, true)], "{found:?}");
            Ok(())
        })?;
        scenario.progress()?;
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.disks[1].restore()?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        eventually("all is well", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    scenario.progress()?;
    scenario.finish()
}
