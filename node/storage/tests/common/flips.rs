//! Flipped bits in the files of a closed volume.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use super::mirror::{body, files};

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
    let bad = body(index);
    let needle = &bad[500..600];
    let mut flipped = 0;
    for path in files_of(half, "blob") {
        let bytes = std::fs::read(&path).unwrap();
        for (at, _) in bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle) {
            flip(&path, at as u64);
            flipped += 1;
        }
    }
    assert!(flipped > 0, "body {index} lies in a blob file");
}
