//! Tables are damaged on a disk without a mirror, and a compaction meets that: the node ends, comes back without
//! compactions, and what it cannot read is made anew from the others, under load.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{ClusterOptions, Process, Random, Scenario, eventually, flip_tables, setting};

/// sysexits.h EX_IOERR.
const VOLUME_FAILED: i32 = 74;
/// Each start puts what the log holds into tables, and four of them are compacted.
const STARTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a node; false if it ends over its volume, as it may once.
fn starts(node: &mut Process) -> Result<bool> {
    node.start()?;
    match node.wait_ready() {
        Ok(()) => Ok(true),
        Err(_) if !node.is_running() => {
            ended(node)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn ended(node: &mut Process) -> Result<()> {
    let (code, said) = node.ended()?;
    ensure!(code == Some(VOLUME_FAILED), "{code:?}\n{said}");
    Ok(())
}

#[test]
fn a_compaction_that_meets_damage_ends_the_node_once_and_the_others_make_good_what_it_lost() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 99), setting("MAILRING_ROUNDS", 1));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(ClusterOptions::DEFAULT, seed, rounds)?;
    for round in 0..rounds.min(3) {
        let victim = round as usize;
        for _ in 0..2 {
            scenario.progress()?;
            scenario.cluster.nodes[victim].kill()?;
            ensure!(starts(&mut scenario.cluster.nodes[victim])?, "no damage yet");
        }
        let flipped = flip_tables(&scenario.cluster.disk(victim), "state", &mut random)?;
        ensure!(flipped > 0, "no tables yet");
        let mut ends = 0;
        for _ in 0..STARTS {
            scenario.progress()?;
            if scenario.cluster.nodes[victim].is_running() {
                scenario.cluster.nodes[victim].kill()?;
            } else {
                ended(&mut scenario.cluster.nodes[victim])?;
                ends += 1;
            }
            while !starts(&mut scenario.cluster.nodes[victim])? {
                ends += 1;
                ensure!(ends <= 1, "the node ends again and again");
            }
        }
        println!("{flipped} tables damaged, the node ended {ends} times");
        ensure!(ends <= 1, "the node ended {ends} times");
        scenario.progress()?;
        eventually("what cannot be read is made anew", PATIENCE, || scenario.cluster.check_scrub())?;
        scenario.progress()?;
        ensure!(scenario.cluster.nodes[victim].is_running(), "the node has ended");
    }
    scenario.finish()
}
