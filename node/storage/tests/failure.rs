//! A disk that refuses writes. The test runs itself again under a file size limit, where writes fail with EFBIG.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::mirror::wait_until;
use common::{SHARD, done, entry, marker, open, options};
use storage::{Faults, HalfName, Operation, StorageError, Volume, VolumeOptions};

const CHILD: &str = "STORAGE_TEST_VOLUME";

#[test]
fn a_failed_write_fails_the_volume_for_good_and_nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact child --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("acknowledged ")).expect("the child says how far it came");
    let acknowledged: u64 = line.1.trim().parse().unwrap();
    assert!(acknowledged > 5);
    // On a disk that works again, everything that was acknowledged is there.
    let volume = open(directory.path());
    let group = volume.group(SHARD).unwrap();
    let entries = group.read(0, acknowledged + 1, usize::MAX).unwrap();
    assert_eq!(entries.len() as u64, acknowledged + 1);
    assert!(entries.iter().all(|entry| entry.body.as_ref().is_some_and(|body| body.len() == 50_000)));
}

/// A write of the thread that is named so fails, as soon as it may.
#[derive(Debug, Default)]
struct FailsLate {
    entered: AtomicBool,
    may_fail: AtomicBool,
}

const LATE: &str = "late";

impl Faults for FailsLate {
    fn before(&self, _: HalfName, operation: Operation) -> std::io::Result<()> {
        if operation != Operation::Write || std::thread::current().name() != Some(LATE) {
            return Ok(());
        }
        self.entered.store(true, Ordering::Relaxed);
        wait_until("it may fail", || self.may_fail.load(Ordering::Relaxed));
        Err(std::io::Error::other("late"))
    }
}

#[test]
fn nothing_is_acknowledged_behind_a_write_that_is_failing() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailsLate::default());
    let hook: Arc<dyn Faults> = faults.clone();
    let volume = Volume::open(VolumeOptions { faults: Some(hook), ..options(directory.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    std::thread::scope(|scope| {
        let late = std::thread::Builder::new().name(LATE.to_owned());
        let late = late.spawn_scoped(scope, || group.set_applied(marker(1))).unwrap();
        wait_until("it writes", || faults.entered.load(Ordering::Relaxed));
        let (done, acknowledged) = done();
        group.append(vec![entry(1, "head", None)], done).unwrap();
        // A sleep proves nothing more than that it is not at once.
        let early = acknowledged.recv_timeout(Duration::from_millis(300));
        faults.may_fail.store(true, Ordering::Relaxed);
        assert!(early.is_err(), "{early:?}");
        assert!(matches!(late.join().unwrap(), Err(StorageError::Failed(_))));
        assert!(matches!(acknowledged.recv().unwrap(), Err(StorageError::Failed(_))));
    });
}

#[test]
#[ignore = "run by the first test, under a limit"]
fn child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let volume = open(directory.as_ref());
    let group = volume.group(SHARD).unwrap();
    let (sender, receiver) = mpsc::channel();
    let mut acknowledged = None;
    let failed = (0..1000).find_map(|index| {
        let sender = sender.clone();
        let done = Box::new(move |result| sender.send(result).unwrap());
        let body = Some(Bytes::from(vec![7; 50_000]));
        group.append(vec![entry(index, "head", body)], done).unwrap();
        match receiver.recv().unwrap() {
            Ok(()) => {
                acknowledged = Some(index);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert!(matches!(failed, Some(StorageError::Failed(_))), "{failed:?}");
    assert!(matches!(volume.check(), Err(StorageError::Failed(_))));
    // Nothing is tried again: not the log, not the vote, not the state.
    assert!(matches!(group.append(vec![], Box::new(|_| {})), Err(StorageError::Failed(_))));
    group.save_vote(Bytes::new(), Box::new(move |result| sender.send(result).unwrap()));
    assert!(matches!(receiver.recv().unwrap(), Err(StorageError::Failed(_))));
    assert!(matches!(group.set_applied(marker(1)), Err(StorageError::Failed(_))));
    assert!(matches!(group.purge_to(1, marker(1)), Err(StorageError::Failed(_))));
    // Reading goes on.
    assert_eq!(group.read(0, 1, 1).unwrap().len(), 1);
    println!("\nacknowledged {}", acknowledged.unwrap());
}
