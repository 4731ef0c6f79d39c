//! A disk fills up: new mail is refused with its proper answer, what is there is read, expunged and flagged, and all goes
//! on by itself when there is room again.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, DISK_RESERVE_OCTETS, Disk, Scenario, SmtpClient, disks_possible, eventually,
};

const PATIENCE: Duration = Duration::from_secs(120);
/// Below the reserve, above the floor of a quarter of it.
const FULL_OCTETS: u64 = DISK_RESERVE_OCTETS / 2;
const SHARDS: usize = 8;
/// What the file system itself needs to be filled.
const NOTHING_OCTETS: u64 = 2 * 1024 * 1024;
/// More than there was room for in what a write-ahead log had been given already.
const REFUSALS: usize = 300;
const BELOW_FLOOR_OCTETS: u64 = DISK_RESERVE_OCTETS / 8;
/// For mail, and what the database needs for it meanwhile.
const MAIL_ROOM_OCTETS: u64 = 160 * 1024 * 1024;
const LETTER_OCTETS: usize = 1024 * 1024;
/// One in so many letters is kept.
const KEPT: usize = 8;
/// Refusals one after the other by which a disk is full, and not only until the database has done what it does by itself.
const REFUSED: usize = 40;
/// Between two of them.
const ASK_AGAIN: Duration = Duration::from_millis(250);

fn deliver(cluster: &Cluster, subject: &str) -> Result<(u16, String)> {
    let message = format!("Subject: {subject}\r\n\r\nx\r\n");
    cluster.smtp_client()?.deliver("s@x.test", &["ann@example.test"], message.as_bytes())
}

fn one_disk_with_two_messages() -> Result<Cluster> {
    let options = ClusterOptions { nodes: 1, replicas: 1, own_disks: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options)?;
    cluster.add_accounts(&["ann"])?;
    for subject in ["one", "two"] {
        let (code, text) = deliver(&cluster, subject)?;
        ensure!(code == 250, "{code} {text}");
    }
    Ok(cluster)
}

#[test]
fn a_full_disk_refuses_mail_serves_reads_and_recovers_by_itself() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let mut cluster = one_disk_with_two_messages()?;
    cluster.disks[0].fill(FULL_OCTETS)?;
    eventually("new mail is refused", PATIENCE, || {
        let (code, text) = deliver(&cluster, "late")?;
        ensure!((code, text.starts_with("4.3.1")) == (452, true), "{code} {text}");
        Ok(())
    })?;
    let mut imap = cluster.imap_client("ann@example.test")?;
    let tag = imap.send("APPEND INBOX {3+}\r\na:b")?;
    let (_, tagged) = imap.finish(&tag)?;
    ensure!(tagged.starts_with("NO [LIMIT]"), "{tagged}");
    let exists = imap.select("INBOX")?;
    ensure!(exists >= 2 && imap.body(1)?.is_some(), "reads are refused");
    imap.ok("STORE 1 +FLAGS (\\Deleted \\Seen)")?;
    imap.ok("EXPUNGE")?;
    ensure!(imap.select("INBOX")? == exists - 1, "nothing was expunged");
    let status = cluster.admin(&["status"]);
    ensure!(status.is_err_and(|error| format!("{error:#}").contains("disk is full")), "status does not tell");
    cluster.disks[0].empty()?;
    eventually("mail is taken again", PATIENCE, || {
        let (code, text) = deliver(&cluster, "again")?;
        ensure!(code == 250, "{code} {text}");
        Ok(())
    })?;
    ensure!(cluster.nodes[0].is_running(), "the node has ended");
    cluster.check_logs(&["disk is full, new mail is refused"])
}

#[test]
fn a_disk_with_no_room_at_all_takes_nothing_but_expunges() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let mut cluster = one_disk_with_two_messages()?;
    let ballast = cluster.disks[0].path().join("BALLAST");
    eventually("there is ballast", PATIENCE, || {
        ensure!(ballast.exists());
        Ok(())
    })?;
    // All at once, before the node sees anything of it.
    cluster.nodes[0].signal("STOP")?;
    cluster.disks[0].fill(NOTHING_OCTETS)?;
    cluster.nodes[0].signal("CONT")?;
    eventually("new mail is refused", PATIENCE, || {
        let (code, text) = deliver(&cluster, "late")?;
        ensure!(code == 452 && !ballast.exists(), "{code} {text}");
        Ok(())
    })?;
    let mut imap = cluster.imap_client("ann@example.test")?;
    let exists = imap.select("INBOX")?;
    for number in 0..REFUSALS {
        let sign = if number % 2 == 0 { '+' } else { '-' };
        for command in [format!("STORE 1 {sign}FLAGS (\\Flagged)"), format!("CREATE box{number}")] {
            let tag = imap.send(&command)?;
            let (_, tagged) = imap.finish(&tag)?;
            ensure!(tagged.starts_with("NO [LIMIT]"), "{command}: {tagged}");
        }
    }
    ensure!(imap.body(1)?.is_some(), "reads are refused");
    imap.ok("STORE 1 +FLAGS (\\Deleted)")?;
    imap.ok("EXPUNGE")?;
    ensure!(imap.select("INBOX")? == exists - 1, "nothing was expunged");
    ensure!(cluster.nodes[0].is_running(), "the node has ended");
    cluster.disks[0].empty()?;
    eventually("mail is taken again, and there is ballast again", PATIENCE, || {
        let (code, text) = deliver(&cluster, "again")?;
        ensure!(code == 250 && ballast.exists(), "{code} {text}");
        Ok(())
    })?;
    cluster.check_logs(&["disk is full, new mail is refused", "the ballast is given up"])
}

#[test]
fn a_node_without_room_hands_its_leaders_over_waits_and_catches_up() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let options = ClusterOptions { own_disks: true, shards: SHARDS as u32, ..ClusterOptions::default() };
    let (mut scenario, _, rounds) = Scenario::seeded(options, 41, 1)?;
    for round in 0..rounds {
        scenario.progress()?;
        let node = scenario.cluster.first_leader()?;
        // At first its leaders refuse mail, and senders wait. Every other time it takes entries yet, and follows.
        let left = if round % 2 == 0 { BELOW_FLOOR_OCTETS } else { FULL_OCTETS };
        scenario.cluster.disks[node].fill(left)?;
        eventually("others lead", PATIENCE, || {
            let led = scenario.cluster.led()?;
            ensure!(led[node] == 0 && led.iter().sum::<usize>() == SHARDS, "{led:?}");
            Ok(())
        })?;
        println!("served {:?} after others lead in the full node's place", scenario.service_back()?);
        scenario.progress()?;
        let led = scenario.cluster.led()?;
        ensure!(led[node] == 0, "the full node leads again: {led:?}");
        scenario.cluster.disks[node].empty()?;
        scenario.progress()?;
        ensure!(scenario.cluster.nodes[node].is_running(), "the node has ended");
    }
    scenario.finish()
}

/// Text that hardly anything compresses, the same for the same number.
fn letter(number: usize) -> String {
    let mut seed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = format!("Subject: letter {number}\r\n\r\n");
    while letter.len() < LETTER_OCTETS {
        for _ in 0..76 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            letter.push(char::from(b'0' + (seed >> 32) as u8 % 64));
        }
        letter.push_str("\r\n");
    }
    letter
}

/// Whether it was taken; refused for want of room it may be, for nothing else.
fn is_taken(smtp: &mut SmtpClient, number: usize) -> Result<bool> {
    let account = if number.is_multiple_of(KEPT) { "bob@example.test" } else { "ann@example.test" };
    match smtp.deliver("s@x.test", &[account], letter(number).as_bytes())? {
        (250, _) => Ok(true),
        (452, text) if text.starts_with("4.3.1") => Ok(false),
        (code, text) => bail!("{code} {text}"),
    }
}

/// Delivers until nothing is taken any more. Answers the numbers of what was taken.
fn fill_with_mail(cluster: &Cluster) -> Result<Vec<usize>> {
    let (mut smtp, mut taken, mut refused) = (cluster.smtp_client()?, Vec::new(), 0);
    for number in 0.. {
        if is_taken(&mut smtp, number)? {
            taken.push(number);
            refused = 0;
        } else if refused == REFUSED {
            break;
        } else {
            refused += 1;
            std::thread::sleep(ASK_AGAIN);
        }
    }
    Ok(taken)
}

fn a_disk_full_of_mail(mirror: bool) -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let options = ClusterOptions { nodes: 1, replicas: 1, own_disks: true, mirror, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options)?;
    cluster.add_accounts(&["ann", "bob"])?;
    for disk in &cluster.disks {
        disk.fill(DISK_RESERVE_OCTETS + MAIL_ROOM_OCTETS)?;
    }
    let taken = fill_with_mail(&cluster)?;
    let left = cluster.disks.iter().map(Disk::free_octets).collect::<Result<Vec<_>>>()?;
    println!("{} letters of {LETTER_OCTETS} octets were taken, {left:?} are left", taken.len());
    ensure!(taken.len() > 40, "the disk is full of something else");
    let mut ann = cluster.imap_client("ann@example.test")?;
    ann.select("INBOX")?;
    ann.ok("STORE 1:* +FLAGS.SILENT (\\Deleted)")?;
    ann.ok("EXPUNGE")?;
    ensure!(ann.select("INBOX")? == 0, "not all was expunged");
    let expunged = std::time::Instant::now();
    let mut smtp = cluster.smtp_client()?;
    // As much again as went, but for what a write-ahead log keeps beside it.
    let again = taken.len() / 2;
    for number in (0..).filter(|number: &usize| !number.is_multiple_of(KEPT)).take(again) {
        eventually("mail is taken again", PATIENCE, || {
            ensure!(is_taken(&mut smtp, number)?, "refused");
            Ok(())
        })?;
        if number == 1 {
            println!("mail is taken again {:?} after it was expunged", expunged.elapsed());
        }
    }
    ensure!(cluster.nodes[0].is_running(), "the node has ended");
    ensure!(ann.select("INBOX")? as usize == again, "not all came");
    let mut bob = cluster.imap_client("bob@example.test")?;
    let kept: Vec<usize> = taken.into_iter().filter(|number| number.is_multiple_of(KEPT)).collect();
    ensure!(bob.select("INBOX")? as usize == kept.len(), "what was to be kept is not there");
    for (number, uid) in kept.into_iter().zip(1..) {
        let found = bob.body(uid)?.context("a letter that is kept")?;
        ensure!(found.ends_with(letter(number).as_bytes()), "letter {number} is another one");
    }
    cluster.admin(&["scrub"])?;
    if mirror {
        cluster.wait_whole("node1")?;
    }
    cluster.check_logs(&["disk is full, new mail is refused"])
}

#[test]
fn a_disk_full_of_mail_takes_mail_again_once_that_is_expunged() -> Result<()> {
    a_disk_full_of_mail(false)
}

#[test]
fn a_mirror_full_of_mail_takes_mail_again_once_that_is_expunged() -> Result<()> {
    a_disk_full_of_mail(true)
}
