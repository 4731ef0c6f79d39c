//! Damage on a disk: bits that flip where they lie, under mail that is large enough to lie in tables.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::load::Random;

/// More than the database keeps in memory before it writes tables.
const LARGE_MESSAGES: usize = 30;
const LARGE_OCTETS: usize = 1 << 20;

/// The files of a database that hold records.
fn tables(disk: &Path, kinds: &[&str]) -> Result<Vec<PathBuf>> {
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

/// Flips one bit at each of many places, all over a disk's tables, where they are. Answers how many.
pub fn flip(disk: &Path, kinds: &[&str], random: &mut Random, places: usize) -> Result<usize> {
    let mut flipped = 0;
    let files: Vec<(fs::File, u64)> = tables(disk, kinds)?
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
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                byte[0] ^= 1 << random.below(8);
                file.write_all_at(&byte, at)?;
                flipped += 1;
                break;
            }
            at -= length;
        }
    }
    Ok(flipped)
}

/// Large mail, so that the database has written tables: bit flips in a log are another matter.
fn large(number: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed, number as u64);
    let mut message = format!("From: large@example.test\r\nSubject: large {number}\r\n\r\n").into_bytes();
    while message.len() < LARGE_OCTETS {
        let line: String = (0..4).map(|_| format!("{:016x}", random.draw())).collect();
        message.extend_from_slice(line.as_bytes());
        message.extend_from_slice(b"\r\n");
    }
    message
}

/// Puts large mail into a mailbox of user0.
pub fn fill(cluster: &Cluster, seed: u64) -> Result<()> {
    let mut imap = cluster.imap_client("user0@example.test")?;
    imap.ok("CREATE Large")?;
    for number in 0..LARGE_MESSAGES {
        imap.append("Large", &large(number, seed))?;
    }
    Ok(())
}

/// Every large message, byte for byte.
pub fn check_large(cluster: &Cluster, seed: u64) -> Result<()> {
    let mut imap = cluster.imap_client("user0@example.test")?;
    imap.select("Large")?;
    let uids = imap.uids()?;
    ensure!(uids.len() == LARGE_MESSAGES, "{} of {LARGE_MESSAGES} large messages", uids.len());
    for (number, uid) in uids.into_iter().enumerate() {
        let body = imap.body(uid)?.with_context(|| format!("large message {number}"))?;
        ensure!(body == large(number, seed), "large message {number} is not what it was");
    }
    Ok(())
}
