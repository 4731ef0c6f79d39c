//! A rolling upgrade: nodes of one version and the next serve together, in both directions, until all are of the next one;
//! from then on what is written is its own, and older programs are refused by name.
//!
//! The next version's program is this one with a greater number in it (`types::format`): it knows one format more, which
//! differs in nothing but its number on each command and each disk.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Scenario, eventually, is_long};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
const OWN: u64 = 3;
const NEXT: u64 = 4;

/// Stops a node as an upgrade does, and starts it with another program; `None`: this version's.
fn roll(scenario: &mut Scenario, node: usize, program: Option<&PathBuf>) -> Result<()> {
    let process = &mut scenario.cluster.nodes[node];
    process.terminate()?;
    process.program = program.cloned();
    process.start()?;
    process.wait_ready()?;
    scenario.cluster.wait_settled()?;
    scenario.progress()
}

/// Moves a replica from one node to another and back.
fn move_between(cluster: &Cluster, one: usize, other: usize) -> Result<()> {
    let name = |node: usize| cluster.nodes[node].name.as_str();
    let shards = cluster.json(&["shard", "list"])?;
    let has = |shard: &serde_json::Value, node: usize| {
        shard["wanted"].as_array().is_some_and(|wanted| wanted.iter().any(|wanted| wanted == name(node)))
    };
    let found = shards.as_array().context("shards")?.iter().find(|shard| has(shard, one) && !has(shard, other));
    let shard = found.context("no shard that one has and the other has not")?["shard"].as_u64().context("shard")?;
    for (from, to) in [(one, other), (other, one)] {
        let shard = shard.to_string();
        cluster.admin(&["shard", "move", &shard, "--from", name(from), "--to", name(to), "--wait"])?;
        let list = cluster.json(&["shard", "show", &shard])?;
        ensure!(has(&list, to) && !has(&list, from), "{list}");
    }
    Ok(())
}

fn wait_formats(cluster: &Cluster, nodes: usize, known: &[u64], in_force: u64) -> Result<()> {
    eventually("nodes write what all of them know", PATIENCE, || {
        let formats = cluster.formats()?;
        let is_right = |(knows, writes): &(u64, u64)| known.contains(knows) && *writes == in_force;
        ensure!(formats.len() == nodes && formats.iter().all(is_right), "{formats:?}");
        Ok(())
    })
}

/// Starts a new node, of which the cluster says why it does not take it.
fn is_refused(cluster: &mut Cluster, program: Option<PathBuf>, why: &str) -> Result<()> {
    let node = cluster.prepare_node()?;
    let process = &mut cluster.nodes[node];
    process.program = program;
    process.start()?;
    eventually("it is refused by name", PATIENCE, || {
        let log = process.log()?;
        ensure!(log.contains("cluster does not take this node") && log.contains(why), "{}", process.log_tail());
        Ok(())
    })?;
    process.kill()?;
    let name = process.name.clone();
    ensure!(cluster.node(&name).is_err(), "{name} is known to the cluster");
    Ok(())
}

#[test]
fn neighbouring_versions_serve_together_and_an_older_one_is_refused_once_it_could_not_read() -> Result<()> {
    let options = ClusterOptions { nodes: 4, log_entries_kept: Some(60), ..ClusterOptions::DEFAULT };
    let (mut scenario, _, _) = Scenario::seeded(options, 101, 1)?;
    let next = scenario.cluster.program_of_format(NEXT as u32)?;
    let beyond = scenario.cluster.program_of_format(NEXT as u32 + 1)?;
    scenario.progress()?;
    wait_formats(&scenario.cluster, 4, &[OWN], OWN)?;
    is_refused(&mut scenario.cluster, Some(beyond), "is of format 5")?;

    // Two of each version.
    roll(&mut scenario, 0, Some(&next))?;
    roll(&mut scenario, 1, Some(&next))?;
    wait_formats(&scenario.cluster, 4, &[OWN, NEXT], OWN)?;
    move_between(&scenario.cluster, 0, 3)?;
    move_between(&scenario.cluster, 2, 1)?;
    scenario.progress()?;
    // Back down: one of them, or with MAILRING_LONG=1 both.
    let (down, known): (&[usize], &[u64]) =
        if is_long() { (&[0, 1][..], &[OWN][..]) } else { (&[0][..], &[OWN, NEXT][..]) };
    for node in down {
        roll(&mut scenario, *node, None)?;
    }
    wait_formats(&scenario.cluster, 4, known, OWN)?;

    // And up, the last one too.
    for node in down.iter().copied().chain(2..4) {
        roll(&mut scenario, node, Some(&next))?;
    }
    wait_formats(&scenario.cluster, 4, &[NEXT], NEXT)?;
    scenario.progress()?;
    println!("{} operations failed over all restarts", scenario.load.errors());
    // Routers are of this version yet, and of the next one.
    scenario.cluster.routers[0].terminate()?;
    scenario.cluster.routers[0].program = Some(next.clone());
    scenario.cluster.routers[0].start()?;
    scenario.cluster.routers[0].wait_ready()?;
    scenario.progress()?;

    // What is on the disks now is not for the older program.
    scenario.cluster.nodes[0].terminate()?;
    scenario.cluster.nodes[0].program = None;
    scenario.cluster.nodes[0].start()?;
    let (code, said) = scenario.cluster.nodes[0].ended()?;
    let why = "has format 4; this program knows formats up to 3";
    ensure!(code == Some(1) && said.contains(why), "ended with {code:?}: {said}");
    scenario.cluster.nodes[0].program = Some(next.clone());
    scenario.cluster.nodes[0].start()?;
    scenario.cluster.nodes[0].wait_ready()?;
    is_refused(&mut scenario.cluster, None, "knows formats up to 3, and the cluster writes format 4")?;
    scenario.cluster.wait_settled()?;
    move_between(&scenario.cluster, 0, 3)?;
    scenario.progress()?;
    scenario.finish()
}
