//! A disk that gives no answer in places, while the other half is damaged: neither half is dropped for it, for each may have
//! the only good copy of something.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use common::flips::{files_of, flip_body};
use common::mirror::{
    EIO, Failure, Script, assert_entries, assert_equal_halves, body, head, is_current, mirror_options, put, status,
    wait_until, wait_whole, write_entries,
};
use common::{Replica, SHARD, marker, name};
use parking_lot::Mutex;
use storage::{
    BodySource, Command, Faults, HalfName, HalfState, Operation, Recipient, ScrubOptions, ScrubProgress, StorageError,
    Volume, VolumeOptions,
};
use types::{AccountId, InternalDate, Quota};

const ENTRIES: u64 = 2400;
const EMFILE: i32 = 24;
/// Early in the first blob file.
const EARLY: u64 = 101;

fn small(root: &Path) -> VolumeOptions {
    VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 2 << 20, ..mirror_options(root) }
}

fn open(root: &Path) -> Volume {
    Volume::open(small(root)).unwrap()
}

/// A closed mirror. Half `a` has a flipped bit in an early body.
fn damaged(root: &Path) {
    let volume = open(root);
    write_entries(&volume.group(SHARD).unwrap(), ENTRIES);
    drop(volume);
    flip_body(&root.join("a"), EARLY);
}

fn has_body(path: &Path, index: u64) -> bool {
    let needle = &body(index)[500..600];
    std::fs::read(path).unwrap().windows(needle.len()).any(|window| window == needle)
}

/// The blob files of a half that have, or have not, a body.
fn blobs(half: &Path, index: u64, have: bool) -> Vec<PathBuf> {
    files_of(half, "blob").into_iter().filter(|path| has_body(path, index) == have).collect()
}

/// All reads of it err from now on, and not as damage.
fn lose(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_half_with_the_only_good_copies_is_kept_though_it_cannot_be_read_everywhere() {
    let root = tempfile::tempdir().unwrap();
    damaged(root.path());
    lose(blobs(&root.path().join("b"), EARLY, false).last().unwrap());
    let volume = open(root.path());
    let group = volume.group(SHARD).unwrap();
    assert_entries(&group, ENTRIES);
    wait_until("both are made anew", || volume.statistics().resilvers >= 2);
    wait_whole(&volume);
    assert_entries(&group, ENTRIES);
    // Once `a` is whole again, `b` may go for what it does not answer.
    assert_eq!(volume.statistics().bodies_left_out, 0, "{:?}", volume.halves());
    drop((group, volume));
    assert_equal_halves(root.path());
}

#[test]
fn a_scrub_that_meets_a_place_without_an_answer_beside_damage_drops_no_half() {
    let root = tempfile::tempdir().unwrap();
    damaged(root.path());
    lose(blobs(&root.path().join("b"), EARLY, false).last().unwrap());
    let volume = open(root.path());
    let fast = ScrubOptions { bytes_per_s: 1 << 40, slice_bytes: 1 << 20, ..ScrubOptions::default() };
    let report = volume.scrub(&fast, &ScrubProgress::default()).unwrap();
    assert_eq!((report.complete, report.lost, report.differing), (true, 0, 0), "{report:?}");
    assert_eq!(report.resilvers.len(), 2, "{report:?}");
    wait_until("both are made anew", || volume.statistics().resilvers >= 2);
    wait_whole(&volume);
    assert_entries(&volume.group(SHARD).unwrap(), ENTRIES);
    assert_eq!(volume.statistics().bodies_left_out, 0, "{:?}", volume.halves());
    drop(volume);
    assert_equal_halves(root.path());
}

#[test]
fn a_record_that_one_half_cannot_read_and_the_other_has_damaged_costs_itself_alone() {
    let root = tempfile::tempdir().unwrap();
    damaged(root.path());
    lose(&blobs(&root.path().join("b"), EARLY, true)[0]);
    let volume = open(root.path());
    let group = volume.group(SHARD).unwrap();
    let refused = || match group.read(EARLY, EARLY + 1, 1) {
        Err(StorageError::Corrupt { key, .. }) => assert!(key.ends_with(&format!("/7/{EARLY}")), "{key}"),
        other => panic!("{other:?}"),
    };
    refused();
    wait_until("both are made anew", || volume.statistics().resilvers >= 2);
    wait_whole(&volume);
    for index in (1..=ENTRIES).filter(|index| *index != EARLY) {
        let found = group.read(index, index + 1, 1).unwrap();
        assert_eq!(found[0].head, head(index));
        assert_eq!(found[0].body, (!index.is_multiple_of(3)).then(|| body(index)), "entry {index}");
    }
    refused();
    assert_eq!(volume.statistics().bodies_left_out, 1, "{:?}", volume.halves());
}

#[test]
fn a_half_that_is_dropped_beside_a_damaged_one_is_made_anew_with_what_it_had() {
    let root = tempfile::tempdir().unwrap();
    damaged(root.path());
    let script = Script::new();
    let faults: Arc<dyn storage::Faults> = script.clone();
    // So slow that half `a` is not made anew before `b` is dropped.
    let slow = VolumeOptions { faults: Some(faults), resilver_bytes_per_s: 2 << 20, ..small(root.path()) };
    let volume = Volume::open(slow).unwrap();
    let group = volume.group(SHARD).unwrap();
    assert_eq!(group.read(EARLY, EARLY + 1, 1).unwrap()[0].body, Some(body(EARLY)));
    script.set(HalfName::B, Operation::Sync, Failure::Error(EIO));
    put(&group, ENTRIES + 1);
    script.clear();
    assert_eq!(volume.statistics().halves_dropped, 1);
    wait_until("b is made anew", || is_current(&volume, HalfName::B));
    assert_entries(&group, ENTRIES + 1);
    assert!(volume.statistics().bodies_salvaged > 0);
}

#[test]
fn a_half_without_room_is_kept_until_a_damaged_one_beside_it_is_made_anew() {
    let root = tempfile::tempdir().unwrap();
    damaged(root.path());
    // So slow that half `a` is not made anew before.
    let volume = Volume::open(VolumeOptions { resilver_bytes_per_s: 2 << 20, ..small(root.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    assert_eq!(group.read(EARLY, EARLY + 1, 1).unwrap()[0].body, Some(body(EARLY)));
    assert!(!volume.drop_full(HalfName::B, "its disk is full").unwrap());
    assert!(is_current(&volume, HalfName::B), "{:?}", volume.halves());
    wait_until("a is made anew", || volume.statistics().resilvers > 0);
    assert!(volume.drop_full(HalfName::B, "its disk is full").unwrap());
    assert_entries(&group, ENTRIES);
    assert_eq!((is_current(&volume, HalfName::A), volume.statistics().halves_dropped), (true, 1));
}

const SELECTS: &str = "selects";

/// The thread that is named so reads half `a` once; then something is done, and half `a` gives it no answer any more.
#[derive(Default)]
struct Meanwhile {
    reads: AtomicU32,
    what: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Meanwhile")
    }
}

impl Faults for Meanwhile {
    fn before(&self, half: HalfName, operation: Operation) -> std::io::Result<()> {
        let here = (half, operation) == (HalfName::A, Operation::Read);
        if !here || std::thread::current().name() != Some(SELECTS) || self.reads.fetch_add(1, Ordering::Relaxed) == 0 {
            return Ok(());
        }
        if let Some(what) = self.what.lock().take() {
            std::thread::spawn(what).join().unwrap();
        }
        Err(std::io::Error::from_raw_os_error(EIO))
    }
}

#[test]
fn a_mailbox_that_grows_while_its_half_is_left_is_not_taken_for_damaged() {
    let root = tempfile::tempdir().unwrap();
    let faults = Arc::new(Meanwhile::default());
    let hook: Arc<dyn Faults> = faults.clone();
    let volume = Volume::open(VolumeOptions { faults: Some(hook), ..small(root.path()) }).unwrap();
    let account = AccountId(1);
    let deliver = move |number: u8| Command::Deliver {
        recipients: vec![Recipient { account, fingerprint: [number; 32], quota: Quota::NONE }],
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        date: InternalDate::default(),
        settle: Vec::new(),
    };
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(1), Some(Bytes::from_static(b"one"))).unwrap();
    let shard = replica.group.shard();
    let inbox = shard.mailbox(account, &name("INBOX")).unwrap().unwrap().id;
    *faults.what.lock() = Some(Box::new(move || {
        replica.run_with(deliver(2), Some(Bytes::from_static(b"two"))).unwrap();
    }));
    let selects = std::thread::Builder::new().name(SELECTS.to_owned());
    let selected = selects.spawn(move || shard.select(account, inbox)).unwrap().join().unwrap();
    let selected = selected.unwrap();
    assert_eq!((selected.info.messages, selected.uids.len()), (2, 2));
    assert!(faults.what.lock().is_none());
}

#[test]
fn a_process_that_is_out_of_descriptors_drops_no_half() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let faults: Arc<dyn storage::Faults> = script.clone();
    let volume = Volume::open(VolumeOptions { faults: Some(faults), ..small(root.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    put(&group, 1);
    group.set_applied(marker(1)).unwrap();
    script.set(HalfName::A, Operation::Read, Failure::Error(EMFILE));
    assert!(matches!(group.applied(), Err(StorageError::Io { .. })));
    let scrubbed = volume.scrub(&ScrubOptions::default(), &ScrubProgress::default());
    assert!(matches!(scrubbed, Err(StorageError::Io { .. })), "{scrubbed:?}");
    script.clear();
    assert_eq!(group.applied().unwrap(), Some(marker(1)));
    for name in [HalfName::A, HalfName::B] {
        assert_eq!(status(&volume, name).state, HalfState::Current);
    }
}
