//! A node dies for good: what it held is made anew on others, another votes in the directory in its place, and when it is
//! started again after its removal it brings nothing back. And one that was given up comes back too early.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Scenario, eventually};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longer than an election, so that what the dead node led is led again before anything moves; and than a busy machine
/// lets a node wait, so that no other is given up.
const DEAD_NODE_S: u64 = 12;
/// Starts of a node that was removed: the others may hold an election amid one of them because the machine is busy, but
/// not amid each.
const STARTS_MAX: usize = 4;
/// Voters of a directory with fewer than five nodes.
const VOTERS: usize = 3;

/// Of the nodes that vote in the directory, the one that leads most shards.
fn leading_voter(cluster: &Cluster) -> Result<usize> {
    let (voters, led) = (cluster.directory_voters()?, cluster.led()?);
    let votes = |node: &usize| voters.contains(&cluster.nodes[*node].name);
    let victim = (0..led.len()).filter(votes).max_by_key(|node| led[*node]).context("nobody votes")?;
    ensure!(voters.len() == VOTERS && led[victim] > 0, "{voters:?} vote, led are {led:?}");
    Ok(victim)
}

fn check_voters(cluster: &Cluster, dead: &str) -> Result<()> {
    let voters = cluster.directory_voters()?;
    ensure!(voters.len() == VOTERS && voters.iter().all(|voter| voter != dead), "{voters:?} vote in the directory");
    Ok(())
}

#[test]
fn what_a_dead_node_held_is_made_anew_elsewhere_and_it_brings_nothing_back() -> Result<()> {
    let options =
        ClusterOptions { nodes: 4, dead_node_s: Some(DEAD_NODE_S), leaders_look_s: Some(0), ..ClusterOptions::DEFAULT };
    // Each round takes a node away; three are needed.
    let (mut scenario, _, _) = Scenario::seeded(options, 96, 1)?;
    scenario.progress()?;
    let victim = eventually("a node leads and votes", PATIENCE, || leading_voter(&scenario.cluster))?;
    let name = scenario.cluster.nodes[victim].name.clone();
    scenario.cluster.nodes[victim].kill()?;
    println!("served {:?} after {name} died", scenario.service_back()?);
    // What comes now is of the moves.
    scenario.load.forget_errors();
    eventually("its replicas are on others", PATIENCE, || {
        ensure!(scenario.cluster.node(&name)?["state"] == "draining", "it is not given up");
        scenario.cluster.check_placed()
    })?;
    eventually("another votes in its place", PATIENCE, || check_voters(&scenario.cluster, &name))?;
    scenario.progress()?;
    ensure!(scenario.load.errors() == 0, "{} operations failed while replicas were made anew", scenario.load.errors());

    eventually("it is removed", PATIENCE, || scenario.cluster.admin(&["node", "remove", &name]).map(drop))?;
    scenario.cluster.wait_settled()?;
    scenario.cluster.wait_led()?;
    for start in 1.. {
        let before = scenario.cluster.terms()?;
        scenario.cluster.nodes[victim].start()?;
        let (code, said) = scenario.cluster.nodes[victim].ended()?;
        ensure!(code == Some(1) && said.contains("was removed from the cluster"), "ended with {code:?}: {said}");
        scenario.progress()?;
        scenario.cluster.wait_settled()?;
        let after = scenario.cluster.terms()?;
        if before == after {
            break;
        }
        ensure!(start < STARTS_MAX, "it took part in elections: {before:?}, then {after:?}");
    }
    ensure!(scenario.load.errors() == 0, "{} operations failed", scenario.load.errors());
    scenario.finish()
}

#[test]
fn a_node_that_comes_back_while_it_is_replaced_leaves_as_many_replicas_as_are_wanted() -> Result<()> {
    let options = ClusterOptions {
        nodes: 4,
        dead_node_s: Some(DEAD_NODE_S),
        // Three zones, the first with two nodes: one of them votes, and one of them has a replica of each shard.
        zones: &["a", "a", "b", "c"],
        log_entries_kept: Some(60),
        ..ClusterOptions::DEFAULT
    };
    let (mut scenario, _, rounds) = Scenario::seeded(options, 97, 2)?;
    for round in 0..rounds {
        let (victim, other) = [("node1", "node2"), ("node2", "node1")][(round % 2) as usize];
        let place = (round % 2) as usize;
        scenario.progress()?;
        eventually("one node of each zone votes", PATIENCE, || {
            let voters = scenario.cluster.directory_voters()?;
            let apart = ["node3", "node4"].iter().all(|name| voters.iter().any(|voter| voter == name));
            ensure!(voters.len() == VOTERS && apart, "{voters:?}");
            Ok(())
        })?;
        scenario.cluster.nodes[place].kill()?;
        eventually("it is given up", PATIENCE, || {
            ensure!(scenario.cluster.node(victim)?["state"] == "draining", "it is not");
            Ok(())
        })?;
        let moves = scenario.cluster.json(&["rebalance", "status"])?["moves"].as_array().map_or(0, Vec::len);
        scenario.cluster.nodes[place].start()?;
        println!("{victim} came back when {moves} shards were still to move away from it");
        eventually("the others hold everything", PATIENCE, || {
            scenario.cluster.check_placed()?;
            let back = scenario.cluster.node(victim)?;
            ensure!(back["up"] == true && back["replicas"] == 0 && back["state"] == "draining", "{back}");
            check_voters(&scenario.cluster, victim)
        })?;
        eventually("the other node of its zone votes", PATIENCE, || {
            ensure!(scenario.cluster.directory_voters()?.iter().any(|voter| voter == other), "it does not");
            Ok(())
        })?;
        scenario.load.forget_errors();
        scenario.progress()?;
        scenario.cluster.admin(&["node", "join", victim, "--wait"])?;
        eventually("it has its share again", PATIENCE, || {
            let back = scenario.cluster.node(victim)?;
            ensure!(back["replicas"].as_u64() > Some(0) && back["state"] == "active", "{back}");
            ensure!(scenario.cluster.json(&["rebalance", "status"])?["state"] == "finished");
            scenario.cluster.admin(&["status"]).map(drop)
        })?;
        ensure!(scenario.load.errors() == 0, "{} operations failed", scenario.load.errors());
    }
    scenario.finish()
}
