//! A disk fills up: new mail is refused with its proper answer, what is there is read, expunged and flagged, and all goes
//! on by itself when there is room again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, DISK_RESERVE_OCTETS, Disk, Scenario, SmtpClient, disks_possible, eventually, rounds,
};

const DROPPED: &str = "mailring_node_volume_halves_dropped";
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
/// More than a database needs meanwhile.
const LARGE_LETTER_OCTETS: usize = 20 * LETTER_OCTETS;
/// Of mail at least, by which a disk is full of that.
const FILLED_OCTETS_MIN: usize = 40 * LETTER_OCTETS;
/// Far less than memtables and write-ahead logs take where nobody bounds them.
const SMALL_RESERVE_OCTETS: u64 = 64 * 1024 * 1024;
const STARTS_WHILE_FULL: usize = 2;
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
fn letter(number: usize, octets: usize) -> String {
    let mut seed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = format!("Subject: letter {number}\r\n\r\n");
    while letter.len() < octets {
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

/// A node with nothing but room for mail on its disks, and letters of one size.
struct Filled {
    cluster: Cluster,
    letter_octets: usize,
    /// The numbers of bob's letters, in their order: the ones that are kept.
    kept: Vec<usize>,
    /// Of the next letter.
    next: usize,
}

impl Filled {
    fn start(mirror: bool, reserve_octets: u64, letter_octets: usize) -> Result<Filled> {
        let disk_reserve_octets = Some(reserve_octets);
        let options = ClusterOptions { nodes: 1, replicas: 1, own_disks: true, mirror, ..ClusterOptions::default() };
        let cluster = Cluster::start(ClusterOptions { disk_reserve_octets, ..options })?;
        cluster.add_accounts(&["ann", "bob"])?;
        for disk in &cluster.disks {
            disk.fill(reserve_octets + MAIL_ROOM_OCTETS)?;
        }
        Ok(Filled { cluster, letter_octets, kept: Vec::new(), next: 0 })
    }

    /// Whether it was taken; refused for want of room it may be, for nothing else.
    fn is_taken(&mut self, smtp: &mut SmtpClient, keep: bool) -> Result<bool> {
        let account = if keep { "bob@example.test" } else { "ann@example.test" };
        match smtp.deliver("s@x.test", &[account], letter(self.next, self.letter_octets).as_bytes())? {
            (250, _) => {
                self.kept.extend(keep.then_some(self.next));
                self.next += 1;
                Ok(true)
            }
            (452, text) if text.starts_with("4.3.1") => Ok(false),
            (code, text) => bail!("{code} {text}"),
        }
    }

    /// Delivers until nothing is taken any more, one letter in so many to bob. Answers how many were taken.
    fn fill(&mut self, kept: usize) -> Result<usize> {
        let (mut smtp, before, mut refused) = (self.cluster.smtp_client()?, self.next, 0);
        while refused < REFUSED {
            let number = self.next - before;
            if self.is_taken(&mut smtp, number.is_multiple_of(kept))? {
                refused = 0;
            } else {
                refused += 1;
                std::thread::sleep(ASK_AGAIN);
            }
        }
        let taken = self.next - before;
        println!("{taken} letters of {} octets were taken, {:?} are left", self.letter_octets, self.free_octets()?);
        Ok(taken)
    }

    /// On each disk.
    fn free_octets(&self) -> Result<Vec<u64>> {
        self.cluster.disks.iter().map(Disk::free_octets).collect()
    }

    /// All of ann's letters go.
    fn expunge(&self) -> Result<()> {
        let mut ann = self.cluster.imap_client("ann@example.test")?;
        ann.select("INBOX")?;
        ann.ok("STORE 1:* +FLAGS.SILENT (\\Deleted)")?;
        ann.ok("EXPUNGE")?;
        ensure!(ann.select("INBOX")? == 0, "not all was expunged");
        Ok(())
    }

    /// So many letters for ann are taken, each sooner or later.
    fn take_again(&mut self, letters: usize) -> Result<()> {
        let (mut smtp, begun) = (self.cluster.smtp_client()?, Instant::now());
        for nth in 0..letters {
            eventually("mail is taken again", PATIENCE, || {
                ensure!(self.is_taken(&mut smtp, false)?, "refused");
                Ok(())
            })?;
            if nth == 0 {
                println!("mail is taken again {:?} after it was expunged", begun.elapsed());
            }
        }
        let mut ann = self.cluster.imap_client("ann@example.test")?;
        ensure!(ann.select("INBOX")? as usize == letters, "not all came");
        Ok(())
    }

    /// What was kept is there, no half was dropped, and a scrub finds nothing.
    fn check(&mut self) -> Result<()> {
        ensure!(self.cluster.nodes[0].is_running(), "the node has ended");
        let mut bob = self.cluster.imap_client("bob@example.test")?;
        ensure!(bob.select("INBOX")? as usize == self.kept.len(), "what was to be kept is not there");
        for (number, uid) in self.kept.iter().zip(1..) {
            let found = bob.body(uid)?.context("a letter that is kept")?;
            ensure!(found.ends_with(letter(*number, self.letter_octets).as_bytes()), "letter {number} is another one");
        }
        self.cluster.admin(&["scrub"])?;
        ensure!(self.cluster.nodes[0].metric(DROPPED)? == 0, "a half was dropped");
        if self.cluster.disks.len() > 1 {
            self.cluster.wait_whole("node1")?;
        }
        self.cluster.check_logs(&["disk is full, new mail is refused", "does not answer", "is not reachable"])
    }
}

fn a_disk_full_of_mail(mirror: bool, letter_octets: usize) -> Result<()> {
    a_disk_full_and_emptied(mirror, DISK_RESERVE_OCTETS, letter_octets, KEPT)
}

fn a_disk_full_and_emptied(mirror: bool, reserve_octets: u64, letter_octets: usize, kept: usize) -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let mut filled = Filled::start(mirror, reserve_octets, letter_octets)?;
    let taken = filled.fill(kept)?;
    ensure!(taken * letter_octets > FILLED_OCTETS_MIN, "the disk is full of something else");
    filled.expunge()?;
    // Not as much again as went: a write-ahead log keeps some beside it.
    filled.take_again((taken - taken / kept) / 2)?;
    filled.check()
}

/// What is kept lies among what goes, and has no room beside it: files are written anew a few at a time.
#[test]
fn a_disk_full_of_mail_takes_mail_again_though_every_second_letter_is_kept() -> Result<()> {
    a_disk_full_and_emptied(false, SMALL_RESERVE_OCTETS, LETTER_OCTETS, 2)
}

#[test]
fn a_disk_full_of_mail_takes_mail_again_once_that_is_expunged() -> Result<()> {
    a_disk_full_of_mail(false, LETTER_OCTETS)
}

/// The gap above the reserve, which no letter fits in, is not the reserve: the disk is not full, and yet to give room back.
#[test]
fn a_disk_full_of_large_mail_takes_it_again_once_that_is_expunged() -> Result<()> {
    a_disk_full_of_mail(false, LARGE_LETTER_OCTETS)
}

#[test]
fn a_mirror_full_of_mail_takes_mail_again_once_that_is_expunged() -> Result<()> {
    a_disk_full_of_mail(true, LETTER_OCTETS)
}

/// Each start writes out what was in memory, each reclaim what it moves, and neither may take the last room: with a reserve
/// that is smaller than what a database would write by itself.
#[test]
fn a_mirror_filled_killed_and_emptied_in_turns_takes_mail_each_time() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let mut filled = Filled::start(true, SMALL_RESERVE_OCTETS, LETTER_OCTETS)?;
    for turn in 0..rounds(2, 6) {
        let taken = filled.fill(KEPT * 4)?;
        ensure!(taken * LETTER_OCTETS > FILLED_OCTETS_MIN, "turn {turn}: the disks are full of something else");
        for _ in 0..STARTS_WHILE_FULL {
            filled.cluster.kill_all()?;
            filled.cluster.start_all()?;
            filled.cluster.wait_ready()?;
            println!("{:?} are left after a start", filled.free_octets()?);
        }
        filled.expunge()?;
        filled.take_again(taken / 2)?;
        filled.check()?;
        filled.expunge()?;
    }
    Ok(())
}
