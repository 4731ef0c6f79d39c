//! A half that is made anew gives its old database up: no file of it that is deleted stays open, and none takes room.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::flips::{Random, flip_body, lies_in};
use common::mirror::{
    EIO, Failure, Script, body, fill_until, is_current, put, small_mirror, wait_until, wait_whole, write_entries,
};
use common::{SHARD, marker};
use storage::{Faults, Group, HalfName, Operation, Volume, VolumeOptions};

const ENTRIES: u64 = 600;
const HEALS: u64 = 4;

fn with_script(options: VolumeOptions) -> (Volume, Arc<Script>) {
    let script = Script::new();
    let faults: Arc<dyn Faults> = script.clone();
    (Volume::open(VolumeOptions { faults: Some(faults), ..options }).unwrap(), script)
}

/// Files below a directory that are deleted, and open in this process.
fn deleted_open(root: &Path) -> Vec<PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        // It may be closed meanwhile.
        std::fs::read_link(entry.ok()?.path()).ok()
    });
    let is_deleted = |path: &PathBuf| path.to_str().is_some_and(|path| path.ends_with(" (deleted)"));
    open.filter(|path| path.starts_with(root) && is_deleted(path)).collect()
}

fn wait_closed(root: &Path) {
    wait_until("no deleted file is open", || deleted_open(root).is_empty());
}

/// Damages a body in the half that is read, and reads it.
fn damage(root: &Path, group: &Group, (half, index): (HalfName, u64)) {
    let directory = root.join(half.to_string());
    flip_body(&directory, index);
    let found = group.read(index, index + 1, 1).unwrap();
    assert_eq!(found[0].body, Some(body(index)));
}

#[test]
fn a_half_that_is_made_anew_again_and_again_leaves_no_deleted_file_open() {
    let root = tempfile::tempdir().unwrap();
    let root = &root.path().canonicalize().unwrap();
    let (volume, script) = with_script(small_mirror(root));
    let group = volume.group(SHARD).unwrap();
    write_entries(&group, ENTRIES);
    let is_in_table = |half: &str| lies_in(&root.join(half), "blob", &body(1)[500..600]);
    fill_until(&volume, "what is damaged lies in blob files", || is_in_table("a") && is_in_table("b"));
    let mut random = Random(0x9e37_79b9);
    for heal in 0..HEALS {
        // Reads go to the other half each time.
        let half = if heal % 2 == 0 { HalfName::A } else { HalfName::B };
        let index = loop {
            let index = 1 + random.below(40);
            if !index.is_multiple_of(3) {
                break index;
            }
        };
        damage(root, &group, (half, index));
        wait_until("it is made anew", || volume.statistics().resilvers == heal + 1);
        wait_whole(&volume);
    }
    wait_closed(root);
    // So does one that was dropped, and made anew when somebody asks.
    for half in [HalfName::A, HalfName::B] {
        script.set(half, Operation::Write, Failure::Error(EIO));
        let next = group.last_entry().unwrap().unwrap().index + 1;
        put(&group, next);
        wait_until("it is dropped", || !is_current(&volume, half));
        script.clear();
        volume.resilver(half).unwrap();
        wait_whole(&volume);
    }
    wait_closed(root);
    assert_eq!(group.read(1, 2, 1).unwrap()[0].body, Some(body(1)));
}

#[test]
fn a_read_that_hangs_keeps_its_old_half_open_and_stops_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let root = &root.path().canonicalize().unwrap();
    let (volume, script) = with_script(small_mirror(root));
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    group.set_applied(marker(1)).unwrap();
    std::thread::scope(|scope| {
        let _let_go = LetGo(script.clone());
        script.set(HalfName::A, Operation::Read, Failure::Hang);
        let stuck = scope.spawn(|| group.applied().unwrap());
        wait_until("a is dropped", || !is_current(&volume, HalfName::A));
        volume.resilver(HalfName::A).unwrap();
        wait_whole(&volume);
        // Who is in there still waits, and that is told though the half is another one by now.
        assert!(!stuck.is_finished());
        wait_until("it is told", || volume.unanswered_for() >= Duration::from_millis(300));
        assert!(!deleted_open(root).is_empty(), "whoever reads has what it reads");
        assert_eq!(group.applied().unwrap(), Some(marker(1)));
        put(&group, 2);
        script.clear();
        assert_eq!(stuck.join().unwrap(), Some(marker(1)));
    });
    wait_closed(root);
    assert_eq!(volume.unanswered_for(), Duration::ZERO);
}

/// Lets go what hangs when the test ends, be it by a panic.
struct LetGo(Arc<Script>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.clear();
    }
}
