//! A node is ready (`/readyz`) though it is without replicas that should be on it: whoever waits for it to serve what it has
//! would wait for what nobody can give it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, delete_disk, eventually};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Each shard has one replica, and no node is given up.
fn start(options: ClusterOptions) -> Result<Cluster> {
    Cluster::start(ClusterOptions { replicas: 1, shards: 6, dead_node_s: Some(0), ..options })
}

fn shards(cluster: &Cluster) -> Result<Vec<Value>> {
    Ok(cluster.json(&["shard", "list"])?.as_array().context("shards")?.clone())
}

#[test]
fn a_node_is_ready_while_a_shard_that_is_to_come_to_it_cannot_come() -> Result<()> {
    let mut cluster = start(ClusterOptions::DEFAULT)?;
    let (to, from) = (cluster.nodes[0].name.clone(), cluster.nodes[2].name.clone());
    let rows = shards(&cluster)?;
    let row = rows.iter().find(|row| row["wanted"][0] == from).context("it has none")?;
    let shard = row["shard"].as_u64().context("shard")?;
    // Only what has begun can move: whoever has been elsewhere has.
    let other = cluster.nodes[1].name.clone();
    for (from, to) in [(&from, &other), (&other, &from)] {
        cluster.admin(&["shard", "move", &shard.to_string(), "--from", from, "--to", to, "--wait"])?;
    }
    cluster.nodes[2].kill()?;
    cluster.admin(&["shard", "move", &shard.to_string(), "--from", &from, "--to", &to])?;
    eventually("it is wanted there", PATIENCE, || {
        let rows = shards(&cluster)?;
        let row = rows.iter().find(|row| row["shard"] == shard).context("the shard")?;
        ensure!(row["wanted"][0] == to && row["missing"][0] == to, "{row}");
        Ok(())
    })?;
    cluster.nodes[0].wait_ready()?;
    cluster.nodes[0].terminate()?;
    cluster.nodes[0].start()?;
    cluster.nodes[0].wait_ready()?;
    ensure!(shards(&cluster)?.iter().any(|row| row["shard"] == shard && row["missing"][0] == to), "it has come");
    // From where it is after all.
    cluster.nodes[2].start()?;
    eventually("it comes", PATIENCE, || cluster.admin(&["status"]))?;
    cluster.check_logs(&["node does not answer"])
}

#[test]
fn a_node_is_ready_while_a_replica_is_lost_that_nothing_can_replace() -> Result<()> {
    let mut cluster = start(ClusterOptions { nodes: 1, volumes: 2, ..ClusterOptions::DEFAULT })?;
    let name = cluster.nodes[0].name.clone();
    let disk = cluster.disk_directories(0)[1].clone();
    cluster.nodes[0].kill()?;
    delete_disk(&disk)?;
    cluster.nodes[0].start()?;
    cluster.nodes[0].wait_ready()?;
    let missing = |row: &&Value| row["missing"][0] == *name;
    let (all, lost) = (shards(&cluster)?, shards(&cluster)?.iter().filter(missing).count());
    ensure!(lost > 0 && lost < all.len(), "{all:?}");
    let status = cluster.json(&["rebalance", "status"])?;
    let because = format!("node {name} has lost it");
    let told = status["lost"].as_array().context("lost")?;
    ensure!(told.len() == lost && told.iter().all(|one| one["because"] == *because), "{status}");
    Ok(())
}
