//! What a scrub says of damaged records of a mailbox once that is deleted: that nobody needs them.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use common::flips::files_of;
use common::mirror::{assert_equal_halves, open_mirror, wait_until, wait_whole};
use common::{Replica, name, open};
use rocksdb::{DB, Direction, IteratorMode, Options, ReadOptions};
use storage::{BodySource, Command, ScrubOptions, ScrubProgress, ScrubReport, Verdict, Volume};
use types::{AccountId, Flags, InternalDate, Quota};

const ALICE: AccountId = AccountId(1);
/// Their changes fill more than a block, and so does what tells that they are gone.
const MESSAGES: usize = 1_000;
/// Less than any block has.
const STEP_OCTETS: usize = 16;
/// The beginning of a change's key: the group's space, and the kind.
const CHANGES: [u8; 5] = [0, 0, 0, 1, 8];

fn append() -> Command {
    Command::Append {
        account: ALICE,
        mailbox: name("large"),
        flags: Flags::default(),
        date: InternalDate::default(),
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        quota: Quota::NONE,
    }
}

fn delete() -> Command {
    Command::DeleteMailbox { account: ALICE, name: name("large") }
}

/// A closed volume of one disk, in whose tables is a mailbox that messages have come to; and the next entry.
fn filled(directory: &Path, emptied: bool) -> u64 {
    let next = {
        let volume = open(directory);
        let mut replica = Replica::new(&volume);
        replica.run(Command::CreateMailbox { account: ALICE, name: name("large"), special_use: None }).unwrap();
        for _ in 0..MESSAGES {
            replica.run_with(append(), Some(Bytes::from_static(b"body"))).unwrap();
        }
        if emptied {
            let mailbox = replica.group.shard().mailbox(ALICE, &name("large")).unwrap().unwrap().id;
            replica.run(Command::Expunge { account: ALICE, mailbox, uids: None, only_deleted: false }).unwrap();
        }
        replica.next
    };
    // What the log holds is put into tables.
    drop(open(directory));
    next
}

fn read_only(directory: &Path) -> DB {
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    let within = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let database = within.into_iter().find(|path| path.join("CURRENT").exists()).unwrap();
    DB::open_cf_for_read_only(&options, database, ["log", "blob", "state", "meta"], false).unwrap()
}

fn first_change(directory: &Path) -> Vec<u8> {
    let db = read_only(directory);
    let mut found = db.iterator_cf(&db.cf_handle("state").unwrap(), IteratorMode::From(&CHANGES, Direction::Forward));
    let (key, _) = found.next().unwrap().unwrap();
    assert!(key.starts_with(&CHANGES), "{key:?}");
    key.into_vec()
}

/// Flips a bit in the block of a closed volume that a record of the state lies in.
fn damage_block_of(directory: &Path, key: &[u8]) {
    let db = read_only(directory);
    let state = db.cf_handle("state").unwrap();
    let mut past_memory = ReadOptions::default();
    past_memory.fill_cache(false);
    for path in files_of(directory, "sst") {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let octets = std::fs::read(&path).unwrap();
        for (at, octet) in octets.iter().enumerate().step_by(STEP_OCTETS) {
            file.write_all_at(&[octet ^ 4], at as u64).unwrap();
            if db.get_cf_opt(&state, key, &past_memory).is_err() {
                return;
            }
            file.write_all_at(&[*octet], at as u64).unwrap();
        }
    }
    panic!("it lies in no table");
}

fn scrub(volume: &Volume) -> ScrubReport {
    let fast = ScrubOptions { bytes_per_s: 1 << 40, ..ScrubOptions::default() };
    let report = volume.scrub(&fast, &ScrubProgress::default()).unwrap();
    volume.note_scrubbed(None, &report, 1).unwrap();
    report
}

#[test]
fn changes_that_cannot_be_read_are_lost_until_their_mailbox_is_deleted() {
    for emptied in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let next = filled(directory.path(), emptied);
        damage_block_of(directory.path(), &first_change(directory.path()));
        let volume = open(directory.path());
        let mut replica = Replica { next, ..Replica::new(&volume) };
        assert!(scrub(&volume).lost > 0, "emptied: {emptied}");
        assert!(volume.scrub_history().losses.records() > 0);
        replica.run(delete()).unwrap();
        let report = scrub(&volume);
        assert_eq!(report.lost, 0, "emptied: {emptied}: {report:?}");
        assert!(report.findings.iter().all(|one| one.verdict == Verdict::Unneeded), "{report:?}");
        assert!(!report.findings.is_empty(), "the place is not met any more, whatever is said of it");
        assert!(volume.scrub_history().losses.is_empty());
    }
}

#[test]
fn halves_that_are_both_damaged_in_what_a_deleted_mailbox_had_are_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let halves = ["a", "b"].map(|name| root.path().join(name));
    let next = filled(&halves[0], true);
    wait_whole(&open_mirror(root.path()));
    let first = first_change(&halves[0]);
    halves.iter().for_each(|half| damage_block_of(half, &first));
    let volume = open_mirror(root.path());
    Replica { next, ..Replica::new(&volume) }.run(delete()).unwrap();
    let report = scrub(&volume);
    assert_eq!((report.lost, report.resilvers.len()), (0, 2), "{report:?}");
    wait_until("both are made anew", || volume.statistics().resilvers == 2);
    wait_whole(&volume);
    assert!(scrub(&volume).is_clean());
    drop(volume);
    assert_equal_halves(root.path());
}
