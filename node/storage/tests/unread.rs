//! What reads have met damage in is told until all was read again without, it is known as lost, or its group has gone.

mod common;

use std::path::Path;

use bytes::Bytes;
use common::flips::{flip_body, lies_in};
use common::mirror::{body, fill_until, small_mirror, wait_until, wait_whole, write_entries};
use common::{Replica, SHARD, name, options};
use storage::{
    BodySource, Command, Group, GroupId, HalfName, Recipient, ScrubOptions, ScrubProgress, StorageError, Volume,
    VolumeOptions,
};
use types::{AccountId, InternalDate, Quota, UidSet};

const ENTRIES: u64 = 2400;
const OTHER: GroupId = GroupId(9);
/// One that has a body, in a table by the end.
const DAMAGED: u64 = 100;

/// Small memtables, so that there are tables and blob files.
fn open_one(directory: &Path) -> Volume {
    Volume::open(VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 2 << 20, ..options(directory) }).unwrap()
}

/// Reads an entry as a replica does, and says what could not be read.
fn meet(group: &Group, index: u64) -> String {
    let Err(StorageError::Corrupt { key, .. }) = group.read(index, index + 1, usize::MAX) else {
        panic!("entry {index} can be read")
    };
    group.note_unread(&key);
    key
}

/// Of each group, how many records and which.
fn told(volume: &Volume) -> Vec<(GroupId, u64, Vec<String>)> {
    volume.unread().into_iter().map(|(group, unread)| (group, unread.records, unread.keys)).collect()
}

fn scrub(volume: &Volume, group: Option<GroupId>) {
    // A replica's entries are applied: their bodies are needed no more.
    let applied = [(SHARD, ENTRIES), (OTHER, ENTRIES)].into();
    let options = ScrubOptions { group, bytes_per_s: 1 << 40, applied, ..ScrubOptions::default() };
    let report = volume.scrub(&options, &ScrubProgress::default()).unwrap();
    volume.note_scrubbed(group, &report, 7).unwrap();
}

#[test]
fn what_a_read_has_met_is_told_until_a_scrub_has_read_it_or_its_group_has_gone() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_one(root.path());
    [SHARD, OTHER].iter().for_each(|id| write_entries(&volume.group(*id).unwrap(), ENTRIES));
    drop(volume);
    flip_body(root.path(), DAMAGED);
    let volume = open_one(root.path());
    let [group, other] = [SHARD, OTHER].map(|id| volume.group(id).unwrap());
    assert!(volume.unread().is_empty());
    let keys = [&group, &other, &group].map(|group| meet(group, DAMAGED));
    assert_eq!(keys, ["blob/7/100", "blob/9/100", "blob/7/100"]);
    let of = |id: GroupId| (id, 1, vec![format!("blob/{}/{DAMAGED}", id.0)]);
    assert_eq!(told(&volume), [of(SHARD), of(OTHER)]);
    // What is met while it reads may lie where it has been.
    let so_far = group.unread_so_far();
    meet(&group, DAMAGED);
    group.note_read(so_far);
    assert_eq!(told(&volume), [of(SHARD), of(OTHER)]);
    scrub(&volume, Some(SHARD));
    assert_eq!(told(&volume), [of(OTHER)]);
    assert!(volume.scrub_history().losses.is_empty(), "no message has it");
    meet(&group, DAMAGED);
    volume.drop_group(SHARD).unwrap();
    // By whoever still read it.
    group.note_unread("blob/7/100");
    assert_eq!(told(&volume), [of(OTHER)]);
    other.note_read(other.unread_so_far());
    assert!(volume.unread().is_empty());
    meet(&other, DAMAGED);
    drop((group, other, volume));
    assert!(open_one(root.path()).unread().is_empty(), "whoever reads it meets it again");
}

#[test]
fn what_a_copy_of_a_group_has_met_on_the_only_disk_is_told_too() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_one(root.path());
    let mut replica = Replica::new(&volume);
    for number in 1..=3 {
        let deliver = Command::Deliver {
            recipients: vec![Recipient { account: AccountId(1), fingerprint: [number; 32], quota: Quota::NONE }],
            body: BodySource::Inline,
            digest: Bytes::from_static(b"digest"),
            date: InternalDate::default(),
            settle: Vec::new(),
        };
        replica.run_with(deliver, Some(body(number.into()))).unwrap();
    }
    fill_until(&volume, "the bodies lie in a table", || lies_in(root.path(), "blob", &body(2)[500..600]));
    drop((replica, volume));
    flip_body(root.path(), 2);
    let volume = open_one(root.path());
    let group = volume.group(SHARD).unwrap();
    for _ in 0..2 {
        assert!(group.export().unwrap().blocks.any(|block| block.is_err()));
        assert_eq!(told(&volume), [(SHARD, 1, vec!["blob/7/2".to_owned()])]);
    }
    // With the message it is gone for whoever copies.
    let mailbox = group.shard().mailbox(AccountId(1), &name("INBOX")).unwrap().unwrap().id;
    let mut replica = Replica { next: 4, ..Replica::new(&volume) };
    let uids = Some(UidSet::from_range(2, 2));
    replica.run(Command::Expunge { account: AccountId(1), mailbox, uids, only_deleted: false }).unwrap();
    assert!(group.export().unwrap().blocks.all(|block| block.is_ok()));
    // What has filled the tables lies in another group.
    scrub(&volume, Some(SHARD));
    assert!(volume.unread().is_empty() && volume.scrub_history().losses.is_empty(), "{:?}", volume.scrub_history());
}

#[test]
fn what_a_scrub_has_told_as_lost_is_not_told_twice() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_one(root.path());
    write_entries(&volume.group(SHARD).unwrap(), ENTRIES);
    drop(volume);
    flip_body(root.path(), DAMAGED);
    let volume = open_one(root.path());
    let group = volume.group(SHARD).unwrap();
    meet(&group, DAMAGED);
    // Of a group whose entries nobody says are applied.
    let fast = ScrubOptions { bytes_per_s: 1 << 40, ..ScrubOptions::default() };
    let report = volume.scrub(&fast, &ScrubProgress::default()).unwrap();
    volume.note_scrubbed(None, &report, 7).unwrap();
    meet(&group, DAMAGED);
    assert!(volume.unread().is_empty() && volume.scrub_history().losses.records() == 1, "{:?}", told(&volume));
}

#[test]
fn what_could_be_copied_as_a_half_is_made_anew_is_told_no_more() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::open(small_mirror(root.path())).unwrap();
    write_entries(&volume.group(SHARD).unwrap(), ENTRIES);
    drop(volume);
    flip_body(&root.path().join("a"), DAMAGED);
    let volume = Volume::open(small_mirror(root.path())).unwrap();
    let group = volume.group(SHARD).unwrap();
    // As if neither disk had given an answer.
    group.note_unread("blob/7/100");
    assert_eq!(told(&volume).len(), 1);
    let report = volume.scrub(&ScrubOptions::default(), &ScrubProgress::default()).unwrap();
    assert_eq!(report.resilvers, [HalfName::A], "the other half has it");
    wait_until("the half is made anew", || volume.statistics().resilvers > 0);
    wait_whole(&volume);
    assert!(volume.unread().is_empty());
}
