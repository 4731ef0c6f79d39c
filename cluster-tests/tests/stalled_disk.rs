//! A disk that answers late, or not for a while: its node steps aside, the others serve, and nothing acknowledged is
//! lost. When it answers again, the node is back by itself.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{ClusterOptions, Injection, Scenario, disks_possible, setting};

const LONGEST: Duration = Duration::from_secs(30);

#[test]
fn a_leader_whose_disk_stalls_steps_aside_and_comes_back_by_itself() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 61), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions { own_disks: true, ..ClusterOptions::default() }, seed, rounds)?;
    for round in 0..rounds {
        // One that is over before the node steps aside, one that is not, one of half a minute.
        let lasts = [Duration::from_secs(2), Duration::from_secs(10), LONGEST][(round % 3) as usize];
        scenario.progress()?;
        let leader = scenario.cluster.first_leader()?;
        let stall = scenario.cluster.disks[leader].stall()?;
        let ending = std::thread::spawn(move || stall.last(lasts));
        let back = scenario.service_back()?;
        // A stall is taken for one after 3 s, and an election without a lease takes 1.5 s: served is before the longest is
        // over. A busy machine gets more.
        let most = if lasts >= LONGEST { lasts } else { 2 * LONGEST };
        ensure!(back < most, "served {back:?} after the disk of a leader stalled");
        println!("served {back:?} after the disk of a leader stalled for {lasts:?}");
        while !ending.is_finished() {
            scenario.progress()?;
        }
        scenario.progress()?;
        ensure!(scenario.cluster.nodes[leader].is_running(), "the node has ended");
    }
    scenario.finish()
}

/// Of each sync, in microseconds.
const SLOW: &str = "delay_enter=200000";

#[test]
fn a_disk_whose_syncs_take_200_milliseconds_is_slow_and_nothing_else() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 62), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let leader = scenario.cluster.first_leader()?;
        let process = scenario.cluster.nodes[leader].pid().context("not running")?;
        let Some(slow) = Injection::begin(process, "fdatasync,fsync", SLOW, &[])? else { return Ok(()) };
        println!("served {:?} while a leader's syncs take 200 ms", scenario.service_back()?);
        scenario.progress()?;
        scenario.progress()?;
        drop(slow);
        scenario.progress()?;
    }
    scenario.finish()
}
