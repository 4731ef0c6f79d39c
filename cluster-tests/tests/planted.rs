//! The checker finds bugs that the product really has: `mailring`, built with the feature `planted-bugs`, loses, doubles
//! or mixes up mail in one chosen way, and the scenario that must expose it does. That the same scenarios find nothing in
//! the ordinary binary is shown by `power`, `partition` and `kill`.
//!
//! MAILRING_PLANTED_BIN names that binary; without it these tests are skipped. `MAILRING_SEED` and
//! `MAILRING_ROUNDS` choose the run.

use std::fs;

use anyhow::{Result, bail, ensure};
use cluster_tests::{ClusterOptions, Link, Scenario, binary, disks_possible, planted_binary, setting};

/// Faults that are printed of each run.
const SHOWN: usize = 3;

fn possible() -> bool {
    let possible = planted_binary().is_some();
    if !possible {
        println!("skipped: MAILRING_PLANTED_BIN is not set");
    }
    possible
}

/// That the checker found faults, and among them one that this bug must leave.
fn found(bug: &str, finished: Result<()>, expected: &[&str]) -> Result<()> {
    let Err(error) = finished else { bail!("{bug}: the checker found nothing") };
    let said = format!("{error:#}");
    let (_, faults) = said.split_once(" faults:\n").ok_or_else(|| error.context("not what the checker says"))?;
    let faults: Vec<&str> = faults.lines().collect();
    let count = |text: &str| faults.iter().filter(|fault| fault.starts_with(text)).count();
    let counts: Vec<String> = expected.iter().map(|text| format!("{text}: {}", count(text))).collect();
    println!("{bug}: {} faults found ({})", faults.len(), counts.join(", "));
    for fault in faults.iter().filter(|fault| expected.iter().any(|text| fault.starts_with(text))).take(SHOWN) {
        println!("  {fault}");
    }
    ensure!(expected.iter().any(|text| count(text) > 0), "{bug}: other faults than those that it leaves: {faults:#?}");
    Ok(())
}

#[test]
fn mail_acknowledged_before_it_is_synced_is_found_lost_after_a_power_cut() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    if !disks_possible() {
        return Ok(());
    }
    // A cut takes what was acknowledged and not yet synced: a change or two, at times none.
    let (seed, rounds) = (setting("MAILRING_SEED", 61), setting("MAILRING_ROUNDS", 12));
    let bug = "acknowledge-before-sync";
    let options =
        ClusterOptions { nodes: 1, replicas: 1, own_disks: true, planted: Some(bug), ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        scenario.cluster.disks[0].cut()?;
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.disks[0].restore()?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
    }
    scenario.progress()?;
    found(bug, scenario.finish(), &["lost"])
}

#[test]
fn mail_stored_again_by_a_retry_is_found_twice() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let (seed, rounds, bug) = (setting("MAILRING_SEED", 62), setting("MAILRING_ROUNDS", 6), "skip-duplicate-check");
    let options = ClusterOptions { routers: 2, proxied: true, planted: Some(bug), ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        // The nodes go on with what the routers have asked for; the answers are lost, and the routers ask again.
        for router in ["router1", "router2"] {
            for node in ["node1", "node2", "node3"] {
                scenario.cluster.proxy.set(Some(node), Some(router), Link::Cut);
            }
        }
        scenario.cluster.proxy.heal();
    }
    scenario.progress()?;
    found(bug, scenario.finish(), &["too often"])
}

#[test]
fn uids_given_out_again_after_an_expunge_are_found() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    // Of each hundred changes of the load about ten take a message out of its mailbox, by EXPUNGE or MOVE.
    let (seed, rounds, bug) = (setting("MAILRING_SEED", 63), setting("MAILRING_ROUNDS", 12), "reuse-uid");
    let options = ClusterOptions { nodes: 1, replicas: 1, planted: Some(bug), ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
    }
    found(bug, scenario.finish(), &["UID reused", "UIDNEXT of"])
}

#[test]
fn the_ordinary_binary_has_no_planted_bugs() -> Result<()> {
    let holds = |path: std::path::PathBuf| -> Result<bool> {
        let name = b"MAILRING_PLANTED";
        Ok(fs::read(path)?.windows(name.len()).any(|window| window == name))
    };
    ensure!(!holds(binary()?)?, "built with the feature planted-bugs");
    if let Some(planted) = planted_binary() {
        ensure!(holds(planted.clone())?, "{} was not built with the feature planted-bugs", planted.display());
    }
    Ok(())
}
