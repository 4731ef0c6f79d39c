//! Halves damaged in different places, in records of every kind: whatever has one good copy is served, copied by a
//! resilver and found by a scrub; and nothing is taken from an old copy that may have changed since.

mod common;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::flips::{flip_where, lies_in};
use common::mirror::{
    EIO, FILLER, Failure, Script, assert_equal_halves, fill_until, is_current, random, small_mirror, status,
    wait_until, wait_whole,
};
use common::{SHARD, append, done, entry, marker};
use storage::{
    Group, GroupId, HalfName, HalfState, Operation, ScrubOptions, ScrubProgress, ScrubReport, StorageError, Volume,
    VolumeOptions,
};

/// Of each kind.
const RECORDS: u64 = 24;
/// Sorts behind the shard's.
const OTHER: GroupId = GroupId(9);
#[derive(Clone, Copy, Debug)]
enum Kind {
    Log = 1,
    State = 2,
    Vote = 3,
}

const KINDS: [Kind; 3] = [Kind::Log, Kind::State, Kind::Vote];

/// Random, so that nothing compresses it, and longer than a block: each has one to itself.
fn value(kind: Kind, index: u64) -> Bytes {
    random((kind as u64) << 32 | index, 9000)
}

fn voter(index: u64) -> GroupId {
    GroupId(100 + index as u32)
}

fn set_vote(group: &Group, vote: Bytes) {
    let (done, receiver) = done();
    group.save_vote(vote, done);
    receiver.recv().unwrap().unwrap();
}

fn put(group: &Group, key: u64, value: Option<Bytes>) {
    group.table().write([(key.to_be_bytes().to_vec(), value)], marker(1)).unwrap();
}

fn write(volume: &Volume, indices: impl Iterator<Item = u64> + Clone) {
    let (shard, other) = (volume.group(SHARD).unwrap(), volume.group(OTHER).unwrap());
    for index in indices {
        append(&shard, vec![entry(index, value(Kind::Log, index), None)]);
        append(&other, vec![entry(index, value(Kind::Log, index + 1000), None)]);
        put(&shard, index, Some(value(Kind::State, index)));
        set_vote(&volume.group(voter(index)).unwrap(), value(Kind::Vote, index));
    }
}

fn needle(kind: Kind, index: u64) -> Bytes {
    value(kind, index).slice(4000..4100)
}

/// Until these records lie in tables of both halves.
fn flush(root: &Path, volume: &Volume, kinds: &[(Kind, u64)]) {
    let halves = [root.join("a"), root.join("b")];
    fill_until(volume, "tables are written", || {
        let mut all = halves.iter().flat_map(|half| kinds.iter().map(move |one| (half, one)));
        all.all(|(half, (kind, index))| lies_in(half, "sst", &needle(*kind, *index)))
    });
}

fn written(root: &Path) {
    let volume = Volume::open(small_mirror(root)).unwrap();
    write(&volume, 1..=RECORDS);
    flush(root, &volume, &KINDS.map(|kind| (kind, RECORDS)));
}

fn damage(half: &Path, records: &[(Kind, u64)]) {
    for (kind, index) in records {
        let flipped = flip_where(half, "sst", &needle(*kind, *index));
        assert!(flipped > 0, "{kind:?} {index} lies in a table of {}", half.display());
    }
}

fn assert_log(group: &Group, shift: u64) {
    let mut next = 1;
    while next <= RECORDS {
        for found in group.read(next, RECORDS + 1, 30_000).unwrap() {
            assert_eq!((found.index, found.head == value(Kind::Log, next + shift)), (next, true));
            next += 1;
        }
    }
}

fn assert_all(volume: &Volume) {
    let shard = volume.group(SHARD).unwrap();
    assert_log(&shard, 0);
    assert_log(&volume.group(OTHER).unwrap(), 1000);
    let scanned = shard.table().scan().unwrap();
    assert_eq!(scanned.len() as u64, RECORDS);
    for (index, (key, found)) in (1..).zip(scanned) {
        assert_eq!((key, found == value(Kind::State, index)), (u64::to_be_bytes(index).to_vec(), true));
        assert_eq!(shard.table().read(&index.to_be_bytes()).unwrap(), Some(found));
        assert_eq!(volume.group(voter(index)).unwrap().vote().unwrap(), Some(value(Kind::Vote, index)));
    }
}

fn scrub(volume: &Volume) -> ScrubReport {
    let fast = ScrubOptions { bytes_per_s: 1 << 40, slice_bytes: 1 << 20, ..ScrubOptions::default() };
    volume.scrub(&fast, &ScrubProgress::default()).unwrap()
}

/// Read, scrubbed, made anew, and opened again.
fn all_is_served(root: &Path) {
    let volume = Volume::open(small_mirror(root)).unwrap();
    assert_all(&volume);
    let report = scrub(&volume);
    assert_eq!((report.complete, report.lost, report.differing), (true, 0, 0), "{report:?}");
    wait_until("both are made anew", || volume.statistics().resilvers >= 2);
    wait_whole(&volume);
    assert_all(&volume);
    let report = scrub(&volume);
    assert!(report.is_clean(), "{report:?}");
    drop(volume);
    assert_all(&Volume::open(small_mirror(root)).unwrap());
    assert_equal_halves(root);
}

#[test]
fn halves_damaged_in_different_records_of_every_kind_serve_all_of_them() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    for kind in KINDS {
        // Far from each other, next to each other, and in turns. Records of a table have keys of any kind: what may lie
        // between two that are next to each other, nobody can tell.
        let (a, b) = match kind {
            Kind::State => (vec![3, 10], vec![5, 14]),
            _ => (vec![3, 10, 15, 17], vec![5, 11, 14, 16]),
        };
        for (half, indices) in [("a", a), ("b", b)] {
            let records: Vec<(Kind, u64)> = indices.into_iter().map(|index| (kind, index)).collect();
            damage(&root.path().join(half), &records);
        }
    }
    all_is_served(root.path());
}

/// A walk over half `a` cannot pass from one group to the next, for the block that comes next in its older table is bad; in
/// half `b` one of the records that lie there in a newer table is.
#[test]
fn a_record_that_no_walk_comes_to_is_served_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::open(small_mirror(root.path())).unwrap();
    write(&volume, 1..=RECORDS / 2);
    flush(root.path(), &volume, &[(Kind::Log, RECORDS / 2), (Kind::Log, 1001)]);
    write(&volume, RECORDS / 2 + 1..=RECORDS);
    flush(root.path(), &volume, &KINDS.map(|kind| (kind, RECORDS)));
    drop(volume);
    damage(&root.path().join("a"), &[(Kind::Log, 1001)]);
    damage(&root.path().join("b"), &[(Kind::Log, RECORDS / 2 + 4)]);
    all_is_served(root.path());
}

/// Half `b` is dropped, though nothing of it is damaged; then more is written.
fn without_b(root: &Path) -> (Volume, Arc<Script>) {
    let script = Script::new();
    let faults: Arc<dyn storage::Faults> = script.clone();
    let volume = Volume::open(VolumeOptions { faults: Some(faults), ..small_mirror(root) }).unwrap();
    script.set(HalfName::B, Operation::Sync, Failure::Error(EIO));
    set_vote(&volume.group(FILLER).unwrap(), Bytes::from_static(b"first"));
    script.clear();
    assert!(matches!(status(&volume, HalfName::B).state, HalfState::Stale { .. }));
    wait_until("b is told", || {
        std::fs::read_to_string(root.join("b/HALF")).is_ok_and(|record| record.contains("self stale"))
    });
    let shard = volume.group(SHARD).unwrap();
    put(&shard, 5, Some(Bytes::from_static(b"newer")));
    put(&shard, 6, None);
    put(&shard, 7, None);
    put(&shard, 7, Some(Bytes::from_static(b"again")));
    set_vote(&volume.group(voter(5)).unwrap(), Bytes::from_static(b"newer"));
    volume.group(OTHER).unwrap().truncate_after(Some(20)).unwrap();
    append(&volume.group(OTHER).unwrap(), vec![entry(21, "newer", None)]);
    (volume, script)
}

/// What half `a` alone has changed since, and what was never changed.
fn assert_newest(volume: &Volume) {
    let shard = volume.group(SHARD).unwrap();
    assert_log(&shard, 0);
    let mut expected: Vec<(Vec<u8>, Bytes)> =
        (1..=RECORDS).map(|index| (index.to_be_bytes().to_vec(), value(Kind::State, index))).collect();
    expected[4].1 = Bytes::from_static(b"newer");
    expected[6].1 = Bytes::from_static(b"again");
    expected.remove(5);
    let found = shard.table().scan().unwrap();
    let of = |records: &[(Vec<u8>, Bytes)]| records.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    assert_eq!(of(&found), of(&expected));
    assert!(found == expected);
    for index in 1..=RECORDS {
        let vote = if index == 5 { Bytes::from_static(b"newer") } else { value(Kind::Vote, index) };
        assert!(volume.group(voter(index)).unwrap().vote().unwrap() == Some(vote), "vote {index}");
    }
    let other = volume.group(OTHER).unwrap().read(20, 99, 1 << 20).unwrap();
    assert_eq!(other.iter().map(|entry| entry.index).collect::<Vec<_>>(), [20, 21]);
    assert!(other[0].head == value(Kind::Log, 1020) && other[1].head == "newer");
}

const ONLY_IN_B: [(Kind, u64); 10] = [
    (Kind::Log, 3),
    (Kind::Log, 4),
    (Kind::Log, 1019),
    (Kind::Log, 1022),
    (Kind::State, 5),
    (Kind::State, 6),
    (Kind::State, 7),
    (Kind::State, 8),
    (Kind::Vote, 5),
    (Kind::Vote, 8),
];

#[test]
fn what_only_a_dropped_half_can_read_is_taken_from_it_as_it_is_by_now() {
    for reopened in [false, true] {
        let root = tempfile::tempdir().unwrap();
        written(root.path());
        let (mut volume, _script) = without_b(root.path());
        if reopened {
            drop(volume);
            damage(&root.path().join("a"), &ONLY_IN_B);
            volume = Volume::open(small_mirror(root.path())).unwrap();
        } else {
            damage(&root.path().join("a"), &ONLY_IN_B);
            volume.resilver(HalfName::B).unwrap();
        }
        wait_until("b is made anew", || is_current(&volume, HalfName::B));
        assert_newest(&volume);
        // Damage that the resilver has met has the other half made anew too.
        wait_until("a is made anew", || volume.statistics().resilvers >= 2);
        wait_whole(&volume);
        assert_newest(&volume);
        assert!(volume.statistics().records_recalled >= 4, "{:?}", volume.statistics());
        assert!(scrub(&volume).is_clean());
        drop(volume);
        assert_newest(&Volume::open(small_mirror(root.path())).unwrap());
        assert_equal_halves(root.path());
    }
}

/// The log of half `a` does not go back to when `b` was dropped: what `b` has may have changed since.
#[test]
fn nothing_is_taken_from_a_dropped_half_that_may_have_changed_since() {
    let root = tempfile::tempdir().unwrap();
    written(root.path());
    let (volume, _script) = without_b(root.path());
    let shard = volume.group(SHARD).unwrap();
    put(&shard, 9, Some(value(Kind::State, 9000)));
    fill_until(&volume, "the log has gone", || lies_in(&root.path().join("a"), "sst", &needle(Kind::State, 9000)));
    fill_until(&volume, "and what came behind it", || volume.statistics().bytes > 12 << 20);
    damage(&root.path().join("a"), &[(Kind::State, 8)]);
    volume.resilver(HalfName::B).unwrap();
    wait_until(
        "it fails",
        || matches!(status(&volume, HalfName::B).state, HalfState::Stale { reason } if reason.starts_with("resilver")),
    );
    let error = shard.table().read(&8u64.to_be_bytes()).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    assert!(shard.table().read(&9u64.to_be_bytes()).unwrap() == Some(value(Kind::State, 9000)));
    put(&shard, 1, None);
    volume.check().unwrap();
}
