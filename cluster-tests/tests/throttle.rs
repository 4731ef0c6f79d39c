//! Copies of shards yield while mail is slower than it is without them, and go on.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, Link, Scenario, check_large, eventually, fill};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// So that a copy of the large shard lasts until mail is slow; and twice the least that a copy falls to.
const COPY_OCTETS_PER_S: u64 = 2 << 20;
const SLOWED: &str = "mailring_node_copies_slowed";
const COPIED: &str = "mailring_node_copied_octets";
/// Less than what [`fill`] stores in it.
const LARGE_OCTETS: u64 = 28 << 20;
/// Each way between nodes. There and back takes less than the 500 ms that a heartbeat may take.
const DELAY: Duration = Duration::from_millis(200);

/// Copies of the large shard: on a busy machine mail may be slow without them too, and one ends before it has yielded.
const COPIES_MAX: usize = 4;

/// A figure of all nodes together: another may lead the shard for a while.
fn total(cluster: &Cluster, figure: &str) -> Result<u64> {
    cluster.nodes.iter().map(|node| node.metric(figure)).sum()
}

fn has_moved(cluster: &Cluster) -> Result<()> {
    let status = cluster.json(&["rebalance", "status"])?;
    ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
    Ok(())
}

/// All of the large shard has been copied, or nearly.
fn is_copied(cluster: &Cluster, begun: u64) -> Result<bool> {
    Ok(total(cluster, COPIED)? > begun + LARGE_OCTETS)
}

/// Copies the shard from one node to the other while mail between the founders is slow. Whether the copy has yielded: if
/// not, it is over. `begun`: what had been copied before.
fn copy_yields(scenario: &Scenario, shard: &str, (from, to): (&str, &str), begun: u64) -> Result<bool> {
    let cluster = &scenario.cluster;
    // What mail takes without copies is known by now.
    scenario.progress()?;
    cluster.admin(&["shard", "move", shard, "--from", from, "--to", to])?;
    eventually("the copy is on its way", PATIENCE, || {
        ensure!(total(cluster, COPIED)? > begun, "nothing is copied");
        Ok(())
    })?;
    let founders = ["node1", "node2", "node3"];
    for (place, one) in founders.iter().enumerate() {
        founders.iter().skip(place + 1).for_each(|other| cluster.proxy.between(one, other, Link::Delay(DELAY)));
    }
    let before = total(cluster, SLOWED)?;
    eventually("it yields, or is over", PATIENCE, || {
        // To half of what is allowed, which is the least; and it may rise again at once.
        if total(cluster, SLOWED)? > before && total(cluster, "mailring_node_copy_waits")? > 0 {
            return Ok(true);
        }
        if is_copied(cluster, begun)? {
            return Ok(false);
        }
        bail!("no copy is slowed")
    })
}

#[test]
fn copies_yield_while_mail_is_slow() -> Result<()> {
    let options = ClusterOptions {
        proxied: true,
        move_octets_per_s: Some(COPY_OCTETS_PER_S),
        leaders_look_s: Some(0),
        ..ClusterOptions::DEFAULT
    };
    let (mut scenario, seed, _) = Scenario::seeded(options, 99, 1)?;
    fill(&scenario.cluster, seed)?;
    let target = scenario.cluster.add_node()?;
    let cluster = &scenario.cluster;
    let target = cluster.nodes[target].name.as_str();
    cluster.admin(&["node", "join", target, "--no-rebalance"])?;
    let accounts = cluster.json(&["account", "list"])?;
    let user = accounts.as_array().context("accounts")?.iter().find(|one| one["account"] == "user0@example.test");
    let large = user.context("user0")?["shard"].as_u64().context("shard")?.to_string();
    let follower = eventually("it is led where it should be", PATIENCE, || {
        let shard = cluster.json(&["shard", "show", &large])?;
        ensure!(shard["leader"] == shard["wanted"][0], "{shard}");
        shard["wanted"][1].as_str().map(str::to_owned).context("a name")
    })?;
    let mut way = (follower.as_str(), target);
    let mut copies = 1;
    let mut begun = total(cluster, COPIED)?;
    while !copy_yields(&scenario, &large, way, begun)? {
        ensure!(copies < COPIES_MAX, "none of {copies} copies has yielded");
        cluster.proxy.heal();
        eventually("the shard has moved", PATIENCE, || has_moved(cluster))?;
        (way, copies, begun) = ((way.1, way.0), copies + 1, total(cluster, COPIED)?);
    }
    let copied = total(cluster, COPIED)?;
    eventually("it goes on nevertheless", PATIENCE, || {
        ensure!(total(cluster, COPIED)? > copied || is_copied(cluster, begun)?, "nothing more is copied");
        Ok(())
    })?;
    println!("copy {copies} yielded; {} octets were copied until then", copied - begun);
    cluster.proxy.heal();
    eventually("the shard has moved", PATIENCE, || has_moved(cluster))?;
    check_large(cluster, seed)?;
    scenario.finish()
}
