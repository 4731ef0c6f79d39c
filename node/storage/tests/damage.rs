//! What a volume says to damage: a torn tail is taken, all else is refused by name.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use common::flips::flip_first;
use common::{
    Replica, SHARD, append, blocks, copy_files, copy_volume, entry, forget_mark, live_wal, name, open, options, stamp,
    to_inbox,
};
use rocksdb::{DB, Options};
use storage::{Command, Faults, HalfName, Operation, Outcome, StorageError, StoreAction, Volume, VolumeOptions};
use types::{AccountId, Flags, MailboxId, SystemFlags, UidSet};

const ENTRIES: u64 = 40;

/// A volume with entries 0.. of 500 bytes, closed without a flush of its memtables.
fn written(directory: &Path) {
    let volume = open(directory);
    let group = volume.group(SHARD).unwrap();
    for index in 0..ENTRIES {
        append(&group, vec![entry(index, vec![index as u8; 500], None)]);
    }
}

fn refused(directory: &Path) -> StorageError {
    Volume::open(options(directory)).err().expect("the volume must be refused")
}

#[test]
fn a_torn_tail_opens_with_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let whole = std::fs::read(&wal).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in (end - 1500..end).step_by(97) {
        let copy = tempfile::tempdir().unwrap();
        copy_volume(directory.path(), copy.path());
        forget_mark(copy.path());
        std::fs::write(live_wal(copy.path()), &whole[..cut]).unwrap();
        let volume = open(copy.path());
        let group = volume.group(SHARD).unwrap();
        let entries = group.read(0, u64::MAX, usize::MAX).unwrap();
        assert!((36..ENTRIES).contains(&(entries.len() as u64)), "cut at {cut}: {}", entries.len());
        assert!(entries.iter().zip(0..).all(|(entry, index)| entry.head == vec![index as u8; 500]));
    }
}

/// RocksDB's log consists of blocks of this size, and a record that crosses their edge is in pieces.
const LOG_BLOCK: usize = 32 * 1024;
/// How much of the log's end is cut.
const CUT_OCTETS: usize = 4 * 1024;

/// Every place in the last 4 KiB, with an edge of a block among them. `MAILRING_EVERY_CUT=1` tries each byte, otherwise
/// every eleventh and those around the edge.
#[test]
fn a_log_cut_anywhere_in_its_last_4_kib_opens_with_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let log_end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut ends = Vec::new();
    {
        let volume = open(directory.path());
        let group = volume.group(SHARD).unwrap();
        // What the log holds of each entry: with all before a cut, so many entries must be there.
        while ends.last().is_none_or(|end| *end < LOG_BLOCK + CUT_OCTETS / 2) {
            let index = ends.len() as u64;
            append(&group, vec![entry(index, vec![index as u8; 500], None)]);
            ends.push(log_end(&std::fs::read(live_wal(directory.path())).unwrap()));
        }
    }
    let source = tempfile::tempdir().unwrap();
    copy_volume(directory.path(), source.path());
    forget_mark(source.path());
    let whole = std::fs::read(live_wal(source.path())).unwrap();
    let end = log_end(&whole);
    let every = std::env::var_os("MAILRING_EVERY_CUT").is_some();
    let at_edge = |cut: usize| cut.abs_diff(LOG_BLOCK) < 24;
    let cuts: Vec<usize> = (end - CUT_OCTETS..end).filter(|cut| every || cut % 11 == 0 || at_edge(*cut)).collect();
    std::thread::scope(|scope| {
        for half in cuts.chunks(cuts.len().div_ceil(2)) {
            let (source, whole, ends) = (source.path(), &whole, &ends);
            scope.spawn(move || half.iter().for_each(|cut| opens_with_a_prefix(source, &whole[..*cut], ends)));
        }
    });
}

/// `ends`: where in the log each entry ends.
fn opens_with_a_prefix(source: &Path, log: &[u8], ends: &[usize]) {
    let copy = tempfile::tempdir().unwrap();
    copy_volume(source, copy.path());
    std::fs::write(live_wal(copy.path()), log).unwrap();
    let volume = open(copy.path());
    let entries = volume.group(SHARD).unwrap().read(0, u64::MAX, usize::MAX).unwrap();
    let whole = ends.iter().filter(|end| **end <= log.len()).count();
    assert_eq!(entries.len(), whole, "cut at {}", log.len());
    assert!(entries.iter().zip(0..).all(|(entry, index)| entry.head == vec![index as u8; 500]), "cut at {}", log.len());
}

#[test]
fn a_torn_tail_that_was_acknowledged_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let whole = std::fs::read(&wal).unwrap();
    std::fs::write(&wal, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(refused(directory.path()), StorageError::Behind { .. }));
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let mut bytes = std::fs::read(&wal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&wal, &bytes).unwrap();
    let error = refused(directory.path());
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[test]
fn a_deleted_live_log_is_refused_before_the_database_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let wal = live_wal(directory.path());
    let aside = directory.path().join("aside");
    std::fs::rename(&wal, &aside).unwrap();
    assert!(matches!(refused(directory.path()), StorageError::Behind { found: 0, .. }));
    // Put back, everything is there.
    std::fs::rename(&aside, &wal).unwrap();
    let volume = open(directory.path());
    assert_eq!(volume.group(SHARD).unwrap().last_entry().unwrap().unwrap().index, ENTRIES - 1);
}

#[test]
fn a_lost_database_is_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    std::fs::remove_dir_all(directory.path().join("db")).unwrap();
    assert!(matches!(refused(directory.path()), StorageError::Behind { .. }));
    std::fs::remove_file(directory.path().join("MARK")).unwrap();
    let expected = VolumeOptions { create: false, ..options(directory.path()) };
    assert!(matches!(Volume::open(expected), Err(StorageError::Refused(_))));
}

#[test]
fn an_old_copy_of_the_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let old = tempfile::tempdir().unwrap();
    copy_volume(directory.path(), old.path());
    {
        let volume = open(directory.path());
        append(&volume.group(SHARD).unwrap(), vec![entry(ENTRIES, "later", None)]);
    }
    std::fs::remove_dir_all(directory.path().join("db")).unwrap();
    copy_files(&old.path().join("db"), &directory.path().join("db"));
    assert!(matches!(refused(directory.path()), StorageError::Behind { .. }));
}

#[test]
fn a_volume_that_was_closed_and_opened_often_is_never_behind_its_mark() {
    let directory = tempfile::tempdir().unwrap();
    for index in 0..6 {
        let volume = open(directory.path());
        let group = volume.group(SHARD).unwrap();
        append(&group, vec![entry(index, "x", Some(Bytes::from(vec![7; 3000])))]);
        group.set_applied(Bytes::from("m")).unwrap();
    }
}

/// The disk gives no answer to the next read.
#[derive(Debug, Default)]
struct Unanswered(AtomicBool);

impl Faults for Unanswered {
    fn before(&self, _: HalfName, operation: Operation) -> std::io::Result<()> {
        let fails = operation == Operation::Read && self.0.swap(false, Ordering::Relaxed);
        if fails { Err(std::io::Error::from_raw_os_error(common::mirror::EIO)) } else { Ok(()) }
    }
}

#[test]
fn a_group_that_the_disk_gives_no_answer_for_can_be_dropped() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let unanswered = Arc::new(Unanswered::default());
    let faults: Option<Arc<dyn Faults>> = Some(unanswered.clone());
    let volume = Volume::open(VolumeOptions { faults, ..options(directory.path()) }).unwrap();
    unanswered.0.store(true, Ordering::Relaxed);
    let error = volume.group(SHARD).map(drop).unwrap_err();
    assert!(error.is_unread(), "{error}");
    unanswered.0.store(true, Ordering::Relaxed);
    volume.drop_group(SHARD).unwrap();
    assert_eq!(volume.groups().unwrap(), []);
    assert_eq!(volume.group(SHARD).unwrap().last_entry().unwrap(), None);
}

const ALICE: AccountId = AccountId(1);

/// The disk answers so many reads more.
#[derive(Debug)]
struct UnansweredAfter(AtomicU64);

impl UnansweredAfter {
    const NEVER: u64 = u64::MAX;
}

impl Faults for UnansweredAfter {
    fn before(&self, _: HalfName, operation: Operation) -> std::io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        if operation != Operation::Read || left == Self::NEVER {
            return Ok(());
        }
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 0 { Err(std::io::Error::from_raw_os_error(common::mirror::EIO)) } else { Ok(()) }
    }
}

#[test]
fn what_a_command_could_not_read_is_known_before_it_is_in_the_log_and_rehearsing_it_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let unanswered = Arc::new(UnansweredAfter(AtomicU64::new(UnansweredAfter::NEVER)));
    let faults: Option<Arc<dyn Faults>> = Some(unanswered.clone());
    let volume = Volume::open(VolumeOptions { faults, ..options(directory.path()) }).unwrap();
    let mut replica = Replica::new(&volume);
    for _ in 0..10 {
        replica.run_with(to_inbox(ALICE), Some(Bytes::from_static(b"body"))).unwrap();
    }
    let mailbox = replica.group.shard().mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    let store = |mailbox| Command::Store {
        account: ALICE,
        mailbox,
        uids: UidSet::from_range(1, 10),
        action: StoreAction::Add,
        flags: Flags::system(SystemFlags::FLAGGED),
        unchanged_since: None,
    };
    let before = blocks(&replica.group);
    for (command, body_len, reads_min) in [(store(mailbox), None, 4), (to_inbox(ALICE), Some(4), 4)] {
        let rehearse = || replica.group.shard().rehearse((stamp(replica.now_s), 1_000), &command, body_len);
        let mut reads = 0;
        loop {
            unanswered.0.store(reads, Ordering::Relaxed);
            match rehearse() {
                Ok(()) => break,
                Err(error) => assert!(error.is_unread(), "{error}"),
            }
            reads += 1;
        }
        unanswered.0.store(UnansweredAfter::NEVER, Ordering::Relaxed);
        assert!(reads >= reads_min, "{reads} reads, each of which may meet damage");
    }
    // What is refused by rule is no damage.
    replica.group.shard().rehearse((stamp(replica.now_s), 1_000), &store(MailboxId(99)), None).unwrap();
    assert_eq!(blocks(&replica.group), before);
    assert!(matches!(replica.run(store(mailbox)), Ok(Outcome::Stored { changed, .. }) if changed.len() == 10));
}

/// The beginning of the keys by which requests are forgotten, of the tests' time: group's space, kind 18, milliseconds since 1970.
const REQUEST_TIMES: [u8; 9] = [0, 0, 0, 1, 18, 0, 0, 1, 0x8b];

#[test]
fn what_is_only_to_be_forgotten_and_cannot_be_read_keeps_nothing_from_being_done() {
    let directory = tempfile::tempdir().unwrap();
    let body = || Some(Bytes::from_static(b"body"));
    let (next, now_s) = {
        let volume = open(directory.path());
        let mut replica = Replica::new(&volume);
        for _ in 0..300 {
            replica.run_with(to_inbox(ALICE), body()).unwrap();
        }
        (replica.next, replica.now_s)
    };
    // What the log holds is put into tables.
    drop(open(directory.path()));
    assert!(flip_first(directory.path(), "sst", &REQUEST_TIMES), "they lie in no table");
    let volume = open(directory.path());
    let mut replica = Replica { next, now_s: now_s + 3600, ..Replica::new(&volume) };
    let shard = replica.group.shard();
    let rehearse = |now_s| shard.rehearse((stamp(now_s), 0), &to_inbox(ALICE), Some(4));
    // Another replica takes the place of one that meets it.
    assert!(shard.newest_remembered().unwrap_err().is_unread());
    assert!(rehearse(replica.now_s).unwrap_err().is_unread());
    shard.set_alone(true);
    assert_eq!(shard.newest_remembered().unwrap(), None);
    for _ in 0..3 {
        rehearse(replica.now_s).unwrap();
        assert!(matches!(replica.run_as(0, to_inbox(ALICE), body()), Ok(Outcome::Appended { .. })));
    }
}

/// Puts what nobody can read in the place of a record of a closed volume's state.
fn spoil(directory: &Path, key: &[u8]) {
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    let db = DB::open_cf(&options, directory.join("db"), ["log", "blob", "state", "meta"]).unwrap();
    let state = db.cf_handle("state").unwrap();
    assert!(db.get_cf(&state, key).unwrap().is_some(), "there is no such record");
    db.put_cf(&state, key, [9]).unwrap();
    db.flush_wal(true).unwrap();
}

#[test]
fn an_old_upload_that_the_only_replica_cannot_read_is_left_and_what_is_behind_it_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (next, now_s) = {
        let volume = open(directory.path());
        let mut replica = Replica::new(&volume);
        for upload in [1, 2] {
            replica.run_with(Command::Chunk { upload }, Some(Bytes::from_static(b"piece"))).unwrap();
        }
        (replica.next, replica.now_s)
    };
    // The group's space, the kind, and the upload's number.
    let unread = [&[0u8, 0, 0, 1, 11][..], &1u128.to_be_bytes()].concat();
    spoil(directory.path(), &unread);
    let volume = open(directory.path());
    let mut replica = Replica { next, now_s: now_s + 3601, ..Replica::new(&volume) };
    let shard = replica.group.shard();
    let rehearse = || shard.rehearse((stamp(now_s + 3601), 0), &to_inbox(ALICE), Some(4));
    // Another replica takes the place of one that meets it.
    assert!(rehearse().unwrap_err().is_unread());
    shard.set_alone(true);
    rehearse().unwrap();
    replica.run_with(to_inbox(ALICE), Some(Bytes::from_static(b"body"))).unwrap();
    // The message's, and the piece of the one that cannot be read.
    replica.group.purge_to(replica.next - 1, Bytes::new()).unwrap();
    assert_eq!(replica.group.blob_count().unwrap(), 2);
    // It is not met again.
    drop((shard, replica, volume));
    let volume = open(directory.path());
    let shard = volume.group(SHARD).unwrap().shard();
    shard.rehearse((stamp(now_s + 3601), 0), &to_inbox(ALICE), Some(4)).unwrap();
}
