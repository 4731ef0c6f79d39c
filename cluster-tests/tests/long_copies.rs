//! Copies of shards that take long: what dies meanwhile for good does not keep the shard from going elsewhere, and what is
//! written meanwhile does not have them begin anew.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, Link, eventually, noise};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// So few that a member that is behind is soon further behind than its leader has entries for it.
const LOG_ENTRIES_KEPT: u64 = 1;
/// Several times what stays for a member that is behind.
const CHANGES: u32 = 200;
/// More than a heartbeat may take, there and back.
const DELAY: Duration = Duration::from_millis(400);
/// Longer than a member counts as one that answers, though it does not.
const DELAYED: Duration = Duration::from_secs(5);
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

/// A move of the one shard, whose snapshot is on its way; the place of its target among the nodes.
fn copying(cluster: &Cluster) -> Result<usize> {
    let to = move_it(cluster)?;
    eventually("it is copied", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"][0]["octets_copied"].as_u64().is_some_and(|octets| octets > 0), "{status}");
        Ok(())
    })?;
    Ok(to)
}

/// One entry of the shard's log.
fn change(imap: &mut ImapClient, number: u32) -> Result<()> {
    let sign = if number.is_multiple_of(2) { '+' } else { '-' };
    imap.ok(&format!("UID STORE 1 {sign}FLAGS.SILENT (\\Flagged)")).map(drop)
}

/// Snapshots of the one shard that a node has installed.
fn installed(cluster: &Cluster, node: usize) -> Result<usize> {
    let log = cluster.nodes[node].log()?;
    Ok(log.lines().filter(|line| line.contains("snapshot installed") && line.contains("group=0 ")).count())
}

/// Where a copy that was under way has come to its end, by the snapshot that it began with.
fn check_copied_once(cluster: &Cluster, to: usize, imap: &mut ImapClient) -> Result<()> {
    eventually("the shard has moved", PATIENCE, || check_settled(cluster))?;
    let installed = installed(cluster, to)?;
    ensure!(installed == 1, "{installed} snapshots were needed");
    ensure!(imap.body(1)?.is_some_and(|body| body == noise(1, 500_000)), "other octets");
    cluster.compare_replicas()?;
    cluster.check_logs(&[])
}

#[test]
fn a_copy_during_which_much_is_written_needs_no_other_snapshot() -> Result<()> {
    let options = ClusterOptions { nodes: 4, log_entries_kept: Some(LOG_ENTRIES_KEPT), ..ClusterOptions::default() };
    let (cluster, mut imap) = start(options)?;
    let to = copying(&cluster)?;
    // However fast this machine writes, all of it is written meanwhile.
    cluster.admin(&["rebalance", "pause"])?;
    (0..CHANGES).try_for_each(|number| change(&mut imap, number))?;
    ensure!(installed(&cluster, to)? == 0, "the copy was over before");
    cluster.admin(&["rebalance", "resume"])?;
    check_copied_once(&cluster, to, &mut imap)
}

#[test]
fn a_copy_to_a_node_that_is_not_heard_for_a_while_needs_no_other_snapshot() -> Result<()> {
    let options = ClusterOptions {
        nodes: 4,
        proxied: true,
        log_entries_kept: Some(LOG_ENTRIES_KEPT),
        ..ClusterOptions::default()
    };
    let (cluster, mut imap) = start(options)?;
    let to = copying(&cluster)?;
    let shards = cluster.json(&["shard", "list"])?;
    let leader = shards[0]["leader"].as_str().context("no leader")?;
    cluster.proxy.between(leader, &cluster.nodes[to].name, Link::Delay(DELAY));
    let (began, mut changes) = (Instant::now(), 0);
    while began.elapsed() < DELAYED {
        change(&mut imap, changes)?;
        changes += 1;
    }
    ensure!(installed(&cluster, to)? == 0, "the copy was over before");
    cluster.proxy.heal();
    println!("{changes} changes while the target was not heard");
    check_copied_once(&cluster, to, &mut imap)
}
