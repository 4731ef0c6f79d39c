//! A scrub says of a damaged half whose disk has no room that it is not made anew, and why.

mod common;

use std::sync::Arc;

use common::SHARD;
use common::flips::flip_body;
use common::mirror::{ENOSPC, Failure, Script, small_mirror, status, wait_until, wait_whole, write_entries};
use storage::{
    Faults, HalfName, HalfState, Operation, ScrubOptions, ScrubProgress, ScrubReport, Volume, VolumeOptions,
};

const ENTRIES: u64 = 2400;

fn scrub(volume: &Volume) -> ScrubReport {
    let fast = ScrubOptions { bytes_per_s: 1 << 40, ..ScrubOptions::default() };
    volume.scrub(&fast, &ScrubProgress::default()).unwrap()
}

#[test]
fn a_half_without_room_is_not_said_to_be_made_anew_until_there_is_some() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::open(small_mirror(root.path())).unwrap();
    write_entries(&volume.group(SHARD).unwrap(), ENTRIES);
    drop(volume);
    flip_body(&root.path().join("b"), 100);
    let script = Script::new();
    script.set(HalfName::B, Operation::Room, Failure::Error(ENOSPC));
    let faults: Arc<dyn Faults> = script.clone();
    let volume = Volume::open(VolumeOptions { faults: Some(faults), ..small_mirror(root.path()) }).unwrap();
    for _ in 0..2 {
        let report = scrub(&volume);
        assert!(!report.is_clean() && report.resilvers.is_empty(), "{report:?}");
        let [(half, reason)] = &report.unmade[..] else { panic!("{report:?}") };
        assert!(*half == HalfName::B && reason.contains("is too small"), "{reason}");
        // Whoever asks for the half's state learns it too.
        let is_told = |unmade: &String| unmade.contains("is too small");
        wait_until("it could not be made anew", || match status(&volume, HalfName::B).state {
            HalfState::Damaged { unmade } => unmade.as_ref().is_some_and(is_told),
            HalfState::Current | HalfState::Stale { .. } | HalfState::Resilvering { .. } => false,
        });
    }
    script.clear();
    // However short ago it could not be.
    let report = scrub(&volume);
    assert_eq!((&report.resilvers[..], &report.unmade[..]), (&[HalfName::B][..], &[][..]));
    wait_until("it is made anew", || volume.statistics().resilvers == 1);
    wait_whole(&volume);
    let report = scrub(&volume);
    assert!(report.is_clean() && report.resilvers.is_empty() && report.unmade.is_empty(), "{report:?}");
}
