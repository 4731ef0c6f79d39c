//! Damage on a disk: bits that flip where they lie, under mail that is large enough to lie in tables.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::imap::literal;
use crate::process::{START_MAX, eventually};
use crate::random::Random;

/// More than the database keeps in memory before it writes tables.
pub const LARGE_MESSAGES: usize = 30;
const LARGE_OCTETS: usize = 1 << 20;
/// Of eight octets.
const LINE_WORDS: usize = 9;
/// The octet of a large message that is damaged: in the first piece that a client is sent, so that nothing was sent yet.
const FLIPPED_AT: usize = 10_000;
/// In the last piece, of another record.
const FLIPPED_LATE_AT: usize = LARGE_OCTETS - 10_000;
/// No other message has these octets behind it.
const NEEDLE_OCTETS: usize = 64;

/// The files on a disk that have one of these extensions.
pub fn files_of(disk: &Path, kinds: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![disk.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| kinds.iter().any(|kind| extension == *kind)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The kinds of files that hold records.
pub const TABLES: &[&str] = &["sst", "blob"];
/// Write-ahead logs.
pub const LOGS: &[&str] = &["log"];

/// Flips one bit at each of many places, all over a disk's tables, where they are. Answers how many.
pub fn flip(disk: &Path, kinds: &[&str], random: &mut Random, places: usize) -> Result<usize> {
    let mut flipped = 0;
    let files: Vec<(fs::File, u64)> = files_of(disk, kinds)?
        .iter()
        .filter_map(|path| {
            // Compactions remove files at any time.
            let file = fs::File::options().read(true).write(true).open(path).ok()?;
            let length = file.metadata().ok()?.len();
            (length > 0).then_some((file, length))
        })
        .collect();
    let total: u64 = files.iter().map(|(_, length)| length).sum();
    for _ in 0..places {
        let mut at = random.below(total.max(1));
        for (file, length) in &files {
            if at < *length {
                flip_at(file, at, random.below(8))?;
                flipped += 1;
                break;
            }
            at -= length;
        }
    }
    Ok(flipped)
}

/// In a smaller table most is not records.
const TABLE_OCTETS_MIN: u64 = 8 * 1024;

/// Flips a bit in each table of a kind of records, where those of shards are: the directory's stand first. Answers how
/// many tables.
pub fn flip_tables(disk: &Path, family: &str, random: &mut Random) -> Result<usize> {
    // Its name is among the properties, behind the records.
    let name = format!("name{family}").into_bytes();
    let mut flipped = 0;
    for path in files_of(disk, &["sst"])? {
        let octets = fs::read(&path)?;
        let is_family = octets.windows(name.len()).any(|window| window == name);
        let octets = octets.len() as u64;
        if is_family && octets >= TABLE_OCTETS_MIN {
            let file = fs::File::options().read(true).write(true).open(&path)?;
            flip_at(&file, octets / 2 + random.below(octets / 8), 3)?;
            flipped += 1;
        }
    }
    Ok(flipped)
}

/// The write-ahead log that was written last.
pub fn live_log(disk: &Path) -> Result<PathBuf> {
    let mut logs = files_of(disk, LOGS)?;
    logs.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    logs.pop().with_context(|| format!("no log in {}", disk.display()))
}

/// Where what is written in a write-ahead log ends: the rest of the file is zeros.
fn end(log: &[u8]) -> u64 {
    log.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Flips a bit in the middle part of the live log of a database that is closed.
pub fn flip_log(disk: &Path, random: &mut Random) -> Result<()> {
    let log = live_log(disk)?;
    let octets = end(&fs::read(&log)?);
    ensure!(octets > 0, "{} is empty", log.display());
    flip_at(&fs::File::options().read(true).write(true).open(&log)?, octets / 4 + random.below(octets / 2), 0)
}

fn flip_at(file: &fs::File, at: u64, bit: u64) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << bit;
    Ok(file.write_all_at(&byte, at)?)
}

/// Large mail, so that the database has written tables: bit flips in a log are another matter. Nothing can compress it,
/// so that it is found where it lies.
fn large(number: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed, number as u64);
    let mut message = format!("From: large@example.test\r\nSubject: large {number}\r\n\r\n").into_bytes();
    while message.len() < LARGE_OCTETS {
        let octets = (0..LINE_WORDS).flat_map(|_| random.draw().to_le_bytes());
        message.extend(octets.map(|octet| if matches!(octet, 0 | b'\r' | b'\n') { octet | 0x80 } else { octet }));
        message.extend_from_slice(b"\r\n");
    }
    message
}

/// Flips a bit of a large message where it lies on a disk, the same one each time. False while it lies in no file but a
/// log.
pub fn flip_large(disk: &Path, number: usize, seed: u64) -> Result<bool> {
    flip_large_at(disk, number, seed, FLIPPED_AT)
}

/// The same where a client has been sent the beginning before it is met.
pub fn flip_large_late(disk: &Path, number: usize, seed: u64) -> Result<bool> {
    flip_large_at(disk, number, seed, FLIPPED_LATE_AT)
}

fn flip_large_at(disk: &Path, number: usize, seed: u64, octet: usize) -> Result<bool> {
    let message = large(number, seed);
    let needle = message.get(octet + 1..).and_then(|rest| rest.get(..NEEDLE_OCTETS)).context("a short message")?;
    let mut found = false;
    for path in files_of(disk, &["blob"])? {
        let octets = fs::read(&path)?;
        let file = fs::File::options().read(true).write(true).open(&path)?;
        // The first octet before all of them: a comparison at each of so many places would take seconds.
        let is_there = |at: usize| octets[at] == needle[0] && octets[at..].starts_with(needle);
        for at in (0..octets.len()).filter(|at| is_there(*at)) {
            flip_at(&file, (at as u64).checked_sub(1).context("at the beginning of a file")?, 2)?;
            found = true;
        }
    }
    Ok(found)
}

/// Puts large mail into a mailbox of user0.
pub fn fill(cluster: &Cluster, seed: u64) -> Result<()> {
    for number in 0..LARGE_MESSAGES {
        eventually("a large message is stored", START_MAX, || {
            let mut imap = cluster.imap_client("user0@example.test")?;
            imap.create("Large")?;
            // It may be there from an attempt whose answer was lost.
            match imap.select("Large")? as usize {
                stored if stored > number => Ok(()),
                _ => imap.append("Large", &large(number, seed)).map(drop),
            }
        })?;
    }
    Ok(())
}

/// Every large message, byte for byte.
pub fn check_large(cluster: &Cluster, seed: u64) -> Result<()> {
    check_large_but(cluster, seed, &[])
}

/// Every large message but some is served byte for byte; those are known, and refused.
pub fn check_large_but(cluster: &Cluster, seed: u64, refused: &[usize]) -> Result<()> {
    let mut imap = cluster.imap_client("user0@example.test")?;
    imap.select("Large")?;
    let uids = imap.uids()?;
    ensure!(uids.len() == LARGE_MESSAGES, "{} of {LARGE_MESSAGES} large messages", uids.len());
    for (number, uid) in uids.into_iter().enumerate() {
        if refused.contains(&number) {
            let (untagged, tagged) = imap.command(&format!("UID FETCH {uid} BODY.PEEK[]"))?;
            ensure!(tagged.starts_with("NO") && untagged.is_empty(), "large message {number}: {tagged}");
            continue;
        }
        let body = imap.body(uid)?.with_context(|| format!("large message {number}"))?;
        ensure!(body == large(number, seed), "large message {number} is not what it was");
    }
    Ok(())
}

/// One FETCH brings every large message but some, byte for byte, and says at its end which it lacks; the session goes on.
pub fn check_range_but(cluster: &Cluster, seed: u64, refused: &[usize]) -> Result<()> {
    let mut imap = cluster.imap_client("user0@example.test")?;
    imap.select("Large")?;
    let uids = imap.uids()?;
    let (untagged, tagged) = imap.command("UID FETCH 1:* (BODY.PEEK[])")?;
    let mut expected = uids.iter().enumerate().filter(|(number, _)| !refused.contains(number));
    for response in untagged {
        let (number, uid) = expected.next().context("more messages than there are")?;
        let head = format!("(UID {uid} BODY[] {{");
        let is_its = response.windows(head.len()).take(100).any(|some| some == head.as_bytes());
        ensure!(is_its, "{}", String::from_utf8_lossy(&response[..response.len().min(100)]));
        ensure!(literal(&response).as_ref() == Some(&large(number, seed)), "large message {number} is not what it was");
    }
    ensure!(expected.next().is_none(), "messages are missing: {tagged}");
    let mut lacking: Vec<u32> = refused.iter().filter_map(|number| uids.get(*number)).copied().collect();
    lacking.sort_unstable();
    match lacking[..] {
        [] => ensure!(tagged.starts_with("OK"), "{tagged}"),
        [uid] => ensure!(tagged.ends_with(&format!(": 1 message was left out, UID {uid}")), "{tagged}"),
        _ => {
            let named: Vec<String> = lacking.iter().map(ToString::to_string).collect();
            let told = format!(": {} messages were left out, UIDs {}", lacking.len(), named.join(","));
            ensure!(tagged.starts_with("NO [CORRUPTION]") && tagged.ends_with(&told), "{tagged}");
        }
    }
    let (number, uid) =
        uids.iter().enumerate().rfind(|(number, _)| !refused.contains(number)).context("none is left")?;
    ensure!(imap.body(*uid)?.as_ref() == Some(&large(number, seed)), "the session does not go on");
    Ok(())
}
