//! Damage that is met where nobody reads, and the last good copies: neither ends a volume, nor is removed.

mod common;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::flips::{Random, files_of, flip, flip_body, flip_some, flip_where, lies_in};
use common::mirror::{
    EIO, FILLER, Failure, Script, assert_entries, body, fill_until, head, is_current, mirror_options, put, random,
    status, wait_until, wait_whole, write_entries,
};
use common::{Replica, SHARD, append, entry, marker, name, options, to_inbox};
use storage::{
    Command, Faults, Group, GroupId, HalfName, HalfState, MessageMeta, Operation, ScrubOptions, ScrubProgress,
    StorageError, Verdict, Volume, VolumeOptions,
};
use types::{AccountId, UidSet};

const ENTRIES: u64 = 1200;
const ALICE: AccountId = AccountId(1);

/// Small memtables, so that there are many tables and blob files, and compactions.
fn small(options: VolumeOptions) -> VolumeOptions {
    VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 2 << 20, ..options }
}

fn written(options: VolumeOptions) {
    let volume = Volume::open(small(options)).unwrap();
    write_entries(&volume.group(SHARD).unwrap(), ENTRIES);
}

/// So much more that compactions go over what was there, and blob files of old bodies are written anew.
fn write_on(group: &Group, from: u64, to: u64) {
    for first in (from..to).step_by(60) {
        let some = (first..first + 60).map(|index| {
            let body = (!index.is_multiple_of(3)).then(|| body(index));
            entry(index, head(index), body)
        });
        append(group, some.collect());
        group.set_applied(marker(first + 59)).unwrap();
    }
}

#[test]
fn compactions_that_meet_damage_in_both_halves_cost_no_record_and_no_half() {
    let root = tempfile::tempdir().unwrap();
    written(mirror_options(root.path()));
    for index in [1, 100, 202] {
        flip_body(&root.path().join("a"), index);
        flip_body(&root.path().join("b"), index + 4);
    }
    for opening in 1..=2 {
        let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
        let group = volume.group(SHARD).unwrap();
        write_on(&group, ENTRIES * opening + 1, ENTRIES * (opening + 1));
        assert_eq!(volume.statistics().halves_dropped, 0, "{:?}", volume.halves());
        assert_entries(&group, ENTRIES * (opening + 1));
        wait_whole(&volume);
        assert_entries(&group, ENTRIES * (opening + 1));
        assert_eq!(volume.statistics().bodies_left_out, 0);
    }
}

#[test]
fn a_volume_of_one_disk_with_damage_takes_writes_for_good() {
    let root = tempfile::tempdir().unwrap();
    written(options(root.path()));
    let bad = [1, 100, 202];
    bad.into_iter().for_each(|index| flip_body(root.path(), index));
    for opening in 1..=3 {
        let volume = Volume::open(small(options(root.path()))).unwrap();
        let group = volume.group(SHARD).unwrap();
        let last = ENTRIES * (opening + 1);
        write_on(&group, ENTRIES * opening + 1, last);
        volume.check().unwrap();
        for index in (1..=last).step_by(33).chain(bad) {
            match group.read(index, index + 1, 1) {
                Ok(found) => assert!(found[0].head == head(index) && !bad.contains(&index), "entry {index}"),
                Err(StorageError::Corrupt { key, .. }) => {
                    assert!(bad.contains(&index) && key == format!("blob/7/{index}"), "{key}");
                }
                Err(error) => panic!("entry {index}: {error}"),
            }
        }
    }
}

/// Half `b` is dropped, though nothing of it is damaged.
fn without_b(root: &Path, script: &Arc<Script>) -> Volume {
    let faults: Arc<dyn storage::Faults> = script.clone();
    let volume = Volume::open(small(VolumeOptions { faults: Some(faults), ..mirror_options(root) })).unwrap();
    script.set(HalfName::B, Operation::Sync, Failure::Error(EIO));
    put(&volume.group(SHARD).unwrap(), ENTRIES + 1);
    script.clear();
    assert!(matches!(status(&volume, HalfName::B).state, HalfState::Stale { .. }));
    wait_until("b is told", || {
        std::fs::read_to_string(root.join("b/HALF")).is_ok_and(|record| record.contains("self stale"))
    });
    volume
}

#[test]
fn what_only_a_dropped_half_can_still_read_is_taken_from_its_old_database() {
    for reopened in [false, true] {
        let root = tempfile::tempdir().unwrap();
        written(mirror_options(root.path()));
        let damage = || [100, 101, 700].into_iter().for_each(|index| flip_body(&root.path().join("a"), index));
        let mut volume = without_b(root.path(), &Script::new());
        if reopened {
            drop(volume);
            damage();
            volume = Volume::open(small(mirror_options(root.path()))).unwrap();
        } else {
            damage();
            volume.resilver(HalfName::B).unwrap();
        }
        wait_whole(&volume);
        assert_entries(&volume.group(SHARD).unwrap(), ENTRIES + 1);
        let statistics = volume.statistics();
        assert_eq!((statistics.bodies_salvaged, statistics.bodies_left_out), (3, 0));
    }
}

/// The first table of half `a` that tells where bodies lie.
fn flip_places_of_bodies(root: &Path) {
    let mut tables = files_of(&root.join("a"), "sst");
    tables.sort();
    // The name of the column family is among a table's properties.
    let of_bodies = |path: &Path| std::fs::read(path).unwrap().windows(8).any(|window| window == b"nameblob");
    flip(tables.iter().find(|path| of_bodies(path)).unwrap(), 60);
}

#[test]
fn what_lies_behind_damage_of_the_old_database_is_taken_from_it_too() {
    let root = tempfile::tempdir().unwrap();
    written(mirror_options(root.path()));
    drop(without_b(root.path(), &Script::new()));
    flip_places_of_bodies(root.path());
    flip_body(&root.path().join("b"), 50);
    let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
    wait_until("b is made anew", || volume.statistics().resilvers >= 1 && is_current(&volume, HalfName::B));
    let group = volume.group(SHARD).unwrap();
    for index in (1..=ENTRIES).filter(|index| *index != 50) {
        let found = group.read(index, index + 1, 1).unwrap();
        assert_eq!(found[0].body, (!index.is_multiple_of(3)).then(|| body(index)), "entry {index}");
    }
    assert!(matches!(group.read(50, 51, 1), Err(StorageError::Corrupt { .. })));
    let statistics = volume.statistics();
    assert!(statistics.bodies_salvaged > 50 && statistics.bodies_left_out == 1, "{statistics:?}");
}

/// A walk over tables that overlap fails over all that lies between two groups: each body that a message has is asked for by itself.
#[test]
fn what_a_damaged_half_can_still_read_goes_to_an_empty_disk_though_no_walk_comes_to_it() {
    for attempt in 0.. {
        let root = tempfile::tempdir().unwrap();
        let (volume, script) = with_damaged_tables(root.path());
        // Which messages the damaged half can read by itself: the other disk has no room yet.
        let before = readable(&volume);
        if !before.contains(&true) {
            // A compaction has put them all into one block.
            assert!(attempt < 20, "{before:?}");
            continue;
        }
        script.clear();
        wait_until("it is made anew", || volume.statistics().resilvers >= 1 && is_current(&volume, HalfName::B));
        drop(volume);
        // From then on all is from there.
        std::fs::remove_dir_all(root.path().join("a")).unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
        wait_until("the other one is made anew", || volume.statistics().resilvers >= 1);
        wait_whole(&volume);
        assert_eq!(readable(&volume), before);
        return;
    }
}

/// Messages in two tables and more, of which one is damaged in half `a`; and nothing in half `b`, which has no room.
fn with_damaged_tables(root: &Path) -> (Volume, Arc<Script>) {
    {
        let volume = Volume::open(small(mirror_options(root))).unwrap();
        let mut replica = store(&volume, 20);
        // Of a group behind it, in the same blocks.
        write_entries(&volume.group(GroupId(9)).unwrap(), 600);
        let lie_in_tables = |index: u64| {
            let body = message(index);
            ["a", "b"].iter().all(|half| lies_in(&root.join(half), "blob", &body[500..600]))
        };
        fill_until(&volume, "they lie in a table", || lie_in_tables(20));
        append_messages(&mut replica, 60);
        // No entry of the log tells of them.
        let last = replica.next - 1;
        replica.group.purge_to(last, marker(last)).unwrap();
        fill_until(&volume, "the others lie in another one", || lie_in_tables(last));
    }
    flip_places_of_bodies(root);
    std::fs::remove_dir_all(root.join("b")).unwrap();
    std::fs::create_dir(root.join("b")).unwrap();
    let script = Script::new();
    script.set(HalfName::B, Operation::Room, Failure::Error(EIO));
    let faults: Arc<dyn Faults> = script.clone();
    (Volume::open(VolumeOptions { faults: Some(faults), ..small(mirror_options(root)) }).unwrap(), script)
}

/// Of each message, whether its body can be read.
fn readable(volume: &Volume) -> Vec<bool> {
    let state = volume.group(SHARD).unwrap().shard();
    let inbox = state.mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    let mut bodies = Vec::new();
    let visit = |meta: MessageMeta| {
        bodies.push(meta.body);
        true
    };
    state.messages(ALICE, inbox, &UidSet::from_range(1, u32::MAX), visit).unwrap();
    bodies.into_iter().map(|body| state.body_range(body, 0, 40_000).is_ok()).collect()
}

#[test]
fn an_old_database_that_cannot_be_looked_into_is_kept_where_a_body_is_left_out() {
    for damaged in [false, true] {
        let root = tempfile::tempdir().unwrap();
        written(mirror_options(root.path()));
        drop(without_b(root.path(), &Script::new()));
        if damaged {
            flip_body(&root.path().join("a"), 100);
        }
        std::fs::write(root.path().join("b/db/CURRENT"), "nothing").unwrap();
        let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
        wait_until("b is made anew", || volume.statistics().resilvers >= 1 && is_current(&volume, HalfName::B));
        assert_eq!(volume.statistics().bodies_left_out, u64::from(damaged));
        drop(volume);
        drop(Volume::open(small(mirror_options(root.path()))).unwrap());
        assert_eq!(root.path().join("b/kept-db/CURRENT").exists(), damaged);
        assert!(!root.path().join("b/db").exists());
    }
}

#[test]
fn a_body_that_no_half_has_is_left_out_and_named_and_all_else_is_whole_again() {
    let root = tempfile::tempdir().unwrap();
    written(mirror_options(root.path()));
    for half in ["a", "b"] {
        flip_body(&root.path().join(half), 100);
    }
    flip_body(&root.path().join("a"), 301);
    flip_body(&root.path().join("b"), 302);
    let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
    let group = volume.group(SHARD).unwrap();
    let refused = |index: u64| match group.read(index, index + 1, 1) {
        Err(StorageError::Corrupt { key, .. }) => assert!(key.ends_with("/7/100"), "{key}"),
        other => panic!("{other:?}"),
    };
    refused(100);
    wait_until("both are made anew", || volume.statistics().resilvers >= 2 && is_current(&volume, HalfName::A));
    wait_whole(&volume);
    refused(100);
    for index in (1..=ENTRIES).filter(|index| *index != 100) {
        let found = group.read(index, index + 1, 1).unwrap();
        assert_eq!(found[0].body, (!index.is_multiple_of(3)).then(|| body(index)), "entry {index}");
    }
    assert!(volume.statistics().bodies_left_out > 0);
}

/// The body of entry `index`. Not as those that fill.
fn message(index: u64) -> Bytes {
    random(1_000_000 + index, 40_000)
}

/// Entry 1 makes the account, those behind it a message each.
fn store(volume: &Volume, messages: u64) -> Replica {
    let mut replica = Replica::new(volume);
    replica.run(Command::CreateAccount { account: ALICE }).unwrap();
    append_messages(&mut replica, messages);
    replica
}

fn append_messages(replica: &mut Replica, messages: u64) {
    for _ in 0..messages {
        let body = message(replica.next);
        replica.run_with(to_inbox(ALICE), Some(body)).unwrap();
    }
}

/// By entry `index`.
fn expunge(volume: &Volume, index: u64, uids: UidSet) {
    let mailbox = volume.group(SHARD).unwrap().shard().mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    let mut replica = Replica { next: index, ..Replica::new(volume) };
    replica.run(Command::Expunge { account: ALICE, mailbox, uids: Some(uids), only_deleted: false }).unwrap();
}

/// A volume that has made both halves anew without the body of its only message. `purged`: the log has its entry no more.
fn without_a_body(root: &Path, purged: bool) -> Volume {
    let body = message(2);
    {
        let volume = Volume::open(small(mirror_options(root))).unwrap();
        let replica = store(&volume, 1);
        if purged {
            replica.group.purge_to(replica.next - 1, marker(replica.next - 1)).unwrap();
        }
        fill_until(&volume, "it lies in tables", || {
            ["a", "b"].iter().all(|half| lies_in(&root.join(half), "blob", &body[500..600]))
        });
    }
    for half in ["a", "b"] {
        assert!(flip_where(&root.join(half), "blob", &body[500..600]) > 0);
    }
    let volume = Volume::open(small(mirror_options(root))).unwrap();
    let state = volume.group(SHARD).unwrap().shard();
    let inbox = state.mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    let mut of = None;
    let visit = |meta: MessageMeta| {
        of = Some(meta.body);
        true
    };
    state.messages(ALICE, inbox, &UidSet::from_range(1, 9), visit).unwrap();
    assert!(state.body_range(of.unwrap(), 0, 40_000).is_err());
    wait_until("both are made anew", || volume.statistics().resilvers >= 2);
    wait_whole(&volume);
    assert_eq!(volume.statistics().bodies_left_out, 1);
    volume
}

fn scrub(volume: &Volume, group: Option<GroupId>) {
    let options = ScrubOptions { group, bytes_per_s: 1 << 40, ..ScrubOptions::default() };
    let report = volume.scrub(&options, &ScrubProgress::default()).unwrap();
    volume.note_scrubbed(group, &report, 1_700_000_000).unwrap();
}

#[test]
fn a_lost_body_is_told_until_a_scrub_finds_no_message_that_has_it() {
    let root = tempfile::tempdir().unwrap();
    let volume = without_a_body(root.path(), true);
    let told = volume.scrub_history().losses.by_group();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[&Some(SHARD)].records, &told[&Some(SHARD)].keys[..]), (1, &["blob/7/2".to_owned()][..]));
    drop(volume);
    let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
    assert_eq!(volume.scrub_history().losses.by_group(), told);
    for group in [None, Some(SHARD), Some(FILLER)] {
        scrub(&volume, group);
        assert_eq!(volume.scrub_history().losses.by_group(), told, "{group:?}");
    }
    expunge(&volume, 3, UidSet::from_range(1, 1));
    scrub(&volume, Some(FILLER));
    assert_eq!(volume.scrub_history().losses.by_group(), told);
    scrub(&volume, Some(SHARD));
    assert!(volume.scrub_history().losses.is_empty(), "{:?}", volume.scrub_history());
}

/// Findings of a group whose log is applied up to an entry: what is lost; and what nobody needs.
fn found(volume: &Volume, applied: Option<u64>) -> (Vec<String>, Vec<String>) {
    let applied = applied.map(|index| (SHARD, index)).into_iter().collect();
    let options = ScrubOptions { applied, bytes_per_s: 1 << 40, ..ScrubOptions::default() };
    let report = volume.scrub(&options, &ScrubProgress::default()).unwrap();
    let of = |verdict| report.findings.iter().filter(move |one| one.verdict == verdict).map(|one| one.key.clone());
    let (lost, unneeded): (Vec<String>, Vec<String>) = (of(Verdict::Lost).collect(), of(Verdict::Unneeded).collect());
    assert_eq!(report.findings.len(), lost.len() + unneeded.len(), "{report:?}");
    assert_eq!((report.lost, report.losses.records()), (lost.len() as u64, lost.len() as u64));
    assert_eq!(report.groups_lost.len(), usize::from(!lost.is_empty()));
    (lost, unneeded)
}

#[test]
fn a_damaged_body_is_no_loss_once_no_message_has_it() {
    let root = tempfile::tempdir().unwrap();
    {
        let volume = Volume::open(small(options(root.path()))).unwrap();
        store(&volume, 4);
        fill_until(&volume, "they lie in a table", || lies_in(root.path(), "blob", &message(5)[500..600]));
    }
    // The last one is not told by its key where it cannot be read, but missed.
    for index in [3, 5] {
        assert!(flip_where(root.path(), "blob", &message(index)[500..600]) > 0);
    }
    let volume = Volume::open(small(options(root.path()))).unwrap();
    let both = ["blob/7/3", "blob/7/5"];
    assert_eq!(found(&volume, Some(5)).0, both);
    expunge(&volume, 6, UidSet::from_range(2, 4));
    let (lost, unneeded) = found(&volume, Some(6));
    assert!(lost.is_empty() && unneeded.contains(&both[0].to_owned()), "{lost:?} {unneeded:?}");
    // An entry that is not applied needs its body; and so may one of which that is not known.
    assert_eq!(found(&volume, Some(4)).0, both[1..]);
    assert_eq!(found(&volume, None).0, both);
}

#[test]
fn a_missing_body_is_one_loss_however_often_it_is_referred_to_and_none_once_no_message_has_it() {
    let root = tempfile::tempdir().unwrap();
    let volume = without_a_body(root.path(), false);
    let lost = (vec!["blob/7/2".to_owned()], Vec::new());
    for applied in [Some(2), None] {
        assert_eq!(found(&volume, applied), lost);
    }
    expunge(&volume, 3, UidSet::from_range(1, 1));
    assert_eq!(found(&volume, Some(3)), Default::default());
    assert_eq!(found(&volume, None), lost);
}

#[test]
fn what_a_group_has_lost_goes_with_the_group() {
    let root = tempfile::tempdir().unwrap();
    let volume = without_a_body(root.path(), true);
    assert_eq!(volume.scrub_history().losses.records(), 1);
    volume.drop_group(SHARD).unwrap();
    assert!(volume.scrub_history().losses.is_empty());
    drop(volume);
    let volume = Volume::open(small(mirror_options(root.path()))).unwrap();
    assert!(volume.scrub_history().losses.is_empty());
}

#[test]
fn a_resilver_that_fails_removes_what_it_made_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    written(mirror_options(root.path()));
    let volume = without_b(root.path(), &Script::new());
    // Neither has all, and nor has the old database what the other lacks.
    flip_some(&files_of(&root.path().join("a"), "sst"), 200, &mut Random(7));
    flip_some(&files_of(&root.path().join("b"), "sst"), 200, &mut Random(8));
    // What resilvers left that ended with their process.
    for left in ["db-3", "db-4"] {
        std::fs::create_dir(root.path().join("b").join(left)).unwrap();
    }
    std::fs::write(root.path().join("b/MARK-3"), "").unwrap();
    volume.resilver(HalfName::B).unwrap();
    wait_until(
        "it fails",
        || matches!(status(&volume, HalfName::B).state, HalfState::Stale { reason } if reason.starts_with("resilver")),
    );
    let mut names: Vec<String> = std::fs::read_dir(root.path().join("b"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("db") || name.starts_with("MARK"))
        .collect();
    names.sort();
    assert_eq!(names, ["MARK", "db"]);
    volume.check().unwrap();
    put(&volume.group(SHARD).unwrap(), ENTRIES + 2);
}
