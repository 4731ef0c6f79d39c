//! What a volume says to damage: a torn tail is taken, all else is refused by name.

mod common;

use std::path::Path;

use bytes::Bytes;
use common::{SHARD, append, copy_files, copy_volume, entry, forget_mark, live_wal, open, options};
use storage::{StorageError, Volume, VolumeOptions};

const ENTRIES: u64 = 40;

/// A volume with entries 0.. of 500 bytes, closed without a flush of its memtables.
fn written(directory: &Path) {
    let volume = open(directory);
    let group = volume.group(SHARD).unwrap();
    for index in 0..ENTRIES {
        append(&group, vec![entry(index, vec![index as u8; 500], None)]);
    }
}

fn refused(directory: &Path) -> StorageError {
    Volume::open(options(directory)).err().expect("the volume must be refused")
}

#[test]
fn a_torn_tail_opens_with_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let whole = std::fs::read(&wal).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in (end - 1500..end).step_by(97) {
        let copy = tempfile::tempdir().unwrap();
        copy_volume(directory.path(), copy.path());
        forget_mark(copy.path());
        std::fs::write(live_wal(copy.path()), &whole[..cut]).unwrap();
        let volume = open(copy.path());
        let group = volume.group(SHARD).unwrap();
        let entries = group.read(0, u64::MAX, usize::MAX).unwrap();
        assert!((36..ENTRIES).contains(&(entries.len() as u64)), "cut at {cut}: {}", entries.len());
        assert!(entries.iter().zip(0..).all(|(entry, index)| entry.head == vec![index as u8; 500]));
    }
}

#[test]
fn a_torn_tail_that_was_acknowledged_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let whole = std::fs::read(&wal).unwrap();
    std::fs::write(&wal, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(refused(directory.path()), StorageError::Behind { .. }));
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let mut bytes = std::fs::read(&wal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&wal, &bytes).unwrap();
    let error = refused(directory.path());
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[test]
fn a_deleted_live_log_is_refused_before_the_database_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let aside = directory.path().join("aside");
    std::fs::rename(&wal, &aside).unwrap();
    assert!(matches!(refused(directory.path()), StorageError::Behind { found: 0, .. }));
    // Put back, everything is there.
    std::fs::rename(&aside, &wal).unwrap();
    let volume = open(directory.path());
    assert_eq!(volume.group(SHARD).unwrap().last_entry().unwrap().unwrap().index, ENTRIES - 1);
}

#[test]
fn a_lost_database_is_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    std::fs::remove_dir_all(directory.path().join("db")).unwrap();
    assert!(matches!(refused(directory.path()), StorageError::Behind { .. }));
    std::fs::remove_file(directory.path().join("MARK")).unwrap();
    let expected = VolumeOptions { create: false, ..options(directory.path()) };
    assert!(matches!(Volume::open(expected), Err(StorageError::Refused(_))));
}

#[test]
fn an_old_copy_of_the_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let old = tempfile::tempdir().unwrap();
    copy_volume(directory.path(), old.path());
    {
        let volume = open(directory.path());
        append(&volume.group(SHARD).unwrap(), vec![entry(ENTRIES, "later", None)]);
    }
    std::fs::remove_dir_all(directory.path().join("db")).unwrap();
    copy_files(&old.path().join("db"), &directory.path().join("db"));
    assert!(matches!(refused(directory.path()), StorageError::Behind { .. }));
}

#[test]
fn a_volume_that_was_closed_and_opened_often_is_never_behind_its_mark() {
    let directory = tempfile::tempdir().unwrap();
    for index in 0..6 {
        let volume = open(directory.path());
        let group = volume.group(SHARD).unwrap();
        append(&group, vec![entry(index, "x", Some(Bytes::from(vec![7; 3000])))]);
        group.set_applied(Bytes::from("m")).unwrap();
    }
}
