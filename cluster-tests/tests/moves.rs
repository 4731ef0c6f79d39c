//! Nodes come and go while mail flows: shards move onto them and away, and no client notices.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{ClusterOptions, Random, Scenario, eventually, is_long, rounds};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);

/// 3 nodes become 4, 5, and 3 again.
fn come_and_go(options: ClusterOptions, seed: u64, rounds: u64) -> Result<()> {
    let (mut scenario, _, rounds) = Scenario::seeded(options, seed, rounds)?;
    scenario.progress()?;
    for _ in 0..rounds {
        for _ in 0..2 {
            let node = scenario.cluster.add_node()?;
            let name = scenario.cluster.nodes[node].name.clone();
            scenario.cluster.admin(&["node", "join", &name, "--wait"])?;
            scenario.cluster.wait_settled()?;
            scenario.progress()?;
        }
        // The first of all goes, and the last that came.
        let last = scenario.cluster.nodes.len() - 1;
        let running = (0..last).find(|node| scenario.cluster.nodes[*node].pid().is_some()).context("no node")?;
        for node in [running, last] {
            let name = scenario.cluster.nodes[node].name.clone();
            scenario.cluster.admin(&["node", "drain", &name, "--wait"])?;
            scenario.cluster.wait_settled()?;
            eventually("it does not vote in the directory", PATIENCE, || {
                scenario.cluster.admin(&["node", "remove", &name]).map(drop)
            })?;
            scenario.cluster.nodes[node].terminate()?;
            scenario.progress()?;
        }
    }
    ensure!(scenario.load.errors() == 0, "{} operations failed", scenario.load.errors());
    scenario.finish()
}

#[test]
fn nodes_come_and_go_under_load_and_no_client_sees_an_error() -> Result<()> {
    let shards = if is_long() { ClusterOptions::DEFAULT.shards } else { 4 };
    come_and_go(ClusterOptions { shards, log_entries_kept: Some(60), ..ClusterOptions::default() }, 91, 1)
}

#[test]
fn shards_with_one_replica_move_too() -> Result<()> {
    come_and_go(ClusterOptions { replicas: 1, ..ClusterOptions::default() }, 92, 1)
}

#[test]
fn a_rebalance_is_planned_paused_resumed_and_undone() -> Result<()> {
    let (mut scenario, _, rounds) = Scenario::seeded(ClusterOptions::default(), 93, 1)?;
    scenario.progress()?;
    let node = scenario.cluster.add_node()?;
    let name = scenario.cluster.nodes[node].name.clone();
    let before = scenario.cluster.json(&["shard", "list"])?;
    scenario.cluster.admin(&["node", "join", &name, "--no-rebalance"])?;
    for _ in 0..rounds {
        let plan = scenario.cluster.json(&["rebalance", "plan"])?;
        // A quarter of 8 shards with 3 replicas each, and none between the others.
        let moves = plan["moves"].as_array().context("moves")?;
        ensure!(moves.len() == 6 && moves.iter().all(|one| one["to"] == serde_json::json!([name])), "{plan}");
        let estimate = &plan["estimate"];
        ensure!(estimate["seconds"].as_u64() > Some(0) && estimate["octets_per_s"].as_u64() > Some(0), "{plan}");
        let joined = scenario.cluster.json(&["node", "join", &name])?;
        ensure!(joined["state"] == "running" && joined["shards_total"] == 6, "{joined}");
        let paused = scenario.cluster.json(&["rebalance", "pause"])?;
        ensure!(paused["state"] == "paused", "{paused}");
        let refused = scenario.cluster.admin(&["node", "drain", &name]);
        ensure!(
            refused.is_err_and(|error| format!("{error:#}").contains("paused")),
            "a drain ends an operator's pause"
        );
        scenario.progress()?;
        scenario.cluster.admin(&["rebalance", "resume"])?;
        scenario.cluster.admin(&["rebalance", "abort"])?;
        eventually("what was under way is undone", PATIENCE, || {
            let status = scenario.cluster.json(&["rebalance", "status"])?;
            ensure!(status["state"] == "aborted" && status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
    }
    let after = scenario.cluster.json(&["shard", "list"])?;
    let of_first = |shards: &Value| shards.as_array().map_or(0, Vec::len);
    ensure!(of_first(&before) == of_first(&after));
    scenario.cluster.admin(&["node", "join", &name, "--wait"])?;
    scenario.cluster.wait_settled()?;
    ensure!(scenario.load.errors() == 0, "{} operations failed", scenario.load.errors());
    scenario.finish()
}

/// When somebody dies: how far the moves are.
struct Moment {
    what: &'static str,
    has_come: fn(&Value) -> bool,
}

const MOMENTS: [Moment; 3] = [
    Moment { what: "a shard is copied", has_come: |status| count(status, "copying") > 0 },
    Moment { what: "a shard changes its replicas", has_come: |status| count(status, "switching") > 0 },
    Moment {
        what: "a shard has moved",
        has_come: |status| status["shards_done"].as_u64().is_some_and(|done| done > 0),
    },
];

fn count(status: &Value, phase: &str) -> usize {
    status["moves"].as_array().map_or(0, |moves| moves.iter().filter(|one| one["phase"] == phase).count())
}

/// Waits for a moment; it may be over by now, when all has moved.
fn wait_for(scenario: &Scenario, moment: &Moment) -> Result<()> {
    eventually(moment.what, PATIENCE, || {
        let status = scenario.cluster.json(&["rebalance", "status"])?;
        let is_over = status["moves"].as_array().is_some_and(Vec::is_empty);
        ensure!(is_over || (moment.has_come)(&status), "{status}");
        Ok(())
    })
}

/// At single steps of one move: `move_steps`.
#[test]
fn processes_die_while_shards_move() -> Result<()> {
    let options = ClusterOptions { log_entries_kept: Some(60), ..ClusterOptions::default() };
    let (mut scenario, seed, rounds) = Scenario::seeded(options, 94, rounds(2, 4))?;
    let mut random = Random::new(seed, 7);
    let joined = scenario.cluster.add_node()?;
    let name = scenario.cluster.nodes[joined].name.clone();
    for round in 0..rounds {
        scenario.progress()?;
        // Forth and back again.
        scenario.cluster.admin(&["node", if round % 2 == 0 { "join" } else { "drain" }, &name])?;
        for _ in 0..2 {
            let moment = &MOMENTS[random.below(MOMENTS.len() as u64) as usize];
            wait_for(&scenario, moment)?;
            let victim = random.below(scenario.cluster.nodes.len() as u64) as usize;
            scenario.cluster.nodes[victim].kill()?;
            scenario.cluster.start_all()?;
            scenario.cluster.wait_ready()?;
        }
        scenario.cluster.wait_settled()?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_leader_paused_while_its_shard_moves_away_acknowledges_nothing_when_it_goes_on() -> Result<()> {
    let options = ClusterOptions { nodes: 4, ..ClusterOptions::default() };
    let (mut scenario, _, rounds) = Scenario::seeded(options, 95, rounds(1, 2))?;
    for _ in 0..rounds {
        scenario.progress()?;
        let paused = scenario.cluster.first_leader()?;
        let name = scenario.cluster.nodes[paused].name.clone();
        let led: Vec<Value> = scenario
            .cluster
            .json(&["shard", "list"])?
            .as_array()
            .context("shards")?
            .iter()
            .filter(|shard| shard["leader"] == *name)
            .cloned()
            .collect();
        scenario.cluster.nodes[paused].signal("STOP")?;
        for shard in &led {
            let number = shard["shard"].as_u64().context("shard")?.to_string();
            let wanted = shard["wanted"].as_array().context("wanted")?;
            let names = scenario.cluster.nodes.iter().map(|node| node.name.clone());
            let free = names.into_iter().find(|node| !wanted.iter().any(|one| one == node)).context("no free node")?;
            eventually("the move is taken", PATIENCE, || {
                scenario.cluster.admin(&["shard", "move", &number, "--from", &name, "--to", &free]).map(drop)
            })?;
        }
        eventually("the shards have moved", PATIENCE, || {
            let status = scenario.cluster.json(&["rebalance", "status"])?;
            ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
        println!("{} shards moved away from a paused leader; served {:?}", led.len(), scenario.service_back()?);
        scenario.cluster.nodes[paused].signal("CONT")?;
        scenario.progress()?;
        eventually("it has dropped what moved away", PATIENCE, || {
            let nodes = scenario.cluster.json(&["node", "list"])?;
            let held: u64 = nodes.as_array().context("nodes")?.iter().filter_map(|one| one["replicas"].as_u64()).sum();
            ensure!(held == 24, "{held} replicas are held");
            scenario.cluster.admin(&["status"]).map(drop)
        })?;
        scenario.cluster.admin(&["rebalance", "apply", "--wait"])?;
        scenario.cluster.wait_settled()?;
    }
    scenario.finish()
}
