//! A disk that goes while nobody writes, a process that stands still, and a new disk that hangs as it joins.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::flips::flip_body;
use common::mirror::{
    EIO, Failure, Script, assert_entries, body, delete, is_current, mirror_options, open_mirror, put, status,
    wait_until, wait_whole, write_entries,
};
use common::{SHARD, entry, marker, open};
use storage::{HalfName, HalfState, Operation, Volume, VolumeOptions};

fn is_stale(volume: &Volume, name: HalfName) -> bool {
    matches!(status(volume, name).state, HalfState::Stale { .. })
}

#[test]
fn a_half_that_goes_from_an_idle_mirror_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    delete(&root.path().join("b"));
    wait_until("b is noticed", || is_stale(&volume, HalfName::B));
    assert!(is_current(&volume, HalfName::A));
    put(&group, 2);
    std::fs::create_dir(root.path().join("b")).unwrap();
    volume.resilver(HalfName::B).unwrap();
    wait_whole(&volume);
}

#[test]
fn a_half_that_has_gone_can_be_replaced_at_once() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    put(&volume.group(SHARD).unwrap(), 1);
    delete(&root.path().join("b"));
    std::fs::create_dir(root.path().join("b")).unwrap();
    volume.resilver(HalfName::B).unwrap();
    wait_whole(&volume);
}

#[test]
fn the_disk_of_an_idle_volume_that_goes_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let volume = open(root.path());
    put(&volume.group(SHARD).unwrap(), 1);
    delete(&root.path().join("db"));
    wait_until("it is noticed", || volume.check().is_err());
}

#[test]
fn nothing_is_acknowledged_into_the_files_of_a_directory_that_has_gone() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("volume");
    let volume = open(&directory);
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    std::fs::rename(&directory, root.path().join("elsewhere")).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    group.append(vec![entry(2, "lost", None)], Box::new(move |result| sender.send(result).unwrap())).unwrap();
    assert!(receiver.recv().unwrap().is_err());
}

const CHILD: &str = "MAILRING_PAUSED_DIRECTORY";

/// Runs in a process of its own, which is stopped again and again for longer than a half may take.
#[test]
fn a_process_that_is_stopped_for_long_keeps_both_halves() {
    if let Some(root) = std::env::var_os(CHILD) {
        return write_while_paused(Path::new(&root));
    }
    let root = tempfile::tempdir().unwrap();
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new(this)
        .args(["--exact", "a_process_that_is_stopped_for_long_keeps_both_halves", "--nocapture"])
        .env(CHILD, root.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it writes", || root.path().join("ready").exists());
    let signal = |name: &str| Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success();
    for _ in 0..3 {
        let begun = Instant::now();
        assert!(signal("-STOP"));
        wait_until("the pause is over", || begun.elapsed() > PAUSED_HANG_MAX * 2);
        assert!(signal("-CONT"));
        let begun = Instant::now();
        wait_until("it has run for a while", || begun.elapsed() > PAUSED_HANG_MAX / 2);
    }
    std::fs::write(root.path().join("enough"), "").unwrap();
    assert!(child.wait().unwrap().success());
}

const PAUSED_HANG_MAX: Duration = Duration::from_millis(2500);

fn write_while_paused(root: &Path) {
    let script = Script::new();
    // So that there is always one half that has answered, and one that has not.
    script.set(HalfName::B, Operation::Sync, Failure::Delay(PAUSED_HANG_MAX / 16));
    let options = VolumeOptions { hang_max: PAUSED_HANG_MAX, faults: Some(script), ..mirror_options(root) };
    let volume = Volume::open(options).unwrap();
    let group = volume.group(SHARD).unwrap();
    let mut index = 0;
    while !root.join("enough").exists() {
        index += 1;
        put(&group, index);
        if index == 3 {
            std::fs::write(root.join("ready"), "").unwrap();
        }
    }
    assert_eq!(volume.statistics().halves_dropped, 0, "{:?}", volume.halves());
}

/// Half `b` is dropped, and an empty directory is in its place.
fn with_an_empty_b(root: &Path, script: &Arc<Script>) -> Volume {
    let volume = Volume::open(VolumeOptions { faults: Some(script.clone()), ..mirror_options(root) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    (1..=20).for_each(|index| put(&group, index));
    delete(&root.join("b"));
    (21..=40).for_each(|index| put(&group, index));
    wait_until("b is dropped", || is_stale(&volume, HalfName::B));
    std::fs::create_dir(root.join("b")).unwrap();
    volume
}

#[test]
fn a_new_disk_that_hangs_as_it_joins_holds_up_neither_writes_nor_those_who_look() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_an_empty_b(root.path(), &script);
    let group = volume.group(SHARD).unwrap();
    script.set(HalfName::B, Operation::Record, Failure::Hang);
    volume.resilver(HalfName::B).unwrap();
    wait_until("it hangs", || script.hung() > 0);
    let (wrote, looked) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            put(&group, 41);
            wrote.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            assert_eq!(volume.halves().len(), 2);
            looked.store(true, Ordering::Relaxed);
        });
        wait_until("both have an answer while it hangs", || {
            wrote.load(Ordering::Relaxed) && looked.load(Ordering::Relaxed)
        });
    });
    wait_until("it is given up", || is_stale(&volume, HalfName::B));
    script.clear();
    volume.resilver(HalfName::B).unwrap();
    wait_whole(&volume);
    assert_entries(&group, 41);
}

fn recorded(root: &Path, half: &str) -> String {
    std::fs::read_to_string(root.join(half).join("HALF")).unwrap()
}

/// The databases and marks of a half.
fn databases(half: &Path) -> Vec<String> {
    let names = std::fs::read_dir(half).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("db") || name.starts_with("MARK")).collect();
    names.sort();
    names
}

fn resilver_failed(volume: &Volume, name: HalfName) -> bool {
    matches!(status(volume, name).state, HalfState::Stale { reason } if reason.starts_with("resilver"))
}

#[test]
fn a_join_that_fails_leaves_a_dropped_half_what_it_had() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = Volume::open(VolumeOptions { faults: Some(script.clone()), ..mirror_options(root.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    (1..=20).for_each(|index| put(&group, index));
    script.set(HalfName::B, Operation::Sync, Failure::Error(EIO));
    put(&group, 21);
    script.clear();
    wait_until("b is told", || recorded(root.path(), "b").contains("self stale"));
    script.set(HalfName::A, Operation::Record, Failure::Error(EIO));
    for _ in 0..2 {
        volume.resilver(HalfName::B).unwrap();
        wait_until("it fails", || resilver_failed(&volume, HalfName::B));
        let record = recorded(root.path(), "b");
        assert!(record.contains("generation 0") && record.contains("self stale"), "{record}");
        assert_eq!(databases(&root.path().join("b")), ["MARK", "db"]);
    }
    script.clear();
    volume.resilver(HalfName::B).unwrap();
    wait_whole(&volume);
    assert_entries(&group, 21);
}

/// The source's disk does not answer while the two are made level.
#[test]
fn a_join_that_fails_leaves_a_damaged_half_in_use() {
    let root = tempfile::tempdir().unwrap();
    let small = VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 2 << 20, ..mirror_options(root.path()) };
    write_entries(&Volume::open(small.clone()).unwrap().group(SHARD).unwrap(), 1200);
    flip_body(&root.path().join("a"), 100);
    let script = Script::new();
    let volume = Volume::open(VolumeOptions { faults: Some(script.clone()), ..small.clone() }).unwrap();
    let group = volume.group(SHARD).unwrap();
    group.set_applied(marker(1200)).unwrap(); // no sync takes it along
    script.set(HalfName::B, Operation::Sync, Failure::Hang);
    assert_eq!(group.read(100, 101, 1).unwrap()[0].body, Some(body(100)));
    wait_until("it hangs", || script.hung() > 0);
    wait_until("it fails", || matches!(status(&volume, HalfName::A).state, HalfState::Damaged { .. }));
    script.clear();
    assert_eq!(volume.statistics().halves_dropped, 0);
    let record = recorded(root.path(), "a");
    assert!(record.contains("generation 0") && record.contains("self current"), "{record}");
    assert_eq!(databases(&root.path().join("a")), ["MARK", "db"]);
    put(&group, 1201);
    drop((group, volume));
    let volume = Volume::open(small).unwrap();
    assert!(is_current(&volume, HalfName::A), "{:?}", volume.halves());
    assert_entries(&volume.group(SHARD).unwrap(), 1201);
    wait_whole(&volume);
}

#[test]
fn a_survivor_that_cannot_record_the_return_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume = with_an_empty_b(root.path(), &script);
    let group = volume.group(SHARD).unwrap();
    script.set(HalfName::A, Operation::Record, Failure::Error(EIO));
    volume.resilver(HalfName::B).unwrap();
    wait_until("it is told", || match status(&volume, HalfName::B).state {
        HalfState::Stale { reason } => reason.starts_with("resilver"),
        _ => false,
    });
    (41..=50).for_each(|index| put(&group, index));
    script.clear();
    drop((group, volume));
    let volume = open_mirror(root.path());
    assert_entries(&volume.group(SHARD).unwrap(), 50);
    wait_whole(&volume);
}
