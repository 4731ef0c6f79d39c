//! Copies of shards that take long: what dies meanwhile for good does not keep the shard from going elsewhere.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, eventually, noise};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
const USER: &str = "user0@example.test";

/// One shard, which takes half a minute to copy, and a session of its one account.
fn start(options: ClusterOptions) -> Result<(Cluster, ImapClient)> {
    let cluster = Cluster::start(ClusterOptions { shards: 1, move_octets_per_s: Some(200_000), ..options })?;
    cluster.add_accounts(&["user0"])?;
    let mut imap = cluster.imap_client(USER)?;
    for seed in 1..=12 {
        imap.append("INBOX", &noise(seed, 500_000))?;
    }
    imap.select("INBOX")?;
    Ok((cluster, imap))
}

/// Moves the one shard from a node that does not lead it to one without it; the place of that among the nodes.
fn move_it(cluster: &Cluster) -> Result<usize> {
    let shards = cluster.json(&["shard", "list"])?;
    let names = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let (wanted, leader) = (names(&shards[0]["wanted"]), shards[0]["leader"].as_str().context("no leader")?);
    let from = wanted.iter().find(|name| *name != leader).context("nobody follows")?;
    let to = cluster.nodes.iter().position(|node| !wanted.contains(&node.name)).context("no free node")?;
    cluster.admin(&["shard", "move", "0", "--from", from, "--to", &cluster.nodes[to].name])?;
    Ok(to)
}

/// Whether the shard has as many replicas as it should have, all where they should be.
fn check_settled(cluster: &Cluster) -> Result<()> {
    let status = cluster.json(&["rebalance", "status"])?;
    ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
    let shards = cluster.json(&["shard", "list"])?;
    let count = |list: &str| shards[0][list].as_array().map(Vec::len);
    ensure!(count("voters") == Some(3) && count("learners") == Some(0), "{shards}");
    Ok(())
}

#[test]
fn a_shard_whose_target_dies_for_good_while_it_is_copied_goes_elsewhere() -> Result<()> {
    let (mut cluster, mut imap) =
        start(ClusterOptions { nodes: 5, dead_node_s: Some(5), ..ClusterOptions::default() })?;
    let to = move_it(&cluster)?;
    eventually("it is copied", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"][0]["phase"] == "copying", "{status}");
        let shards = cluster.json(&["shard", "list"])?;
        ensure!(shards[0]["learners"].as_array().is_some_and(|learners| learners.len() == 1), "{shards}");
        Ok(())
    })?;
    cluster.nodes[to].kill()?;
    let gone = cluster.nodes[to].name.clone();
    eventually("it is where it can be", PATIENCE, || {
        check_settled(&cluster)?;
        let shards = cluster.json(&["shard", "list"])?;
        let wanted = shards[0]["wanted"].as_array().context("wanted")?;
        ensure!(wanted.len() == 3 && !wanted.iter().any(|name| *name == *gone), "{shards}");
        Ok(())
    })?;
    ensure!(imap.body(1)?.is_some_and(|body| body == noise(1, 500_000)), "other octets");
    cluster.check_logs(&["node does not answer", "node has been away for too long"])
}
