//! Tables are damaged on a disk without a mirror, where starts, reads and compactions meet that: the node goes on, and
//! what it cannot read is made anew from the others, under load.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{ClusterOptions, Process, Random, Scenario, eventually, flip_tables, setting};

/// Each start puts what the log holds into tables, and four of them are compacted.
const STARTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);
/// Who meets the damage, as the log has it.
const MET: [&str; 4] = ["a table is damaged", "a compaction has met damage", "replica is damaged", "record is damaged"];

fn restart(node: &mut Process) -> Result<()> {
    ensure!(node.is_running(), "the node has ended");
    node.kill()?;
    node.start()?;
    node.wait_ready()
}

#[test]
fn damaged_tables_end_no_node_and_the_others_make_good_what_it_lost() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 99), setting("MAILRING_ROUNDS", 1));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(ClusterOptions::DEFAULT, seed, rounds)?;
    for round in 0..rounds {
        let victim = (round % 3) as usize;
        for _ in 0..2 {
            scenario.progress()?;
            restart(&mut scenario.cluster.nodes[victim])?;
        }
        let flipped = flip_tables(&scenario.cluster.disk(victim), "state", &mut random)?;
        ensure!(flipped > 0, "no tables yet");
        for _ in 0..STARTS {
            scenario.progress()?;
            restart(&mut scenario.cluster.nodes[victim])?;
        }
        scenario.progress()?;
        let node = &scenario.cluster.nodes[victim];
        let met: Vec<(&str, usize)> = MET.iter().map(|text| Ok((*text, node.logged(text)?))).collect::<Result<_>>()?;
        println!("{flipped} tables damaged: {met:?}");
        // A scrub still names the table: what is in it that nobody needs stays until a compaction can leave it out.
        eventually("what cannot be read is made anew", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
        ensure!(met.iter().any(|(_, times)| *times > 0), "nobody has met the damage");
        scenario.progress()?;
        ensure!(scenario.cluster.nodes[victim].is_running(), "the node has ended");
    }
    scenario.finish()
}
