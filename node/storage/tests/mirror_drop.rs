//! A mirror that loses a half: serving goes on, the survivor says so before the next acknowledgement, and the stale
//! half is never read again.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::mirror::{
    EIO, ENOSPC, Failure, Script, assert_entries, assert_equal_halves, body, copy_half, delete, head, is_current,
    mirror_options, newest_wal, open_mirror, put, status, wait_until, wait_whole,
};
use common::{SHARD, done, entry, marker};
use storage::{GroupId, HalfName, HalfState, Operation, StorageError, Volume, VolumeOptions};

const BOTH: [HalfName; 2] = [HalfName::A, HalfName::B];

fn directory(root: &Path, name: HalfName) -> std::path::PathBuf {
    root.join(name.to_string())
}

fn with_script(root: &Path, script: &Arc<Script>) -> Volume {
    Volume::open(VolumeOptions { faults: Some(script.clone()), ..mirror_options(root) }).unwrap()
}

/// What a half's own record says.
fn recorded(root: &Path, name: HalfName) -> String {
    std::fs::read_to_string(directory(root, name).join("HALF")).unwrap()
}

/// The half that was left behind is not used even where the other one is not there.
fn assert_stale_alone(root: &Path, name: HalfName) {
    common::mirror::wait_until("the dropped half is told", || recorded(root, name).contains("self stale"));
    let moved = root.join("aside");
    std::fs::rename(directory(root, name.other()), &moved).unwrap();
    let error = Volume::open(mirror_options(root)).err().expect("the stale half alone is refused");
    assert!(matches!(error, StorageError::Refused(_)), "{error}");
    std::fs::rename(moved, directory(root, name.other())).unwrap();
}

/// Four threads append and apply; in the midst a half fails. No caller sees an error, and all is there after a reopen.
fn fails_under_load(name: HalfName, operation: Operation, failure: Failure) {
    let what = format!("{name} {operation:?} {failure:?}");
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_script(root.path(), &script);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (volume, written, script) = (&volume, &written, &script);
            scope.spawn(move || {
                let group = volume.group(GroupId(thread)).unwrap();
                for index in 1..=100 {
                    put(&group, index);
                    group.set_applied(marker(index)).unwrap();
                    assert_eq!(group.applied().unwrap(), Some(marker(index)));
                    // By one of them: whoever looks from outside may come when all is written.
                    if written.fetch_add(1, Ordering::Relaxed) == 80 {
                        script.set(name, operation, failure);
                    }
                }
            });
        }
    });
    assert!(matches!(status(&volume, name).state, HalfState::Stale { .. }), "{what}: {:?}", volume.halves());
    assert!(is_current(&volume, name.other()), "{what}");
    let survivor = recorded(root.path(), name.other());
    assert!(survivor.contains("partner stale") && survivor.contains("epoch 2"), "{what}: {survivor}");
    for thread in 0..4 {
        assert_entries(&volume.group(GroupId(thread)).unwrap(), 100);
    }
    volume.check().unwrap();
    script.clear();
    drop(volume);
    assert_stale_alone(root.path(), name);
    let volume = open_mirror(root.path());
    for thread in 0..4 {
        let group = volume.group(GroupId(thread)).unwrap();
        assert_entries(&group, 100);
        assert_eq!(group.applied().unwrap(), Some(marker(100)), "{what}");
    }
}

#[test]
fn an_error_on_fsync_drops_the_half() {
    BOTH.into_iter().for_each(|name| fails_under_load(name, Operation::Sync, Failure::Error(EIO)));
}

#[test]
fn an_error_on_a_write_drops_the_half() {
    BOTH.into_iter().for_each(|name| fails_under_load(name, Operation::Write, Failure::Error(EIO)));
}

#[test]
fn a_full_half_is_dropped() {
    BOTH.into_iter().for_each(|name| fails_under_load(name, Operation::Write, Failure::Error(ENOSPC)));
}

#[test]
fn a_half_without_room_is_given_up_before_it_is_full() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        (1..=20).for_each(|index| put(&group, index));
        assert!(volume.drop_full(name, "its disk is full").unwrap());
        assert_eq!(status(&volume, name).state, HalfState::Stale { reason: "its disk is full".to_owned() });
        let survivor = recorded(root.path(), name.other());
        assert!(survivor.contains("partner stale") && survivor.contains("epoch 2"), "{survivor}");
        assert_eq!(volume.statistics().halves_dropped, 1);
        // It is out of use already, and the other one is the last.
        assert!(volume.drop_full(name, "again").unwrap() && !volume.drop_full(name.other(), "too").unwrap());
        (21..=40).for_each(|index| put(&group, index));
        assert_entries(&group, 40);
        assert_eq!((is_current(&volume, name.other()), volume.statistics().halves_dropped), (true, 1));
        volume.resilver(name).unwrap();
        common::mirror::wait_whole(&volume);
        drop((group, volume));
        assert_entries(&open_mirror(root.path()).group(SHARD).unwrap(), 40);
    }
}

#[test]
fn a_half_without_room_stays_where_the_other_one_owes_an_answer() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_script(root.path(), &script);
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    script.set(HalfName::B, Operation::Sync, Failure::Hang);
    let (done, acknowledged) = done();
    group.append(vec![entry(2, head(2), Some(body(2)))], done).unwrap();
    common::mirror::wait_until("its disk does not answer", || script.hung() > 0);
    assert!(!volume.drop_full(HalfName::A, "its disk is full").unwrap());
    assert!(is_current(&volume, HalfName::A));
    script.clear();
    acknowledged.recv().unwrap().unwrap();
    assert_entries(&group, 2);
}

#[test]
fn a_half_that_hangs_in_fsync_is_dropped() {
    BOTH.into_iter().for_each(|name| fails_under_load(name, Operation::Sync, Failure::Hang));
}

#[test]
fn a_half_that_hangs_in_a_write_is_dropped() {
    BOTH.into_iter().for_each(|name| fails_under_load(name, Operation::Write, Failure::Hang));
}

#[test]
fn an_error_on_a_read_drops_the_half_that_is_read() {
    fails_under_load(HalfName::A, Operation::Read, Failure::Error(EIO));
}

#[test]
fn a_slow_half_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_script(root.path(), &script);
    let group = volume.group(SHARD).unwrap();
    for name in BOTH {
        script.set(name, Operation::Sync, Failure::Delay(std::time::Duration::from_millis(200)));
    }
    for index in 1..=5 {
        put(&group, index);
    }
    assert!(BOTH.iter().all(|name| is_current(&volume, *name)), "{:?}", volume.halves());
}

#[test]
fn nothing_is_acknowledged_before_the_drop_is_recorded() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let script = Script::new();
        let volume = with_script(root.path(), &script);
        let group = volume.group(SHARD).unwrap();
        put(&group, 1);
        script.set(name.other(), Operation::Record, Failure::Hang);
        script.set(name, Operation::Sync, Failure::Error(EIO));
        let (done, acknowledged) = done();
        group.append(vec![entry(2, head(2), Some(body(2)))], done).unwrap();
        // The record cannot be written yet. A sleep proves nothing more than that it is not at once.
        let early = acknowledged.recv_timeout(std::time::Duration::from_millis(300));
        assert!(early.is_err(), "{early:?}");
        assert!(recorded(root.path(), name.other()).contains("partner current"));
        script.clear();
        acknowledged.recv().unwrap().unwrap();
        assert!(recorded(root.path(), name.other()).contains("partner stale"));
    }
}

#[test]
fn a_drop_that_cannot_be_recorded_fails_the_volume() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_script(root.path(), &script);
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    script.set(HalfName::A, Operation::Record, Failure::Error(EIO));
    script.set(HalfName::B, Operation::Sync, Failure::Error(EIO));
    let (done, acknowledged) = done();
    group.append(vec![entry(2, head(2), None)], done).unwrap();
    assert!(matches!(acknowledged.recv().unwrap(), Err(StorageError::Failed(_))));
    assert!(volume.check().is_err());
    drop((group, volume));
    let volume = open_mirror(root.path());
    let group = volume.group(SHARD).unwrap();
    assert_entries(&group, 1);
}

#[test]
fn when_the_last_half_fails_the_volume_has_failed() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_script(root.path(), &script);
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    script.set(HalfName::A, Operation::Sync, Failure::Error(EIO));
    put(&group, 2);
    script.set(HalfName::B, Operation::Sync, Failure::Error(EIO));
    let (done, acknowledged) = done();
    group.append(vec![entry(3, head(3), None)], done).unwrap();
    assert!(matches!(acknowledged.recv().unwrap(), Err(StorageError::Failed(_))));
    assert_entries(&group, 2);
    drop((group, volume));
    let volume = open_mirror(root.path());
    assert_entries(&volume.group(SHARD).unwrap(), 2);
    // It was left behind, and is made anew.
    common::mirror::wait_whole(&volume);
    assert_eq!(volume.statistics().resilvers, 1);
}

#[test]
fn a_half_whose_directory_is_deleted_is_dropped_while_serving_goes_on() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        (1..=20).for_each(|index| put(&group, index));
        delete(&directory(root.path(), name));
        (21..=40).for_each(|index| put(&group, index));
        assert!(matches!(status(&volume, name).state, HalfState::Stale { .. }), "{:?}", volume.halves());
        assert_entries(&group, 40);
        drop((group, volume));
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        assert_entries(&group, 40);
        put(&group, 41);
    }
}

/// A closed mirror that each test damages in its own way: entries 1 to 40.
fn written(root: &Path) {
    let volume = open_mirror(root);
    let group = volume.group(SHARD).unwrap();
    for index in 1..=40 {
        put(&group, index);
        group.set_applied(marker(index)).unwrap();
    }
}

fn opens_without(root: &Path, name: HalfName, what: &str) {
    let volume = open_mirror(root);
    let record = recorded(root, name.other());
    assert!(record.contains("epoch 2"), "{what}: {record}");
    let group = volume.group(SHARD).unwrap();
    assert_entries(&group, 40);
    assert_eq!(group.applied().unwrap(), Some(marker(40)), "{what}");
    put(&group, 41);
    drop((group, volume));
    let volume = open_mirror(root);
    assert_entries(&volume.group(SHARD).unwrap(), 41);
}

#[test]
fn a_half_whose_live_log_was_deleted_is_not_read() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        written(root.path());
        std::fs::remove_file(newest_wal(&directory(root.path(), name))).unwrap();
        opens_without(root.path(), name, "live log deleted");
    }
}

#[test]
fn a_half_that_was_deleted_while_closed_is_missed_by_nobody() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        written(root.path());
        std::fs::remove_dir_all(directory(root.path(), name)).unwrap();
        opens_without(root.path(), name, "directory deleted");
    }
}

#[test]
fn an_old_copy_of_a_half_is_not_read() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        (1..=10).for_each(|index| put(&volume.group(SHARD).unwrap(), index));
        drop(volume);
        let old = tempfile::tempdir().unwrap();
        copy_half(&directory(root.path(), name), old.path());
        for from in [11, 21, 31] {
            let volume = open_mirror(root.path());
            let group = volume.group(SHARD).unwrap();
            for index in from..from + 10 {
                put(&group, index);
                group.set_applied(marker(index)).unwrap();
            }
        }
        std::fs::remove_dir_all(directory(root.path(), name)).unwrap();
        copy_half(old.path(), &directory(root.path(), name));
        opens_without(root.path(), name, "old copy");
    }
}

#[test]
fn a_stale_copy_that_comes_back_after_a_drop_is_not_read() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let script = Script::new();
        let volume = with_script(root.path(), &script);
        let group = volume.group(SHARD).unwrap();
        put(&group, 1);
        let old = tempfile::tempdir().unwrap();
        copy_half(&directory(root.path(), name), old.path());
        script.set(name, Operation::Sync, Failure::Error(EIO));
        for index in 2..=40 {
            put(&group, index);
            group.set_applied(marker(index)).unwrap();
        }
        drop((group, volume));
        // As it was while it was still current: nothing on it tells.
        std::fs::remove_dir_all(directory(root.path(), name)).unwrap();
        copy_half(old.path(), &directory(root.path(), name));
        opens_without(root.path(), name, "old copy");
    }
}

#[test]
fn a_half_that_comes_back_as_a_link_to_the_other_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    let [a, b] = BOTH.map(|name| directory(root.path(), name));
    std::fs::remove_dir_all(&b).unwrap();
    // So that it stays away for now.
    std::fs::write(&b, "").unwrap();
    let volume = open_mirror(root.path());
    wait_until(
        "it cannot be made anew",
        || matches!(status(&volume, HalfName::B).state, HalfState::Stale { reason } if reason.starts_with("resilver")),
    );
    std::fs::remove_file(&b).unwrap();
    std::os::unix::fs::symlink(&a, &b).unwrap();
    volume.resilver(HalfName::B).unwrap();
    wait_until(
        "it is refused",
        || matches!(status(&volume, HalfName::B).state, HalfState::Stale { reason } if reason.contains("one directory")),
    );
    assert_entries(&volume.group(SHARD).unwrap(), 40);
    put(&volume.group(SHARD).unwrap(), 41);
    drop(volume);
    std::fs::remove_file(&b).unwrap();
    let volume = open_mirror(root.path());
    assert_entries(&volume.group(SHARD).unwrap(), 41);
}

/// As the node opens it: each disk says whose it is beside what the volume says itself.
fn known(root: &Path) -> VolumeOptions {
    VolumeOptions { is_one_volume: true, ..mirror_options(root) }
}

#[test]
fn a_half_that_has_lost_only_its_record_is_made_anew() {
    for (name, is_moved) in [(HalfName::A, false), (HalfName::B, false), (HalfName::A, true), (HalfName::B, true)] {
        let root = tempfile::tempdir().unwrap();
        written(root.path());
        if is_moved {
            // So that its database has another number than the first one.
            std::fs::remove_dir_all(directory(root.path(), name)).unwrap();
            let volume = open_mirror(root.path());
            wait_whole(&volume);
        }
        std::fs::remove_file(directory(root.path(), name).join("HALF")).unwrap();
        // By itself it may be anybody's.
        let error = Volume::open(mirror_options(root.path())).err().expect("refused").to_string();
        assert!(error.contains("another volume"), "{error}");
        let volume = Volume::open(known(root.path())).unwrap();
        assert_entries(&volume.group(SHARD).unwrap(), 40);
        put(&volume.group(SHARD).unwrap(), 41);
        wait_whole(&volume);
        drop(volume);
        assert_equal_halves(root.path());
        assert_entries(&open_mirror(root.path()).group(SHARD).unwrap(), 41);
    }
}

#[test]
fn a_half_without_a_record_that_has_more_than_the_other_is_not_given_up() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        (1..=10).for_each(|index| put(&volume.group(SHARD).unwrap(), index));
        drop(volume);
        let old = tempfile::tempdir().unwrap();
        copy_half(&directory(root.path(), name.other()), old.path());
        let volume = open_mirror(root.path());
        (11..=40).for_each(|index| put(&volume.group(SHARD).unwrap(), index));
        drop(volume);
        let record = directory(root.path(), name).join("HALF");
        let kept = std::fs::read(&record).unwrap();
        std::fs::remove_file(&record).unwrap();
        std::fs::remove_dir_all(directory(root.path(), name.other())).unwrap();
        copy_half(old.path(), &directory(root.path(), name.other()));
        let error = Volume::open(known(root.path())).err().expect("refused").to_string();
        assert!(error.contains("has lost its record") && error.contains("newest disks"), "{error}");
        // It is as it was.
        std::fs::write(&record, kept).unwrap();
        let volume = open_mirror(root.path());
        assert_entries(&volume.group(SHARD).unwrap(), 40);
    }
}
