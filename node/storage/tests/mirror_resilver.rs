//! A half is made anew while the volume serves, and then both hold the same, record by record.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use common::flips::flip_body;
use common::mirror::{
    EIO, ENOSPC, Failure, Script, Stop, assert_entries, assert_equal_halves, body, copy_half, copy_mirror, delete,
    is_current, mirror_options, newest_wal, open_mirror, put, small_mirror, status, wait_until, wait_whole,
    write_entries,
};
use common::{SHARD, marker};
use storage::{Group, GroupId, HalfName, HalfState, Identity, Operation, StorageError, Volume, VolumeOptions};
use types::NodeId;

const BOTH: [HalfName; 2] = [HalfName::A, HalfName::B];

fn directory(root: &Path, name: HalfName) -> PathBuf {
    root.join(name.to_string())
}

fn fill(group: &Group, from: u64, to: u64) {
    for index in from..=to {
        put(group, index);
        group.set_applied(marker(index)).unwrap();
    }
}

/// Entries 1 to `last`, in a closed mirror.
fn written(root: &Path, last: u64) {
    let volume = open_mirror(root);
    fill(&volume.group(SHARD).unwrap(), 1, last);
}

#[test]
fn a_lost_half_is_made_anew_when_the_volume_is_opened() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        written(root.path(), 60);
        std::fs::remove_dir_all(directory(root.path(), name)).unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        wait_whole(&volume);
        assert_eq!(volume.statistics().resilvers, 1);
        fill(&group, 61, 80);
        assert_entries(&group, 80);
        drop((group, volume));
        assert_equal_halves(root.path());
        // It holds all, by itself.
        std::fs::remove_dir_all(directory(root.path(), name.other())).unwrap();
        let volume = open_mirror(root.path());
        assert_entries(&volume.group(SHARD).unwrap(), 80);
    }
}

#[test]
fn a_half_is_made_anew_under_load_and_serves_alone_afterwards() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let script = Script::new();
        let options = VolumeOptions { faults: Some(script.clone()), ..mirror_options(root.path()) };
        let volume = Volume::open(options).unwrap();
        let (stop, last) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 4]);
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let (volume, stop, last) = (&volume, &stop, &last[thread as usize]);
                scope.spawn(move || {
                    let group = volume.group(GroupId(thread)).unwrap();
                    let mut index = 0;
                    for step in 1..20_000 {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        index += 1;
                        put(&group, index);
                        group.set_applied(marker(index)).unwrap();
                        if step % 40 == 0 {
                            group.truncate_after(Some(index - 3)).unwrap();
                            index -= 3;
                        }
                        assert_eq!(group.read(index, index + 1, 1).unwrap().len(), 1);
                        last.store(index, Ordering::Relaxed);
                    }
                });
            }
            let _stop = Stop(&stop);
            let grown = |by: u64| {
                let from: u64 = last.iter().map(|one| one.load(Ordering::Relaxed)).sum();
                wait_until("load", || last.iter().map(|one| one.load(Ordering::Relaxed)).sum::<u64>() > from + by);
            };
            grown(100);
            script.set(name, Operation::Sync, Failure::Error(EIO));
            wait_until("the half is dropped", || matches!(status(&volume, name).state, HalfState::Stale { .. }));
            script.clear();
            grown(100);
            volume.resilver(name).unwrap();
            wait_whole(&volume);
            grown(100);
            // And now the one that it was made from.
            script.set(name.other(), Operation::Sync, Failure::Error(EIO));
            wait_until("the other is dropped", || !is_current(&volume, name.other()));
            grown(50);
            script.clear();
            volume.resilver(name.other()).unwrap();
            wait_whole(&volume);
            grown(50);
        });
        let last = last.map(|one| one.into_inner());
        for (group, last) in (0..).zip(last) {
            assert_entries(&volume.group(GroupId(group)).unwrap(), last);
        }
        volume.check().unwrap();
        assert_eq!(volume.statistics().halves_dropped, 2);
        drop(volume);
        assert_equal_halves(root.path());
        let volume = open_mirror(root.path());
        for (group, last) in (0..).zip(last) {
            assert_entries(&volume.group(GroupId(group)).unwrap(), last);
        }
    }
}

#[test]
fn a_resilver_is_throttled_shows_its_progress_and_ends_with_the_volume() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    let group = volume.group(SHARD).unwrap();
    let body = Bytes::from((0..1 << 20).map(|n: u32| (n.wrapping_mul(n) >> 3) as u8).collect::<Vec<u8>>());
    for index in 1..=12 {
        common::append(&group, vec![common::entry(index, "head", Some(body.clone()))]);
    }
    drop((group, volume));
    std::fs::remove_dir_all(directory(root.path(), HalfName::B)).unwrap();
    let slow = VolumeOptions { resilver_bytes_per_s: 1 << 20, ..mirror_options(root.path()) };
    let volume = Volume::open(slow).unwrap();
    let copied = || match status(&volume, HalfName::B).state {
        HalfState::Resilvering { copied_bytes, .. } => copied_bytes,
        _ => 0,
    };
    wait_until("progress", || copied() > 0);
    let first = copied();
    wait_until("more progress", || copied() > first);
    assert!(copied() < 12 << 20, "12 MiB take 12 s at 1 MiB/s");
    // It serves meanwhile.
    let group = volume.group(SHARD).unwrap();
    common::append(&group, vec![common::entry(13, "head", None)]);
    // A crash in the midst leaves the one half that is whole.
    let crash = tempfile::tempdir().unwrap();
    copy_mirror(root.path(), crash.path());
    drop((group, volume));
    for root in [crash.path(), root.path()] {
        let volume = open_mirror(root);
        assert_eq!(volume.group(SHARD).unwrap().last_entry().unwrap().unwrap().index, 13);
        wait_whole(&volume);
        assert_eq!(volume.group(SHARD).unwrap().read(12, 13, 1).unwrap()[0].body.as_ref(), Some(&body));
        drop(volume);
        assert_equal_halves(root);
    }
}

/// A half that was made anew counts its writes from another start: catching up after a crash minds that.
#[test]
fn a_half_that_was_made_anew_catches_up_after_a_crash() {
    for cut_half in BOTH {
        let root = tempfile::tempdir().unwrap();
        written(root.path(), 50);
        std::fs::remove_dir_all(directory(root.path(), HalfName::B)).unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        wait_whole(&volume);
        fill(&group, 51, 60);
        let mark = std::fs::read_dir(directory(root.path(), cut_half)).unwrap().find_map(|entry| {
            let path = entry.unwrap().path();
            path.file_name().unwrap().to_str().unwrap().starts_with("MARK").then_some(path)
        });
        let mark = mark.unwrap();
        let early = std::fs::read(&mark).unwrap();
        fill(&group, 61, 90);
        put(&group, 91); // its sync takes the last apply along
        let crash = tempfile::tempdir().unwrap();
        copy_mirror(root.path(), crash.path());
        drop((group, volume));
        let half = directory(crash.path(), cut_half);
        std::fs::write(half.join(mark.file_name().unwrap()), &early).unwrap();
        let wal = newest_wal(&half);
        let whole = std::fs::read(&wal).unwrap();
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        std::fs::write(&wal, &whole[..end - 20_000]).unwrap();
        let volume = open_mirror(crash.path());
        assert!(volume.halves().iter().all(|half| half.state == HalfState::Current), "{:?}", volume.halves());
        assert_eq!(volume.statistics().resilvers, 0);
        let group = volume.group(SHARD).unwrap();
        assert_entries(&group, 91);
        assert_eq!(group.applied().unwrap(), Some(marker(90)));
        drop((group, volume));
        assert_equal_halves(crash.path());
    }
}

/// What the source has not synced when it is copied is in no log of the copy, which could not give it back.
#[test]
fn a_half_that_was_made_anew_is_level_with_its_source_on_the_disk() {
    for lost in BOTH {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        fill(&group, 1, 20);
        delete(&directory(root.path(), lost));
        put(&group, 21);
        wait_until("the loss is noticed", || !is_current(&volume, lost));
        group.set_applied(marker(21)).unwrap(); // no sync takes it along
        std::fs::create_dir(directory(root.path(), lost)).unwrap();
        volume.resilver(lost).unwrap();
        wait_whole(&volume);
        let crash = tempfile::tempdir().unwrap();
        copy_mirror(root.path(), crash.path());
        drop((group, volume));
        let wal = newest_wal(&directory(crash.path(), lost.other()));
        let whole = std::fs::read(&wal).unwrap();
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        std::fs::write(&wal, &whole[..end - 10]).unwrap();
        let volume = open_mirror(crash.path());
        wait_whole(&volume);
        let group = volume.group(SHARD).unwrap();
        assert_entries(&group, 21);
        assert_eq!(group.applied().unwrap(), Some(marker(21)));
        drop((group, volume));
        assert_equal_halves(crash.path());
    }
}

#[test]
fn an_empty_disk_put_in_place_is_filled_when_somebody_asks() {
    for name in BOTH {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        fill(&group, 1, 20);
        assert!(matches!(volume.resilver(name), Err(StorageError::Misuse(_))), "it is in use");
        delete(&directory(root.path(), name));
        fill(&group, 21, 40);
        std::fs::create_dir(directory(root.path(), name)).unwrap();
        volume.resilver(name).unwrap();
        wait_whole(&volume);
        fill(&group, 41, 60);
        drop((group, volume));
        assert_equal_halves(root.path());
    }
}

#[test]
fn what_belongs_to_another_volume_is_not_overwritten() {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(other.path(), 20);
    let volume = open_mirror(root.path());
    let group = volume.group(SHARD).unwrap();
    fill(&group, 1, 20);
    delete(&directory(root.path(), HalfName::B));
    fill(&group, 21, 25);
    copy_half(&directory(other.path(), HalfName::B), &directory(root.path(), HalfName::B));
    volume.resilver(HalfName::B).unwrap();
    wait_until("it is refused", || match status(&volume, HalfName::B).state {
        HalfState::Stale { reason } => reason.contains("another volume"),
        _ => false,
    });
    drop((group, volume));
    let files = common::mirror::records(&directory(root.path(), HalfName::B));
    assert_eq!(files, common::mirror::records(&directory(other.path(), HalfName::B)));
}

#[test]
fn a_volume_of_one_disk_becomes_a_mirror() {
    let root = tempfile::tempdir().unwrap();
    let volume = common::open(&root.path().join("a"));
    fill(&volume.group(SHARD).unwrap(), 1, 30);
    drop(volume);
    let volume = open_mirror(root.path());
    wait_whole(&volume);
    assert_entries(&volume.group(SHARD).unwrap(), 30);
    drop(volume);
    assert_equal_halves(root.path());
}

/// Why a half is not made anew.
fn unmade(volume: &Volume, name: HalfName) -> String {
    match status(volume, name).state {
        HalfState::Stale { reason } | HalfState::Damaged { unmade: Some(reason) } => reason,
        HalfState::Current | HalfState::Damaged { unmade: None } | HalfState::Resilvering { .. } => String::new(),
    }
}

/// No disk has room for this half.
fn without_room(name: HalfName) -> std::sync::Arc<Script> {
    let script = Script::new();
    script.set(name, Operation::Room, Failure::Error(ENOSPC));
    script
}

#[test]
fn a_half_that_there_was_no_room_for_is_made_anew_once_there_is() {
    let root = tempfile::tempdir().unwrap();
    written(root.path(), 20);
    std::fs::remove_dir_all(directory(root.path(), HalfName::B)).unwrap();
    let script = without_room(HalfName::B);
    let volume = Volume::open(VolumeOptions { faults: Some(script.clone()), ..mirror_options(root.path()) }).unwrap();
    wait_until("it is refused", || unmade(&volume, HalfName::B).contains("is too small"));
    fill(&volume.group(SHARD).unwrap(), 21, 30);
    script.clear();
    // Nobody asks.
    wait_until("it is made anew", || is_current(&volume, HalfName::B));
    assert_eq!(volume.statistics().resilvers, 1);
    drop(volume);
    assert_equal_halves(root.path());
}

#[test]
fn a_disk_that_has_come_in_the_place_of_one_without_room_waits_until_somebody_asks() {
    let root = tempfile::tempdir().unwrap();
    let disks = [root.path().join("disk-a"), root.path().join("disk-b")];
    disks.iter().for_each(|disk| Identity::new(NodeId(1), 7).write(disk).unwrap());
    let mirror = Some(disks[1].join("db"));
    let options = VolumeOptions { directory: disks[0].join("db"), mirror, ..mirror_options(root.path()) };
    fill(&Volume::open(options.clone()).unwrap().group(SHARD).unwrap(), 1, 20);
    std::fs::remove_dir_all(disks[1].join("db")).unwrap();
    let script = without_room(HalfName::B);
    let volume = Volume::open(VolumeOptions { faults: Some(script.clone()), ..options }).unwrap();
    wait_until("it is refused", || unmade(&volume, HalfName::B).contains("is too small"));
    Identity::remove(&disks[1]).unwrap();
    script.clear();
    wait_until("what is there today is told", || unmade(&volume, HalfName::B).contains("another disk"));
    assert_eq!(std::fs::read_dir(&disks[1]).unwrap().count(), 0, "nothing is written there");
    volume.resilver(HalfName::B).unwrap();
    wait_until("it is made anew", || is_current(&volume, HalfName::B));
    assert_entries(&volume.group(SHARD).unwrap(), 20);
}

#[test]
fn a_damaged_half_that_is_in_use_is_made_anew_when_somebody_asks() {
    let root = tempfile::tempdir().unwrap();
    write_entries(&Volume::open(small_mirror(root.path())).unwrap().group(SHARD).unwrap(), 1200);
    flip_body(&directory(root.path(), HalfName::A), 100);
    let script = without_room(HalfName::A);
    let volume = Volume::open(VolumeOptions { faults: Some(script.clone()), ..small_mirror(root.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    assert_eq!(group.read(100, 101, 1).unwrap()[0].body, Some(body(100)));
    wait_until("it is refused", || unmade(&volume, HalfName::A).contains("is too small"));
    volume.resilver(HalfName::A).unwrap();
    assert!(matches!(volume.resilver(HalfName::B), Err(StorageError::Misuse(_))), "it is in use, and sound");
    script.clear();
    wait_whole(&volume);
    assert_eq!((volume.statistics().resilvers, volume.statistics().halves_dropped), (1, 0));
    assert_entries(&group, 1200);
}
