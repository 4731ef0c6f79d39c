//! Copies of shards yield while mail is slower than it is without them, and go on.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{ClusterOptions, Link, Scenario, check_large, eventually, fill};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// So that a copy of the large shard lasts until mail is slow.
const COPY_OCTETS_PER_S: u64 = 2 << 20;
/// Below this no copy falls: it would never catch up.
const LEAST_OCTETS_PER_S: u64 = 1 << 20;
/// Each way between nodes: below what a heartbeat may take there and back.
const DELAY: Duration = Duration::from_millis(300);

#[test]
fn copies_yield_while_mail_is_slow() -> Result<()> {
    let options =
        ClusterOptions { proxied: true, move_octets_per_s: Some(COPY_OCTETS_PER_S), ..ClusterOptions::DEFAULT };
    let (mut scenario, seed, _) = Scenario::seeded(options, 99, 1)?;
    fill(&scenario.cluster, seed)?;
    let target = scenario.cluster.add_node()?;
    let cluster = &scenario.cluster;
    let target = cluster.nodes[target].name.as_str();
    let accounts = cluster.json(&["account", "list"])?;
    let user = accounts.as_array().context("accounts")?.iter().find(|one| one["account"] == "user0@example.test");
    let large = user.context("user0")?["shard"].as_u64().context("shard")?.to_string();
    let (leader, follower) = eventually("it is led where it should be", PATIENCE, || {
        let shard = cluster.json(&["shard", "show", &large])?;
        ensure!(shard["leader"] == shard["wanted"][0], "{shard}");
        let name = |of: &serde_json::Value| of.as_str().map(str::to_owned).context("a name");
        Ok((name(&shard["leader"])?, name(&shard["wanted"][1])?))
    })?;
    let leader = cluster.nodes.iter().find(|node| node.name == leader).context("the leader")?;
    // What mail takes without copies is known by now.
    scenario.progress()?;
    cluster.admin(&["shard", "move", &large, "--from", &follower, "--to", target])?;
    eventually("the copy is on its way", PATIENCE, || {
        ensure!(leader.metric("mailring_node_copied_octets")? > 0, "nothing is copied");
        Ok(())
    })?;
    let founders = ["node1", "node2", "node3"];
    for (place, one) in founders.iter().enumerate() {
        founders.iter().skip(place + 1).for_each(|other| cluster.proxy.between(one, other, Link::Delay(DELAY)));
    }
    let (copied, rate) = eventually("it yields", PATIENCE, || {
        let slowed = leader.metric("mailring_node_copies_slowed")?;
        let rate = leader.metric("mailring_node_copy_octets_per_second")?;
        ensure!(slowed > 0 && rate == LEAST_OCTETS_PER_S, "slowed {slowed} times, to {rate} octets a second");
        ensure!(leader.metric("mailring_node_copy_waits")? > 0, "it never waited");
        Ok((leader.metric("mailring_node_copied_octets")?, rate))
    })?;
    eventually("it goes on nevertheless", PATIENCE, || {
        ensure!(leader.metric("mailring_node_copied_octets")? > copied, "nothing more is copied");
        Ok(())
    })?;
    println!("{copied} octets were copied when the rate had fallen to {rate} octets a second");
    cluster.proxy.heal();
    eventually("the shard has moved", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })?;
    check_large(cluster, seed)?;
    scenario.finish()
}
