//! A disk that answers late, or not for a while: its node steps aside, the others serve, and nothing acknowledged is
//! lost. When it answers again, the node is back by itself.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{ClusterOptions, Injection, Scenario, disks_possible, eventually, rounds, setting};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
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

/// Before the fault, to compare with, and while it lasts.
const QUIET: Duration = Duration::from_secs(5);
const LASTS: Duration = Duration::from_secs(8);

#[test]
fn a_disk_whose_syncs_take_200_milliseconds_is_left_to_follow_and_slows_nobody() -> Result<()> {
    let options = ClusterOptions { leaders_look_s: Some(0), ..ClusterOptions::DEFAULT };
    let (mut scenario, _, rounds) = Scenario::seeded(options, 62, rounds(1, 3))?;
    for round in 0..rounds {
        scenario.progress()?;
        let cluster = &scenario.cluster;
        let mut accounts = eventually("leaders are where they should be", PATIENCE, || cluster.accounts_by_leader())?;
        let slow = (round % 3) as usize;
        let (here, elsewhere) = (accounts.remove(slow), accounts.concat());
        let led = cluster.led()?;
        scenario.load.forget_errors();
        scenario.go_on(QUIET)?;
        let service = &scenario.load.service;
        println!("changes elsewhere before: {}; there: {}", service.times_of(&elsewhere), service.times_of(&here));
        let process = scenario.cluster.nodes[slow].pid().context("not running")?;
        let Some(syncs) = Injection::begin(process, "fdatasync,fsync", SLOW, &[])? else { return Ok(()) };
        let begun = Instant::now();
        eventually("others lead", PATIENCE, || {
            let now = scenario.cluster.led()?;
            ensure!(now[slow] == 0 && now.iter().sum::<usize>() == led.iter().sum::<usize>(), "{now:?}");
            Ok(())
        })?;
        println!("others lead {:?} after a leader's syncs began to take 200 ms", begun.elapsed());
        let service = &scenario.load.service;
        println!("until then elsewhere: {}; there: {}", service.times_of(&elsewhere), service.times_of(&here));
        scenario.load.forget_errors();
        scenario.go_on(LASTS)?;
        let service = &scenario.load.service;
        println!("elsewhere meanwhile: {}; there: {}", service.times_of(&elsewhere), service.times_of(&here));
        let errors = scenario.load.errors();
        ensure!(errors == 0, "{errors} errors seen by clients of a cluster with a slow disk");
        let now = scenario.cluster.led()?;
        ensure!(now[slow] == 0, "a node with a slow disk leads again: {now:?}");
        drop(syncs);
        eventually("it leads again", PATIENCE, || {
            let now = scenario.cluster.led()?;
            ensure!(now == led, "{now:?}, and {led:?} before");
            Ok(())
        })?;
        scenario.progress()?;
    }
    scenario.finish()
}
