//! A mirror that is whole: both halves hold the same, over closes and crashes.

mod common;

use common::mirror::{
    assert_entries, assert_equal_halves, body, copy_mirror, is_current, mirror_options, newest_wal, open_mirror, put,
};
use common::{SHARD, marker, open, options};
use storage::{HalfName, StorageError, Volume, VolumeOptions};

const BOTH: [HalfName; 2] = [HalfName::A, HalfName::B];

#[test]
fn both_halves_hold_the_same_records() {
    let root = tempfile::tempdir().unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let volume = open_mirror(root.path());
        assert!(BOTH.iter().all(|name| is_current(&volume, *name)), "{:?}", volume.halves());
        let group = volume.group(SHARD).unwrap();
        for index in last + 1..=last + 40 {
            put(&group, index);
            group.set_applied(marker(index)).unwrap();
        }
        last += 40;
        group.truncate_after(Some(last - 5)).unwrap();
        last -= 5;
        assert_entries(&group, last);
        drop(group);
        drop(volume);
        assert_equal_halves(root.path());
    }
}

#[test]
fn whoever_writes_from_several_threads_reads_what_was_written() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let volume = &volume;
            scope.spawn(move || {
                let group = volume.group(storage::GroupId(thread)).unwrap();
                for index in 1..=60 {
                    put(&group, index);
                    group.set_applied(marker(index)).unwrap();
                    assert_eq!(group.applied().unwrap(), Some(marker(index)));
                }
                assert_entries(&group, 60);
            });
        }
    });
    assert!(BOTH.iter().all(|name| is_current(&volume, *name)));
    drop(volume);
    assert_equal_halves(root.path());
}

/// A power cut leaves each half some of its unsynced tail. Wherever the log of the second one ends, it has the same as
/// the first when the volume is open again, without a resilver.
#[test]
fn a_half_that_lost_its_tail_catches_up_from_the_other() {
    for (cut_half, other) in [("b", HalfName::A), ("a", HalfName::B)] {
        let root = tempfile::tempdir().unwrap();
        let volume = open_mirror(root.path());
        let group = volume.group(SHARD).unwrap();
        for index in 1..=30 {
            put(&group, index);
        }
        let crash = tempfile::tempdir().unwrap();
        copy_mirror(root.path(), crash.path());
        // What came last was never synced: both marks know less.
        let mark = std::fs::read(crash.path().join(cut_half).join("MARK")).unwrap();
        for index in 31..=60 {
            put(&group, index);
            group.set_applied(marker(index)).unwrap();
        }
        put(&group, 61); // its sync takes the last apply along
        let crash = tempfile::tempdir().unwrap();
        copy_mirror(root.path(), crash.path());
        drop(group);
        drop(volume);
        let wal = std::fs::read(newest_wal(&crash.path().join(cut_half))).unwrap();
        let end = wal.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let mut caught_up = 0;
        for cut in (end / 2..end).step_by(end / 24) {
            let copy = tempfile::tempdir().unwrap();
            copy_mirror(crash.path(), copy.path());
            let half = copy.path().join(cut_half);
            std::fs::write(half.join("MARK"), &mark).unwrap();
            std::fs::write(newest_wal(&half), &wal[..cut]).unwrap();
            let volume = open_mirror(copy.path());
            assert!(is_current(&volume, other), "cut at {cut}: {:?}", volume.halves());
            let whole = BOTH.iter().all(|name| is_current(&volume, *name));
            caught_up += u64::from(whole);
            let group = volume.group(SHARD).unwrap();
            assert_entries(&group, 61);
            assert_eq!(group.applied().unwrap(), Some(marker(60)));
            put(&group, 62);
            drop(group);
            drop(volume);
            if whole {
                assert_equal_halves(copy.path());
            }
        }
        assert!(caught_up >= 8, "{caught_up}");
    }
}

#[test]
fn halves_of_other_volumes_are_refused_by_name() {
    let (one, other, alone) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for root in [&one, &other] {
        let volume = open_mirror(root.path());
        put(&volume.group(SHARD).unwrap(), 1);
    }
    put(&open(alone.path()).group(SHARD).unwrap(), 1);
    let refused = |first: std::path::PathBuf, second: std::path::PathBuf| {
        let options = VolumeOptions { directory: first, mirror: Some(second), ..options(one.path()) };
        let error = Volume::open(options).err().expect("refused");
        assert!(matches!(error, StorageError::Refused(_)), "{error}");
        error.to_string()
    };
    let text = refused(one.path().join("a"), other.path().join("b"));
    assert!(text.contains("different volumes"), "{text}");
    let copy = tempfile::tempdir().unwrap();
    common::mirror::copy_half(&one.path().join("a"), copy.path());
    let text = refused(one.path().join("a"), copy.path().to_owned());
    assert!(text.contains("same half"), "{text}");
    let text = refused(one.path().join("a"), alone.path().to_owned());
    assert!(text.contains("another volume"), "{text}");
    let text = refused(one.path().join("a"), one.path().join("a"));
    assert!(text.contains("are one directory"), "{text}");
    // Nor is one half a volume of its own.
    let error = Volume::open(options(&one.path().join("a"))).err().unwrap().to_string();
    assert!(error.contains("half of a mirror"), "{error}");
    // And untouched by all that, it opens in either order.
    let swapped = VolumeOptions {
        directory: one.path().join("b"),
        mirror: Some(one.path().join("a")),
        ..mirror_options(one.path())
    };
    let volume = Volume::open(swapped).unwrap();
    assert_entries(&volume.group(SHARD).unwrap(), 1);
    assert_eq!(body(1).len(), 3900);
}

#[test]
fn halves_that_are_one_directory_are_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("a");
    std::fs::create_dir(&directory).unwrap();
    let link = root.path().join("link");
    std::os::unix::fs::symlink(&directory, &link).unwrap();
    let below = directory.join("b");
    for (first, second) in [(&directory, &link), (&link, &directory), (&directory, &below), (&below, &link)] {
        let options = VolumeOptions { directory: first.clone(), mirror: Some(second.clone()), ..options(root.path()) };
        let error = Volume::open(options).err().expect("refused");
        assert!(matches!(&error, StorageError::Refused(text) if text.contains("one directory")), "{error}");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }
}

#[test]
fn a_mirror_is_not_made_anew_where_one_is_expected() {
    let root = tempfile::tempdir().unwrap();
    let expected = VolumeOptions { create: false, ..mirror_options(root.path()) };
    assert!(matches!(Volume::open(expected), Err(StorageError::Refused(_))));
}
