//! Halves of mirrors are deleted, lose their power, or are damaged at a thousand places, under load: no client notices,
//! nothing is lost, and what is made anew is whole.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    ClusterOptions, PROVEN, Random, Scenario, TABLES, check_large, delete_disk, disks_possible, eventually, fill, flip,
    letter, rounds, setting,
};

const MIRROR: ClusterOptions = ClusterOptions { nodes: 1, replicas: 1, mirror: true, ..ClusterOptions::DEFAULT };
const BIT_FLIPS: usize = 1_000;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

#[test]
fn a_half_that_is_deleted_under_load_is_not_missed_and_its_successor_is_filled() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 61), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    for round in 0..rounds {
        let half = (round % 2) as usize;
        scenario.progress()?;
        let disk = scenario.cluster.disk_directories(0)[half].clone();
        delete_disk(&disk)?;
        scenario.progress()?;
        scenario.cluster.wait_half("node1", half, "stale")?;
        ensure!(scenario.cluster.admin(&["status"]).is_err(), "a mirror of one half is not healthy");
        // Nothing to fill: the disk is not there.
        ensure!(scenario.cluster.admin(&["volume", "replace", "node1"]).is_err(), "a missing directory was taken");
        fs::create_dir(&disk)?;
        let began = Instant::now();
        scenario.cluster.admin(&["volume", "replace", "node1", "1", "--half", letter(half), "--wait"])?;
        println!("half {} filled after {:?}", letter(half), began.elapsed());
        scenario.progress()?;
        eventually("all is well", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    // Each half alone holds everything.
    for half in 0..2 {
        scenario.cluster.nodes[0].kill()?;
        let disk = scenario.cluster.disk_directories(0)[half].clone();
        let aside = disk.with_extension("aside");
        fs::rename(&disk, &aside)?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        scenario.progress()?;
        scenario.cluster.nodes[0].kill()?;
        // The old copy comes back: it is known for what it is, and filled.
        fs::rename(&aside, &disk)?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        scenario.cluster.wait_whole("node1")?;
    }
    // Deleted while the node is down: what is in its place is filled without being asked.
    scenario.cluster.nodes[0].kill()?;
    let disk = scenario.cluster.disk_directories(0)[0].clone();
    delete_disk(&disk)?;
    fs::create_dir(&disk)?;
    scenario.cluster.start_all()?;
    scenario.cluster.wait_ready()?;
    scenario.cluster.wait_whole("node1")?;
    scenario.progress()?;
    scenario.finish()
}

/// What an operator may do to the directories of a mirror by mistake, and what a disk may lose of itself.
#[test]
fn a_mirror_whose_directories_are_mixed_up_is_not_destroyed() -> Result<()> {
    let mut scenario = Scenario::start(MIRROR, setting("MAILRING_SEED", 66), 1)?;
    scenario.progress()?;
    let disks = scenario.cluster.disk_directories(0);
    let [first, second] = &disks[..] else { bail!("{disks:?}") };
    let aside = second.with_extension("aside");
    scenario.cluster.nodes[0].kill()?;
    fs::rename(second, &aside)?;
    symlink(first, second)?;
    scenario.cluster.nodes[0].start()?;
    let (code, said) = scenario.cluster.nodes[0].ended()?;
    ensure!(code == Some(1) && said.contains("are one directory"), "{code:?} {said}");
    // It comes as a link while the node runs.
    fs::remove_file(second)?;
    scenario.cluster.start_all()?;
    scenario.cluster.wait_ready()?;
    scenario.cluster.wait_half("node1", 1, "stale")?;
    symlink(first, second)?;
    for command in ["replace", "resilver"] {
        let taken = scenario.cluster.admin(&["volume", command, "node1", "1", "--half", "b"]);
        let refused = taken.err().context("a link to the other half was taken")?.to_string();
        ensure!(refused.contains("are one directory"), "{refused}");
    }
    scenario.progress()?;
    scenario.cluster.nodes[0].kill()?;
    fs::remove_file(second)?;
    fs::rename(&aside, second)?;
    scenario.cluster.start_all()?;
    scenario.cluster.wait_ready()?;
    scenario.cluster.wait_whole("node1")?;
    for half in [second, first] {
        scenario.progress()?;
        scenario.cluster.nodes[0].kill()?;
        fs::remove_file(half.join("db/HALF"))?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        scenario.cluster.wait_whole("node1")?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_node_with_a_mirror_killed_under_load_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 62), setting("MAILRING_ROUNDS", rounds(3, 6)));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress_by(PROVEN)?;
        let killed = Instant::now();
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.start_all()?;
        scenario.service_back_after("the node was killed and started", killed)?;
        scenario.cluster.wait_ready()?;
        scenario.cluster.wait_whole("node1")?;
        scenario.progress_by(PROVEN)?;
    }
    scenario.finish()
}

#[test]
fn one_half_loses_power_under_load_and_nobody_notices() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 63), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions { own_disks: true, ..MIRROR }, seed, rounds)?;
    for round in 0..rounds {
        let half = (round % 2) as usize;
        scenario.progress()?;
        scenario.cluster.disks[half].cut()?;
        scenario.progress()?;
        scenario.cluster.wait_half("node1", half, "stale")?;
        ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
        // The file system is of no use until it is mounted again, and the process has files open there.
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.disks[half].restore()?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        scenario.cluster.wait_whole("node1")?;
        scenario.load.forget_errors();
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn both_halves_lose_power_at_once_under_load_and_nothing_is_lost() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 64), setting("MAILRING_ROUNDS", rounds(2, 3)));
    let mut scenario = Scenario::start(ClusterOptions { own_disks: true, ..MIRROR }, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        let first = (round % 2) as usize;
        scenario.cluster.disks[first].cut()?;
        scenario.cluster.disks[1 - first].cut()?;
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.disks[0].restore()?;
        scenario.cluster.disks[1].restore()?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
    }
    scenario.cluster.wait_whole("node1")?;
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn a_half_with_a_thousand_flipped_bits_is_healed_under_load() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 65), setting("MAILRING_ROUNDS", 2));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    for round in 0..rounds {
        let half = (round % 2) as usize;
        scenario.progress()?;
        // Nothing of the tables is in the process's own caches after a start.
        scenario.cluster.nodes[0].kill()?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        scenario.cluster.wait_whole("node1")?;
        scenario.load.forget_errors();
        let disk = scenario.cluster.disk_directories(0)[half].clone();
        let flipped = flip(&disk, TABLES, &mut random, BIT_FLIPS)?;
        ensure!(flipped == BIT_FLIPS, "{flipped} bits flipped in half {}", letter(half));
        let began = Instant::now();
        check_large(&scenario.cluster, seed)?;
        scenario.progress()?;
        ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
        // What nobody has read is found too, so that the damaged half is whole before the other one's turn.
        let found = scenario.cluster.scrub_known(&[])?;
        ensure!(found["mended"] == true, "{found:#}");
        scenario.cluster.wait_whole("node1")?;
        println!("half {} is whole again {:?} after its bits were flipped", letter(half), began.elapsed());
    }
    check_large(&scenario.cluster, seed)?;
    scenario.finish()
}

#[test]
fn three_nodes_with_mirrors_lose_a_half_each_and_nobody_notices() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 66), setting("MAILRING_ROUNDS", 1));
    let options = ClusterOptions { nodes: 3, replicas: 3, ..MIRROR };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        for node in 0..3 {
            let disk = scenario.cluster.disk_directories(node)[node % 2].clone();
            delete_disk(&disk)?;
            fs::create_dir(&disk)?;
            scenario.progress()?;
            let name = format!("node{}", node + 1);
            eventually("the disk is taken", PATIENCE, || {
                scenario.cluster.admin(&["volume", "replace", &name, "--wait"]).map(drop)
            })?;
        }
    }
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    scenario.finish()
}
