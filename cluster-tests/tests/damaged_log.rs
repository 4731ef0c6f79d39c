//! The write-ahead log of one half of a mirror is damaged or lost, with one replica of everything, under load: the node
//! serves all of it from the other half. At its start it makes the bad one anew.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cluster_tests::{ClusterOptions, Random, Scenario, flip_log, live_log, rounds, setting};

const MIRROR: ClusterOptions = ClusterOptions { nodes: 1, replicas: 1, mirror: true, ..ClusterOptions::DEFAULT };
const RESILVERED: &str = "mailring_node_volume_resilvers";
const NOT_IN_USE: &str = "mirror half is not in use";

/// Whether it is the one way or the other: both for either half in four rounds, each once in two.
fn is_first_way(round: u64) -> bool {
    (round + round / 2).is_multiple_of(2)
}

/// The node ends, by its own will every other time; `damage` is done; it starts again with all that
/// was acknowledged.
fn survives(scenario: &mut Scenario, round: u64, damage: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let half = (round % 2) as usize;
    match is_first_way(round) {
        true => scenario.cluster.nodes[0].kill()?,
        false => scenario.cluster.nodes[0].terminate()?,
    }
    damage(&scenario.cluster.disk_directories(0)[half])?;
    scenario.cluster.start_all()?;
    scenario.cluster.wait_ready()?;
    is_made_anew(scenario)
}

/// After a start that half of the mirror has not come through.
fn is_made_anew(scenario: &Scenario) -> Result<()> {
    scenario.load.forget_errors();
    scenario.progress()?;
    scenario.cluster.wait_whole("node1")?;
    let resilvered = scenario.cluster.nodes[0].metric(RESILVERED)?;
    ensure!(resilvered >= 1, "{resilvered} halves made anew since the start");
    scenario.progress()?;
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    Ok(())
}

#[test]
fn a_bit_flipped_in_the_log_of_one_half_while_the_node_is_down_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 93), setting("MAILRING_ROUNDS", rounds(2, 4)));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        survives(&mut scenario, round, |disk| flip_log(disk, &mut random))?;
    }
    scenario.cluster.check_scrub()?;
    scenario.finish()
}

#[test]
fn the_live_log_of_one_half_deleted_while_the_node_is_down_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 94), setting("MAILRING_ROUNDS", rounds(2, 4)));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        survives(&mut scenario, round, |disk| Ok(fs::remove_file(live_log(disk)?)?))?;
    }
    scenario.cluster.check_scrub()?;
    scenario.finish()
}

/// Writes go on to a file that no longer has a name: whoever reads the directory later finds less than was acknowledged.
/// Every other time the node is killed before it can have noticed.
#[test]
fn the_live_log_of_one_half_deleted_while_the_node_runs_is_missed_by_nobody() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 95), setting("MAILRING_ROUNDS", rounds(2, 4)));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        scenario.load.forget_errors();
        let half = (round % 2) as usize;
        let not_in_use = scenario.cluster.nodes[0].logged(NOT_IN_USE)?;
        fs::remove_file(live_log(&scenario.cluster.disk_directories(0)[half])?)?;
        scenario.progress()?;
        if is_first_way(round) {
            scenario.cluster.wait_half("node1", half, "stale")?;
            scenario.progress()?;
        }
        let errors = scenario.load.errors();
        ensure!(errors == 0, "{errors} errors seen by clients while the node ran");
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        let told = scenario.cluster.nodes[0].logged(NOT_IN_USE)? - not_in_use;
        ensure!(told == 1, "at the start {told} halves are told to be of no use");
        is_made_anew(&scenario)?;
    }
    scenario.cluster.check_scrub()?;
    scenario.finish()
}
