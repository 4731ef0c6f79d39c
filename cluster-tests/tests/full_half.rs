//! One half of a mirror runs out of room, with one replica of everything: it is given up rather than that mail is refused,
//! nobody notices, and it is made anew once somebody has seen to its disk.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, DISK_RESERVE_OCTETS, Scenario, disks_possible, eventually, fill, flip_large, letter,
    rounds, setting,
};
use serde_json::Value;

const MIRROR: ClusterOptions =
    ClusterOptions { nodes: 1, replicas: 1, mirror: true, own_disks: true, ..ClusterOptions::DEFAULT };
const DROPPED: &str = "mailring_node_volume_halves_dropped";
const PATIENCE: Duration = Duration::from_secs(120);
/// Below the reserve, and next to nothing.
const LEFT_OCTETS: [u64; 2] = [DISK_RESERVE_OCTETS / 2, 2 * 1024 * 1024];
/// Of 1 MiB, to be copied.
const LETTERS: usize = 24;
/// Less than a copy of the large messages takes, by so much that twice as much is too little for it.
const SMALL_RESERVE_OCTETS: u64 = 16 * 1024 * 1024;
/// Above the reserve, and too little to go on with alone.
const LITTLE_OCTETS: u64 = DISK_RESERVE_OCTETS / 2 * 3;

fn no_errors(scenario: &Scenario) -> Result<()> {
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    Ok(())
}

/// Why a half is not in use.
fn reason(cluster: &Cluster, half: usize) -> Result<String> {
    let rows = cluster.volumes("node1")?;
    let row = rows.iter().find(|row| row["half"] == letter(half)).context("half")?;
    ensure!(row["state"] == "stale", "{row}");
    Ok(row["reason"].as_str().context("reason")?.to_owned())
}

#[test]
fn a_half_that_fills_up_is_given_up_and_nobody_notices() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (mut scenario, _, rounds) = Scenario::seeded(MIRROR, 95, rounds(2, 4))?;
    for round in 0..rounds {
        let (half, left) = ((round % 2) as usize, LEFT_OCTETS[((round + round / 2) % 2) as usize]);
        scenario.progress()?;
        scenario.cluster.disks[half].fill(left)?;
        scenario.cluster.wait_half("node1", half, "stale")?;
        println!("half {} with {left} octets left: {}", letter(half), reason(&scenario.cluster, half)?);
        ensure!(scenario.cluster.admin(&["status"]).is_err(), "a mirror of one half is not healthy");
        ensure!(scenario.cluster.nodes[0].metric(DROPPED)? == round + 1, "not counted");
        scenario.progress()?;
        no_errors(&scenario)?;
        // Room alone is no reason to trust it again.
        scenario.cluster.disks[half].empty()?;
        scenario.progress()?;
        reason(&scenario.cluster, half)?;
        scenario.cluster.admin(&["volume", "resilver", "node1", "1", "--half", letter(half), "--wait"])?;
        scenario.cluster.wait_whole("node1")?;
        no_errors(&scenario)?;
    }
    scenario.progress()?;
    no_errors(&scenario)?;
    ensure!(scenario.cluster.nodes[0].logged("new mail is refused")? == 0, "mail was refused");
    scenario.cluster.check_scrub()?;
    scenario.finish()
}

fn deliver(cluster: &Cluster, code: u16) -> Result<()> {
    eventually("mail is answered so", PATIENCE, || {
        let answer = cluster.smtp_client()?.deliver("s@x.test", &["ann@example.test"], b"Subject: x\r\n\r\nx\r\n")?;
        ensure!(answer.0 == code, "{answer:?}");
        Ok(())
    })
}

#[test]
fn a_half_that_fills_up_stays_where_the_other_one_has_little_room() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let cluster = Cluster::start(MIRROR)?;
    cluster.add_accounts(&["ann"])?;
    deliver(&cluster, 250)?;
    cluster.disks[1].fill(LITTLE_OCTETS)?;
    cluster.disks[0].fill(LEFT_OCTETS[0])?;
    deliver(&cluster, 452)?;
    cluster.wait_whole("node1")?;
    cluster.disks[0].empty()?;
    deliver(&cluster, 250)?;
    cluster.wait_whole("node1")?;
    ensure!(cluster.nodes[0].metric(DROPPED)? == 0, "a half was given up");
    cluster.check_logs(&["disk is full, new mail is refused"])
}

#[test]
fn a_start_fills_no_half_whose_disk_has_no_room_for_it_until_there_is() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let mut cluster = Cluster::start(MIRROR)?;
    cluster.add_accounts(&["ann"])?;
    deliver(&cluster, 250)?;
    cluster.disks[0].fill(LEFT_OCTETS[1])?;
    cluster.wait_half("node1", 0, "stale")?;
    cluster.nodes[0].kill()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    eventually("it is refused for its size", PATIENCE, || {
        let told = reason(&cluster, 0)?;
        ensure!(told.contains("is too small"), "{told}");
        Ok(())
    })?;
    let left = cluster.disks[0].free_octets()?;
    ensure!(left > LEFT_OCTETS[1] / 2, "{left} octets are left: what was begun there is not removed");
    deliver(&cluster, 250)?;
    let free_octets = |half: usize| -> Result<u64> {
        let rows = cluster.volumes("node1")?;
        let row = rows.iter().find(|row| row["half"] == letter(half)).context("half")?;
        row["free_octets"].as_u64().context("the room of a half")
    };
    let free = [free_octets(0)?, free_octets(1)?];
    ensure!(free[0] < DISK_RESERVE_OCTETS && free[1] > DISK_RESERVE_OCTETS, "not each half's own: {free:?}");
    // It was to be made anew, and is once there is room.
    cluster.disks[0].empty()?;
    cluster.wait_whole("node1")
}

#[test]
fn a_resilver_whose_disk_is_filled_up_by_others_ends_and_can_be_asked_for_again() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let mut cluster = Cluster::start(MIRROR)?;
    cluster.add_accounts(&["ann"])?;
    let letter_of_a_mib = [b"Subject: x\r\n\r\n".as_slice(), &[b'x'; 1022], b"\r\n"].concat();
    let body = letter_of_a_mib.iter().copied().cycle().take(1 << 20).chain(*b"\r\n").collect::<Vec<u8>>();
    for _ in 0..LETTERS {
        let answer = cluster.smtp_client()?.deliver("s@x.test", &["ann@example.test"], &body)?;
        ensure!(answer.0 == 250, "{answer:?}");
    }
    cluster.disks[1].fill(LEFT_OCTETS[1])?;
    cluster.wait_half("node1", 1, "stale")?;
    cluster.nodes[0].kill()?;
    cluster.disks[1].empty()?;
    // A start begins with it, as slowly as this.
    cluster.nodes[0].reconfigure("disk_reserve_octets", "resilver_octets_per_s = 2097152\ndisk_reserve_octets")?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    cluster.wait_half("node1", 1, "resilvering")?;
    cluster.disks[1].fill(64 * 1024)?;
    eventually("it is given up", PATIENCE, || {
        let told = reason(&cluster, 1)?;
        ensure!(told.contains("has filled up"), "{told}");
        Ok(())
    })?;
    deliver(&cluster, 250)?;
    cluster.disks[1].empty()?;
    cluster.admin(&["volume", "resilver", "node1", "1", "--half", "b", "--wait"])?;
    cluster.wait_whole("node1")?;
    cluster.check_scrub()
}

#[test]
fn a_scrub_says_of_a_damaged_half_without_room_that_it_is_not_made_anew() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let seed = setting("MAILRING_SEED", 104);
    let options = ClusterOptions { disk_reserve_octets: Some(SMALL_RESERVE_OCTETS), ..MIRROR };
    let cluster = Cluster::start(options)?;
    cluster.add_accounts(&["user0"])?;
    fill(&cluster, seed)?;
    let disk = cluster.disk_directories(0)[1].clone();
    ensure!(flip_large(&disk, 3, seed)?, "large message 3 is in no file of {}", disk.display());
    cluster.disks[1].fill(2 * SMALL_RESERVE_OCTETS)?;
    let found = cluster.scrub(&[])?;
    let rows = found["findings"].as_array().context("findings")?;
    let says = |row: &Value, what: &str| row["repair"].as_str().is_some_and(|said| said.contains(what));
    let is_told = |row: &Value| row["half"] == "b" && says(row, "is not made anew") && says(row, "is too small");
    ensure!(found["mended"] == false && !rows.is_empty() && rows.iter().all(is_told), "{found:#}");
    cluster.wait_half("node1", 1, "damaged")?;
    // It is once there is room.
    cluster.disks[1].empty()?;
    cluster.wait_whole("node1")?;
    cluster.check_scrub()
}
