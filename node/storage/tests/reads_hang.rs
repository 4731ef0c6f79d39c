//! A disk that does not answer reads: a mirror goes on without it though nobody writes, and a volume of one disk says so.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::mirror::{Failure, Script, is_current, mirror_options, put, status, wait_until, wait_whole};
use common::{SHARD, marker, options};
use storage::{Faults, HalfName, HalfState, Operation, Volume, VolumeOptions};

fn with_script(options: VolumeOptions) -> (Volume, Arc<Script>) {
    let script = Script::new();
    let faults: Arc<dyn Faults> = script.clone();
    (Volume::open(VolumeOptions { faults: Some(faults), ..options }).unwrap(), script)
}

/// Lets go what hangs when the test ends, be it by a panic.
struct LetGo(Arc<Script>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.clear();
    }
}

#[test]
fn a_half_that_hangs_in_reads_is_dropped_though_nobody_writes() {
    let root = tempfile::tempdir().unwrap();
    let (volume, script) = with_script(mirror_options(root.path()));
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    group.set_applied(marker(1)).unwrap();
    std::thread::scope(|scope| {
        let _let_go = LetGo(script.clone());
        script.set(HalfName::A, Operation::Read, Failure::Hang);
        let stuck = scope.spawn(|| group.applied().unwrap());
        wait_until("a is dropped", || matches!(status(&volume, HalfName::A).state, HalfState::Stale { .. }));
        assert!(is_current(&volume, HalfName::B));
        // All others go on. Whoever was in there is not, and that is told.
        assert_eq!(group.applied().unwrap(), Some(marker(1)));
        put(&group, 2);
        wait_until("it is told", || volume.unanswered_for() >= Duration::from_millis(300));
        assert!(!stuck.is_finished());
        script.clear();
        assert_eq!(stuck.join().unwrap(), Some(marker(1)));
    });
    assert_eq!(volume.unanswered_for(), Duration::ZERO);
    volume.resilver(HalfName::A).unwrap();
    wait_whole(&volume);
}

#[test]
fn reads_leave_a_half_that_is_slow_before_it_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let patient = VolumeOptions { hang_max: Duration::from_secs(600), ..mirror_options(root.path()) };
    let (volume, script) = with_script(patient);
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    group.set_applied(marker(1)).unwrap();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _let_go = LetGo(script.clone());
        script.set(HalfName::A, Operation::Read, Failure::Hang);
        let read = || {
            assert_eq!(group.applied().unwrap(), Some(marker(1)));
            answered.store(true, Ordering::Relaxed);
        };
        scope.spawn(read);
        let looks = AtomicU32::new(0);
        wait_until("somebody has an answer", || {
            if looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(50) {
                scope.spawn(read);
            }
            answered.load(Ordering::Relaxed)
        });
        assert!(is_current(&volume, HalfName::A) && is_current(&volume, HalfName::B));
    });
}

#[test]
fn a_volume_of_one_disk_tells_of_a_read_that_is_not_answered() {
    let root = tempfile::tempdir().unwrap();
    let (volume, script) = with_script(options(root.path()));
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    group.set_applied(marker(1)).unwrap();
    assert_eq!(volume.unanswered_for(), Duration::ZERO);
    std::thread::scope(|scope| {
        let _let_go = LetGo(script.clone());
        script.set(HalfName::A, Operation::Read, Failure::Hang);
        let stuck = scope.spawn(|| group.applied().unwrap());
        wait_until("it is told", || volume.unanswered_for() >= Duration::from_millis(300));
        script.clear();
        assert_eq!(stuck.join().unwrap(), Some(marker(1)));
    });
    assert_eq!(volume.unanswered_for(), Duration::ZERO);
}
