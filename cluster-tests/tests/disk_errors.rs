//! A disk answers with errors, under load. One of a mirror, with one replica of everything: it is dropped, that is recorded,
//! no client notices, and what takes its place is whole. One without a mirror, with three replicas: others serve what it
//! cannot, and its replicas are made anew. Needs strace.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    ClusterOptions, Injection, LOGS, Scenario, TABLES, check_large, eventually, files_of, fill, letter, rounds, setting,
};

const MIRROR: ClusterOptions = ClusterOptions { nodes: 1, replicas: 1, mirror: true, ..ClusterOptions::DEFAULT };
const DROPPED: &str = "mailring_node_volume_halves_dropped";
const PATIENCE: Duration = Duration::from_secs(120);

fn no_errors(scenario: &Scenario) -> Result<()> {
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    Ok(())
}

fn is_in_use(scenario: &Scenario, half: usize) -> Result<bool> {
    let rows = scenario.cluster.volumes("node1")?;
    Ok(rows.iter().any(|row| row["half"] == letter(half) && row["state"] == "current"))
}

/// The half has been dropped and counted, and by nobody's fault but its disk's.
fn dropped(scenario: &Scenario, half: usize, count: u64) -> Result<()> {
    scenario.cluster.wait_half("node1", half, "stale")?;
    ensure!(scenario.cluster.admin(&["status"]).is_err(), "a mirror of one half is not healthy");
    ensure!(scenario.cluster.nodes[0].metric(DROPPED)? == count, "not counted");
    ensure!(scenario.cluster.nodes[0].logged("Input/output error")? > 0, "the log does not say why");
    scenario.progress()?;
    no_errors(scenario)
}

#[test]
fn a_half_that_cannot_be_read_is_dropped_and_nobody_notices() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 91), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    for round in 0..rounds {
        // The half that is read: after a drop the other one.
        let half = (round % 2) as usize;
        scenario.progress()?;
        let process = scenario.cluster.nodes[0].pid().context("not running")?;
        let files = files_of(&scenario.cluster.disk_directories(0)[half], TABLES)?;
        let Some(errors) = Injection::begin(process, "pread64", "error=EIO", &files)? else { return Ok(()) };
        let began = Instant::now();
        check_large(&scenario.cluster, seed)?;
        if is_in_use(&scenario, half)? {
            // Reads have left it for the other one, as they do when they take long. A scrub reads both.
            scenario.cluster.scrub_known(&[])?;
        }
        dropped(&scenario, half, round + 1)?;
        println!("half {} is dropped {:?} after it could not be read any more", letter(half), began.elapsed());
        drop(errors);
        check_large(&scenario.cluster, seed)?;
        let began = Instant::now();
        scenario.cluster.admin(&["volume", "resilver", "node1", "1", "--half", letter(half), "--wait"])?;
        scenario.cluster.wait_whole("node1")?;
        println!("half {} is made anew after {:?}", letter(half), began.elapsed());
        no_errors(&scenario)?;
    }
    scenario.progress()?;
    no_errors(&scenario)?;
    check_large(&scenario.cluster, seed)?;
    scenario.cluster.check_scrub()?;
    scenario.finish()
}

#[test]
fn a_half_whose_sync_fails_once_is_dropped_and_nobody_notices() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 92), setting("MAILRING_ROUNDS", rounds(2, 4)));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    let mut drops = 0;
    for round in 0..rounds {
        let half = (round % 2) as usize;
        scenario.progress()?;
        let process = scenario.cluster.nodes[0].pid().context("not running")?;
        let logs = files_of(&scenario.cluster.disk_directories(0)[half], LOGS)?;
        // By itself each of the threads that sync counts to one.
        let once = Injection::begin(process, "fdatasync,fsync", "error=EIO:when=1", &logs)?;
        let Some(once) = once else { return Ok(()) };
        drops += 1;
        dropped(&scenario, half, drops)?;
        drop(once);
        scenario.progress()?;
        no_errors(&scenario)?;
        // Both ways for either half in four rounds, each once in two.
        if (round + round / 2).is_multiple_of(2) {
            scenario.cluster.admin(&["volume", "resilver", "node1", "1", "--half", letter(half), "--wait"])?;
            no_errors(&scenario)?;
        } else {
            // The drop is on the other half's disk: what stayed behind is known after the worst of ends, and made anew.
            scenario.cluster.nodes[0].kill()?;
            scenario.cluster.start_all()?;
            scenario.cluster.wait_ready()?;
            drops = 0;
        }
        scenario.cluster.wait_whole("node1")?;
        ensure!(scenario.cluster.nodes[0].metric("mailring_node_volume_resilvers")? > 0, "not made anew");
        scenario.load.forget_errors();
    }
    scenario.progress()?;
    no_errors(&scenario)?;
    scenario.cluster.check_scrub()?;
    scenario.finish()
}

#[test]
fn what_a_disk_without_a_mirror_cannot_read_is_served_by_others_and_made_anew() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 93), setting("MAILRING_ROUNDS", rounds(1, 2)));
    // Who leads stays where it is: it is to meet the errors.
    let options = ClusterOptions { leaders_look_s: Some(0), ..ClusterOptions::DEFAULT };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let victim = eventually("somebody leads", PATIENCE, || {
            let leaders = scenario.cluster.accounts_by_leader()?;
            leaders.iter().position(|led| led.iter().any(|user| user == "user0@example.test")).context("no leader")
        })?;
        let node = &scenario.cluster.nodes[victim];
        let told = node.logged("record is damaged")?;
        // Where bodies are: the directory has none.
        let files = files_of(&scenario.cluster.disk(victim), &["blob"])?;
        let errors = Injection::begin(node.pid().context("not running")?, "pread64", "error=EIO", &files)?;
        let Some(errors) = errors else { return Ok(()) };
        // Another may lead for a moment, on a busy machine: then nothing is read there yet.
        eventually("its records are read", PATIENCE, || {
            let served = check_large(&scenario.cluster, seed);
            ensure!(served.is_err() || node.logged("record is damaged")? > told, "nothing was read there");
            Ok(served)
        })??;
        ensure!(node.logged("Input/output error")? > 0, "the log does not say why");
        eventually("the replica is made anew", PATIENCE, || {
            ensure!(node.logged("replica begun")? > 0, "it is not begun");
            scenario.cluster.admin(&["status"]).map(drop)
        })?;
        scenario.progress()?;
        drop(errors);
        no_errors(&scenario)?;
        check_large(&scenario.cluster, seed)?;
    }
    scenario.progress()?;
    no_errors(&scenario)?;
    scenario.finish()
}
