//! A step of a move whose majority hangs ends in bounded time, and other shards of the same leader go on moving.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, Scenario, check_large, eventually, fill};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// So that the large shard is on its way for longer than a step may take.
const COPY_OCTETS_PER_S: u64 = 1 << 20;

fn names(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Of a shard with two replicas: its leader and the other one, once it is led where it should be.
fn leader_and_follower(shard: &Value) -> Result<(String, String)> {
    match names(&shard["wanted"])[..] {
        [leader, follower] if shard["leader"] == leader => Ok((leader.to_owned(), follower.to_owned())),
        _ => bail!("not led where it should be: {shard}"),
    }
}

fn number(shard: &Value) -> Result<String> {
    Ok(shard["shard"].as_u64().context("shard")?.to_string())
}

fn shards(cluster: &Cluster) -> Result<Vec<Value>> {
    let shards = cluster.json(&["shard", "list"])?.as_array().context("shards")?.clone();
    shards.iter().try_for_each(|shard| leader_and_follower(shard).map(drop))?;
    Ok(shards)
}

fn wait_moved(cluster: &Cluster) -> Result<()> {
    eventually("the moves have ended", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })
}

#[test]
fn a_step_that_hangs_ends_in_time_and_other_shards_go_on_moving() -> Result<()> {
    let options = ClusterOptions {
        replicas: 2,
        shards: 16,
        move_octets_per_s: Some(COPY_OCTETS_PER_S),
        ..ClusterOptions::DEFAULT
    };
    let (mut scenario, seed, _) = Scenario::seeded(options, 98, 1)?;
    fill(&scenario.cluster, seed)?;
    let target = scenario.cluster.add_node()?;
    let target = scenario.cluster.nodes[target].name.clone();
    scenario.cluster.admin(&["node", "join", &target, "--no-rebalance"])?;
    let cluster = &scenario.cluster;
    let accounts = cluster.json(&["account", "list"])?;
    let user = accounts.as_array().context("accounts")?.iter().find(|one| one["account"] == "user0@example.test");
    let large = user.context("user0")?["shard"].as_u64().context("shard")?;
    let all = eventually("all is led where it should be", PATIENCE, || shards(cluster))?;
    let (leader, stays) = leader_and_follower(all.get(large as usize).context("the large shard")?)?;
    let led = all.iter().filter(|shard| shard["leader"] == *leader && shard["shard"] != large);
    let mut led: Vec<(String, String)> =
        led.map(|shard| Ok((number(shard)?, leader_and_follower(shard)?.1))).collect::<Result<_>>()?;
    // With another follower than the large one's, which is the one that will hang.
    led.sort_by_key(|(_, follower)| *follower == stays);
    let (small, mut hangs) = led.first().context("it leads nothing else")?.clone();
    if hangs == stays {
        let free = cluster.nodes.iter().map(|node| &node.name).find(|name| ![&leader, &stays, &target].contains(name));
        hangs.clone_from(free.context("no free node")?);
        cluster.admin(&["shard", "move", &small, "--from", &stays, "--to", &hangs])?;
        wait_moved(cluster)?;
    }
    let leader = cluster.nodes.iter().position(|node| node.name == leader).context("the leader")?;
    let stopped = cluster.nodes.iter().position(|node| node.name == hangs).context("the one to hang")?;

    let large = large.to_string();
    cluster.admin(&["shard", "move", &large, "--from", &stays, "--to", &target])?;
    cluster.admin(&["shard", "move", &small, "--from", &hangs, "--to", &target])?;
    let logged = |what: &str, shard: &str, step: &str| -> Result<()> {
        let (log, field) = (cluster.nodes[leader].log()?, format!("shard={shard}"));
        let is_it = |line: &str| {
            line.contains(what) && line.contains(step) && line.split_whitespace().any(|word| word == field)
        };
        ensure!(log.lines().any(is_it), "not logged: {what} {field} {step}");
        Ok(())
    };
    eventually("the first step is taken", PATIENCE, || logged("membership changed a step", &small, "Begin("))?;
    // The next one needs its agreement: there are two replicas.
    cluster.nodes[stopped].signal("STOP")?;
    eventually("a step is given up", PATIENCE, || logged("step not taken in time", &small, ""))?;
    // Its copy rests at first, since shards have no leader; not for ever, since no copy can mend them.
    eventually("the other shard has moved meanwhile", PATIENCE, || {
        let shard = cluster.json(&["shard", "show", &large])?;
        let voters = names(&shard["voters"]);
        ensure!(voters.len() == 2 && voters.contains(&target.as_str()), "{shard}");
        Ok(())
    })?;
    cluster.nodes[stopped].signal("CONT")?;
    wait_moved(cluster)?;
    scenario.service_back()?;
    scenario.progress()?;
    check_large(&scenario.cluster, seed)?;
    scenario.finish()
}
