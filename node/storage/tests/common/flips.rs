//! Flipped bits in the files of a closed volume.
#![allow(dead_code)]

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mirror::{body, files};

/// To repeat a failure: it prints its seed. With MAILRING_LONG=1 there are more.
pub fn seeds() -> Range<u64> {
    match std::env::var_os("MAILRING_LONG").is_some_and(|value| value == "1") {
        true => 1..9,
        false => 1..4,
    }
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

pub fn files_of(half: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = files(half);
    found.retain(|path| path.extension().is_some_and(|own| own == extension));
    found.sort();
    found
}

pub fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// Flips bits in files' parts that hold records, not at their ends.
pub fn flip_some(files: &[PathBuf], flips: usize, random: &mut Random) {
    assert!(!files.is_empty());
    for _ in 0..flips {
        let file = &files[random.below(files.len() as u64) as usize];
        let len = std::fs::metadata(file).unwrap().len();
        flip(file, len / 20 + random.below(len * 4 / 5));
    }
}

/// Where a body lies in a half: in a blob file, uncompressed for it is random.
pub fn flip_body(half: &Path, index: u64) {
    assert!(flip_where(half, "blob", &body(index)[500..600]) > 0, "body {index} lies in a blob file");
}

/// Flips a bit wherever some octets lie in a half's files of a kind. Answers in how many places.
pub fn flip_where(half: &Path, extension: &str, needle: &[u8]) -> usize {
    let mut flipped = 0;
    for path in files_of(half, extension) {
        for at in places(&path, needle) {
            flip(&path, at);
            flipped += 1;
        }
    }
    flipped
}

/// Flips a bit where some octets lie first in a file of a kind, which in a table is before its index, and another one shortly
/// before it: where the block begins with them, the one before may end with what is like them.
pub fn flip_first(half: &Path, extension: &str, needle: &[u8]) -> bool {
    let first = |path: PathBuf| Some((places(&path, needle).first().copied()?, path));
    let Some((at, path)) = files_of(half, extension).into_iter().find_map(first) else { return false };
    flip(&path, at);
    flip(&path, at.saturating_sub(200));
    true
}

/// Whether some octets lie in a half's files of a kind.
pub fn lies_in(half: &Path, extension: &str, needle: &[u8]) -> bool {
    files_of(half, extension).iter().any(|path| !places(path, needle).is_empty())
}

/// A file may go meanwhile.
fn places(path: &Path, needle: &[u8]) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let found = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
    found.map(|(at, _)| at as u64).collect()
}
