//! Flipped bits: what one half cannot read is served from the other, and the half is made anew.

mod common;

use std::path::{Path, PathBuf};

use common::flips::{Random, files_of, seeds};
use common::mirror::{
    assert_entries, assert_equal_halves, body, copy_mirror, head, mirror_options, newest_wal, wait_until, wait_whole,
    write_entries,
};
use common::{SHARD, append, entry, marker};
use storage::{Volume, VolumeOptions};

const ENTRIES: u64 = 2400;

/// Small memtables, so that there are tables and blob files.
fn damage_options(root: &Path, a_first: bool) -> VolumeOptions {
    let options = mirror_options(root);
    let (first, second) = if a_first { ("a", "b") } else { ("b", "a") };
    VolumeOptions {
        directory: root.join(first),
        mirror: Some(root.join(second)),
        memtable_bytes: 4 << 20,
        wal_bytes_max: 2 << 20,
        ..options
    }
}

fn written(root: &Path) {
    let volume = Volume::open(damage_options(root, true)).unwrap();
    write_entries(&volume.group(SHARD).unwrap(), ENTRIES);
}

fn flip(path: &Path, at: u64, random: &mut Random) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 1 << random.below(8);
    std::fs::write(path, bytes).unwrap();
}

/// Flips a bit in each of some files, in a part of each that is given in percent.
fn flip_in(files: &[PathBuf], (from, to): (u64, u64), flips: usize, random: &mut Random) {
    assert!(!files.is_empty());
    for _ in 0..flips {
        let file = &files[random.below(files.len() as u64) as usize];
        let len = std::fs::metadata(file).unwrap().len();
        let at = len * from / 100 + random.below((len * (to - from) / 100).max(1));
        flip(file, at, random);
    }
}

/// All is served, then both halves are made whole, and equal. Answers how many were made anew.
fn all_is_served(root: &Path, a_first: bool, what: &str) -> u64 {
    println!("{what}");
    let volume = Volume::open(damage_options(root, a_first)).unwrap();
    let group = volume.group(SHARD).unwrap();
    assert_entries(&group, ENTRIES);
    assert_eq!(group.applied().unwrap(), Some(marker(ENTRIES)));
    wait_whole(&volume);
    // The halves that were made anew are read too.
    assert_entries(&group, ENTRIES);
    append(&group, vec![entry(ENTRIES + 1, "last", None)]);
    wait_whole(&volume);
    let resilvers = volume.statistics().resilvers;
    drop((group, volume));
    assert_equal_halves(root);
    resilvers
}

#[test]
fn flipped_bits_in_tables_and_blobs_of_one_half_are_served_from_the_other() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    let mut resilvers = 0;
    for seed in seeds() {
        for (half, extension) in [("a", "sst"), ("a", "blob"), ("b", "sst"), ("b", "blob")] {
            let copy = tempfile::tempdir().unwrap();
            copy_mirror(root.path(), copy.path());
            let mut random = Random(seed * 0x9e37_79b9);
            flip_in(&files_of(&copy.path().join(half), extension), (0, 100), 4, &mut random);
            // The damaged half is the one that is read.
            resilvers += all_is_served(
                copy.path(),
                half == "a",
                &format!("seed {seed}: 4 flips in {extension} files of {half}"),
            );
        }
    }
    // A flip may lie where nothing is read.
    assert!(resilvers > seeds().count() as u64, "{resilvers}");
}

#[test]
fn flipped_bits_in_the_log_of_one_half_are_served_from_the_other() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    let mut resilvers = 0;
    for seed in seeds() {
        for half in ["a", "b"] {
            let copy = tempfile::tempdir().unwrap();
            copy_mirror(root.path(), copy.path());
            let mut random = Random(seed * 0x9e37_79b9);
            let wal = newest_wal(&copy.path().join(half));
            let end = std::fs::read(&wal).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
            flip(&wal, random.below(end), &mut random);
            resilvers += all_is_served(copy.path(), half == "a", &format!("seed {seed}: a flip in the log of {half}"));
        }
    }
    assert!(resilvers > seeds().count() as u64 / 2, "{resilvers}");
}

/// The blob files of one half are damaged where the older entries are, those of the other where the newer are.
#[test]
fn with_both_halves_damaged_in_different_places_every_record_is_served() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    let mut resilvers = 0;
    for seed in seeds() {
        let copy = tempfile::tempdir().unwrap();
        copy_mirror(root.path(), copy.path());
        let mut random = Random(seed * 0x9e37_79b9);
        let (older, newer) = if seed % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let third = |half: &str| {
            let files = files_of(&copy.path().join(half), "blob");
            // A busy machine flushes several memtables into one file.
            assert!(files.len() >= 2, "{} blob files", files.len());
            let third = (files.len() / 3).max(1);
            (files[..third].to_vec(), files[files.len() - third..].to_vec())
        };
        flip_in(&third(older).0, (5, 95), 3, &mut random);
        flip_in(&third(newer).1, (5, 95), 3, &mut random);
        resilvers += all_is_served(copy.path(), true, &format!("seed {seed}: 3 flips in blob files of each half"));
    }
    assert!(resilvers > seeds().count() as u64, "{resilvers}");
}

#[test]
fn a_record_that_is_bad_on_both_halves_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    for half in ["a", "b"] {
        let bad = body(100);
        let needle = &bad[500..600];
        let found = files_of(&root.path().join(half), "blob").into_iter().find_map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            bytes.windows(needle.len()).position(|window| window == needle).map(|at| (path, at as u64))
        });
        let (path, at) = found.expect("the body lies uncompressed in a blob file");
        flip(&path, at, &mut Random(1));
    }
    let volume = Volume::open(damage_options(root.path(), true)).unwrap();
    let group = volume.group(SHARD).unwrap();
    let error = group.read(100, 101, 1).unwrap_err();
    assert!(matches!(&error, storage::StorageError::Corrupt { key, .. } if key == "blob/7/100"), "{error}");
    // All others are served, and both halves made anew without that one.
    for index in [99, 101, ENTRIES] {
        assert_eq!(group.read(index, index + 1, 1).unwrap()[0].head, head(index));
    }
    wait_until("both are made anew", || volume.statistics().resilvers == 2);
    wait_whole(&volume);
    append(&group, vec![entry(ENTRIES + 1, "last", None)]);
    let error = group.read(100, 101, 1).unwrap_err();
    assert!(matches!(&error, storage::StorageError::Corrupt { key, .. } if key.ends_with("/7/100")), "{error}");
}
