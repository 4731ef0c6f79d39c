//! Nodes come and go while mail flows: shards move onto them and away, and no client notices.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{ClusterOptions, Random, Scenario, eventually, setting};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);

fn json(scenario: &Scenario, arguments: &[&str]) -> Result<Value> {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    Ok(serde_json::from_str(&scenario.cluster.admin(&arguments)?)?)
}

/// How many replicas each active node has.
fn shares(scenario: &Scenario) -> Result<Vec<u64>> {
    let status = json(scenario, &["rebalance", "status"])?;
    let nodes = status["nodes"].as_array().context("nodes")?;
    let active = nodes.iter().filter(|node| node["eligible"] == true);
    active.map(|node| node["replicas"].as_u64().context("replicas")).collect()
}

/// Every shard is where it should be, nobody holds one that he should not, and shares differ by one at most.
fn wait_settled(scenario: &Scenario) -> Result<()> {
    eventually("all shards are where they should be", PATIENCE, || {
        let status = json(scenario, &["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
        scenario.cluster.admin(&["status"])?;
        let shards = json(scenario, &["shard", "list"])?;
        for shard in shards.as_array().context("shards")? {
            let (voters, learners) = (shard["voters"].as_array(), shard["learners"].as_array());
            let wanted = shard["wanted"].as_array().map(Vec::len);
            ensure!(voters.map(Vec::len) == wanted && learners.is_some_and(Vec::is_empty), "{shard}");
        }
        let nodes = json(scenario, &["node", "list"])?;
        let held: u64 = nodes.as_array().context("nodes")?.iter().filter_map(|node| node["replicas"].as_u64()).sum();
        let wanted = shares(scenario)?;
        ensure!(held == wanted.iter().sum::<u64>(), "{held} replicas are held: {nodes}");
        let (least, most) = (wanted.iter().min(), wanted.iter().max());
        ensure!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{wanted:?}");
        Ok(())
    })
}

/// 3 nodes become 4, 5, and 3 again.
fn come_and_go(options: ClusterOptions, seed: u64, rounds: u64) -> Result<()> {
    let mut scenario = Scenario::start(options, seed, rounds)?;
    scenario.progress()?;
    for _ in 0..rounds {
        for _ in 0..2 {
            let node = scenario.cluster.add_node()?;
            let name = scenario.cluster.nodes[node].name.clone();
            scenario.cluster.admin(&["node", "join", &name, "--wait"])?;
            wait_settled(&scenario)?;
            scenario.progress()?;
        }
        // The first of all goes, and the last that came.
        let last = scenario.cluster.nodes.len() - 1;
        let running = (0..last).find(|node| scenario.cluster.nodes[*node].pid().is_some()).context("no node")?;
        for node in [running, last] {
            let name = scenario.cluster.nodes[node].name.clone();
            scenario.cluster.admin(&["node", "drain", &name, "--wait"])?;
            wait_settled(&scenario)?;
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
    let (seed, rounds) = (setting("MAILRING_SEED", 91), setting("MAILRING_ROUNDS", 1));
    come_and_go(ClusterOptions { log_entries_kept: Some(60), ..ClusterOptions::default() }, seed, rounds)
}

#[test]
fn shards_with_one_replica_move_too() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 92), setting("MAILRING_ROUNDS", 1));
    come_and_go(ClusterOptions { replicas: 1, ..ClusterOptions::default() }, seed, rounds)
}

#[test]
fn a_rebalance_is_planned_paused_resumed_and_undone() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 93), setting("MAILRING_ROUNDS", 1));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    scenario.progress()?;
    let node = scenario.cluster.add_node()?;
    let name = scenario.cluster.nodes[node].name.clone();
    let before = json(&scenario, &["shard", "list"])?;
    for _ in 0..rounds {
        let plan = json(&scenario, &["rebalance", "plan"])?;
        // A quarter of 8 shards with 3 replicas each, and none between the others.
        let moves = plan["moves"].as_array().context("moves")?;
        ensure!(moves.len() == 6 && moves.iter().all(|one| one["to"] == serde_json::json!([name])), "{plan}");
        let joined = json(&scenario, &["node", "join", &name])?;
        ensure!(joined["state"] == "running" && joined["shards_total"] == 6, "{joined}");
        let paused = json(&scenario, &["rebalance", "pause"])?;
        ensure!(paused["state"] == "paused", "{paused}");
        scenario.progress()?;
        scenario.cluster.admin(&["rebalance", "resume"])?;
        scenario.cluster.admin(&["rebalance", "abort"])?;
        eventually("what was under way is undone", PATIENCE, || {
            let status = json(&scenario, &["rebalance", "status"])?;
            ensure!(status["state"] == "aborted" && status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
    }
    let after = json(&scenario, &["shard", "list"])?;
    let of_first = |shards: &Value| shards.as_array().map_or(0, Vec::len);
    ensure!(of_first(&before) == of_first(&after));
    scenario.cluster.admin(&["node", "join", &name, "--wait"])?;
    wait_settled(&scenario)?;
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
        let status = json(scenario, &["rebalance", "status"])?;
        let is_over = status["moves"].as_array().is_some_and(Vec::is_empty);
        ensure!(is_over || (moment.has_come)(&status), "{status}");
        Ok(())
    })
}

/// At single steps of one move: `move_steps`.
#[test]
fn processes_die_while_shards_move() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 94), setting("MAILRING_ROUNDS", 4));
    let options = ClusterOptions { log_entries_kept: Some(60), ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
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
        wait_settled(&scenario)?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_leader_paused_while_its_shard_moves_away_acknowledges_nothing_when_it_goes_on() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 95), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions { nodes: 4, ..ClusterOptions::default() }, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let paused = scenario.cluster.first_leader()?;
        let name = scenario.cluster.nodes[paused].name.clone();
        let led: Vec<Value> = json(&scenario, &["shard", "list"])?
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
            let status = json(&scenario, &["rebalance", "status"])?;
            ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
        println!("{} shards moved away from a paused leader; served {:?}", led.len(), scenario.service_back()?);
        scenario.cluster.nodes[paused].signal("CONT")?;
        scenario.progress()?;
        eventually("it has dropped what moved away", PATIENCE, || {
            let nodes = json(&scenario, &["node", "list"])?;
            let held: u64 = nodes.as_array().context("nodes")?.iter().filter_map(|one| one["replicas"].as_u64()).sum();
            ensure!(held == 24, "{held} replicas are held");
            scenario.cluster.admin(&["status"]).map(drop)
        })?;
        scenario.cluster.admin(&["rebalance", "apply", "--wait"])?;
        wait_settled(&scenario)?;
    }
    scenario.finish()
}
