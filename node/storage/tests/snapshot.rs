//! Snapshots in and out: damage is refused and the old state kept; a crash leaves the old state or the new one; bodies
//! are neither lost nor left behind.

mod common;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{
    Replica, SHARD, append, blocks, copy_volume, done, entry, forget_mark, live_wal, marker, name, open, options, stamp,
};
use parking_lot::Mutex;
use storage::{
    BodyId, BodySource, Command, Faults, Group, GroupId, HalfName, Operation, Recipient, StorageError, Volume,
    VolumeOptions,
};
use types::{AccountId, Flags, InternalDate, Quota, UidSet};

const ALICE: AccountId = AccountId(1);

fn deliver(number: u8) -> Command {
    Command::Deliver {
        recipients: vec![Recipient { account: ALICE, fingerprint: [number; 32], quota: Quota::NONE }],
        body: BodySource::Inline,
        digest: Bytes::from(vec![number; 10]),
        date: InternalDate::default(),
        settle: Vec::new(),
    }
}

fn body(number: u8) -> Bytes {
    Bytes::from(vec![number; 400_000])
}

/// A shard with deliveries 1 to `count`, the second of which is expunged again, and an upload under way.
fn filled(volume: &Volume, count: u8) -> Replica {
    let mut replica = Replica::new(volume);
    for number in 1..=count {
        replica.run_with(deliver(number), Some(body(number))).unwrap();
    }
    let inbox = replica.group.shard().mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    let uids = Some(UidSet::from_range(2, 2));
    replica.run(Command::Expunge { account: ALICE, mailbox: inbox, uids, only_deleted: false }).unwrap();
    replica.run_with(Command::Chunk { upload: 9 }, Some(Bytes::from_static(b"half a message"))).unwrap();
    replica
}

fn install(group: &Group, last_index: u64, marker: &Bytes, blocks: &[Bytes]) {
    let mut installer = group.installer(last_index).unwrap();
    blocks.iter().for_each(|block| installer.push(block).unwrap());
    installer.finish(marker.clone()).unwrap();
}

#[test]
fn blocks_are_small_and_carry_bodies() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let replica = filled(&volume, 6);
    let (exported, blocks) = blocks(&replica.group);
    assert_eq!(exported, marker(replica.next - 1));
    assert!(blocks.len() >= 3 && blocks.iter().all(|block| block.len() <= 1 << 20));
    let other_directory = tempfile::tempdir().unwrap();
    let other = open(other_directory.path());
    let group = other.group(SHARD).unwrap();
    install(&group, replica.next - 1, &exported, &blocks);
    assert_eq!(group.applied().unwrap().unwrap(), exported);
    let shard = group.shard();
    assert_eq!(shard.body_range(BodyId(3), 0, u64::MAX).unwrap().unwrap().concat(), body(3));
    assert_eq!(shard.body_range(BodyId(2), 0, 9).unwrap(), None);
    // The log goes on behind the snapshot, and the upload is finished there.
    group.purge_to(replica.next - 1, Bytes::from_static(b"p")).unwrap();
    let mut there = Replica { group, next: replica.next, now_s: replica.now_s, format: replica.format };
    let append = Command::Append {
        account: ALICE,
        mailbox: name("Sent"),
        flags: Flags::default(),
        date: InternalDate::default(),
        body: BodySource::Upload(9),
        digest: Bytes::new(),
        quota: Quota::NONE,
    };
    there.run(append).unwrap();
    assert_eq!(shard.body_range(BodyId(there.next - 1), 5, 4).unwrap().unwrap().concat(), b"a me");
}

#[test]
fn damaged_reordered_cut_and_foreign_snapshots_are_refused_and_the_old_state_kept() {
    let source_directory = tempfile::tempdir().unwrap();
    let source = open(source_directory.path());
    let sender = filled(&source, 6);
    let (exported, blocks) = blocks(&sender.group);
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let group = filled(&volume, 3).group;
    let before = common::blocks(&group);
    let last = sender.next - 1;
    {
        let mut installer = group.installer(last).unwrap();
        assert!(group.installer(last).is_err(), "one at a time");
        let mut flipped = blocks[0].to_vec();
        flipped[500] ^= 1;
        assert!(matches!(installer.push(&flipped), Err(StorageError::Block(_))));
        assert!(matches!(installer.push(&blocks[0][..blocks[0].len() - 1]), Err(StorageError::Block(_))));
        assert!(matches!(installer.push(&blocks[1]), Err(StorageError::Block(_))), "out of order");
        installer.push(&blocks[0]).unwrap();
        assert!(matches!(installer.push(&blocks[0]), Err(StorageError::Block(_))), "repeated");
        assert!(matches!(installer.push(blocks.last().unwrap()), Err(StorageError::Block(_))), "the end too early");
        assert!(matches!(installer.check(&exported), Err(StorageError::Block(_))), "cut");
        assert!(matches!(installer.finish(exported.clone()), Err(StorageError::Block(_))), "cut");
    }
    assert_eq!(before, common::blocks(&group));
    {
        let mut installer = group.installer(last).unwrap();
        blocks.iter().for_each(|block| installer.push(block).unwrap());
        assert_eq!(installer.check(&exported), Ok(()));
        assert!(matches!(installer.check(&marker(1)), Err(StorageError::Block(_))), "another marker");
        assert!(matches!(installer.finish(marker(1)), Err(StorageError::Block(_))), "another marker");
    }
    {
        // The bodies reach beyond what the snapshot says that it stands for.
        let mut installer = group.installer(2).unwrap();
        blocks.iter().for_each(|block| installer.push(block).unwrap());
        assert!(matches!(installer.finish(exported.clone()), Err(StorageError::Block(_))));
    }
    let stranger = volume.group(GroupId(8)).unwrap();
    assert!(matches!(stranger.installer(last).unwrap().push(&blocks[0]), Err(StorageError::Block(_))));
    assert_eq!(before, common::blocks(&group));
    install(&group, last, &exported, &blocks);
    assert_eq!((exported, blocks), common::blocks(&group));
    drop((group, stranger, volume));
    assert_eq!(std::fs::read_dir(directory.path().join("spool")).unwrap().count(), 0);
}

#[test]
fn an_install_cut_short_by_a_crash_leaves_the_old_state() {
    let source_directory = tempfile::tempdir().unwrap();
    let source = open(source_directory.path());
    let sender = filled(&source, 6);
    let (exported, blocks) = blocks(&sender.group);
    let directory = tempfile::tempdir().unwrap();
    let before = {
        let volume = open(directory.path());
        let group = filled(&volume, 3).group;
        let mut installer = group.installer(sender.next - 1).unwrap();
        blocks.iter().for_each(|block| installer.push(block).unwrap());
        let before = common::blocks(&group);
        // As if the process had ended: nothing is undone.
        std::mem::forget(installer);
        before
    };
    // The leaked handle keeps the database of this process open, so look at a copy of its files.
    let copy = tempfile::tempdir().unwrap();
    copy_volume(directory.path(), copy.path());
    let volume = open(copy.path());
    let group = volume.group(SHARD).unwrap();
    assert_eq!(before, common::blocks(&group));
    install(&group, sender.next - 1, &exported, &blocks);
    assert_eq!((exported, blocks), common::blocks(&group));
}

#[test]
fn truncating_while_a_snapshot_comes_in_does_not_take_its_bodies() {
    let source_directory = tempfile::tempdir().unwrap();
    let source = open(source_directory.path());
    let sender = filled(&source, 6);
    let (exported, blocks) = blocks(&sender.group);
    let last = sender.next - 1;
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let group = volume.group(SHARD).unwrap();
    // The follower's log has the true first entries, not yet applied, then one that was never committed.
    let true_entries = sender.group.read(1, 4, usize::MAX).unwrap();
    append(&group, true_entries);
    append(&group, vec![entry(4, "never committed", Some(Bytes::from(vec![99; 5000])))]);
    let mut installer = group.installer(last).unwrap();
    blocks.iter().for_each(|block| installer.push(block).unwrap());
    group.truncate_after(Some(2)).unwrap();
    installer.finish(exported.clone()).unwrap();
    // Even now the log may be cut below the snapshot.
    group.truncate_after(Some(1)).unwrap();
    assert_eq!((exported, blocks), common::blocks(&group));
    group.purge_to(last, Bytes::new()).unwrap();
    append(&group, vec![entry(last + 1, "on", None)]);
    for number in [1, 3, 4, 5, 6] {
        let found = group.shard().body_range(BodyId(number), 0, u64::MAX).unwrap().unwrap().concat();
        assert_eq!(found, body(number as u8));
    }
}

#[test]
fn a_log_that_contradicts_the_snapshot_gives_way_with_the_flip() {
    let source_directory = tempfile::tempdir().unwrap();
    let source = open(source_directory.path());
    let sender = filled(&source, 6);
    let (exported, blocks) = blocks(&sender.group);
    let last = sender.next - 1;
    let directory = tempfile::tempdir().unwrap();
    {
        let volume = open(directory.path());
        let group = volume.group(SHARD).unwrap();
        append(&group, sender.group.read(1, 3, usize::MAX).unwrap());
        append(&group, (3..12).map(|index| entry(index, "never", Some(Bytes::from(vec![9; 2000])))).collect());
        install(&group, last, &exported, &blocks);
        assert_eq!(group.last_entry().unwrap().unwrap().index, 2);
        group.purge_to(last, Bytes::new()).unwrap();
    }
    let volume = open(directory.path());
    let group = volume.group(SHARD).unwrap();
    assert_eq!((exported, blocks), common::blocks(&group));
    append(&group, vec![entry(last + 1, "on", None)]);
}

#[test]
fn an_export_sees_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = filled(&volume, 4);
    let before = blocks(&replica.group);
    let export = replica.group.export().unwrap();
    replica.run(Command::DropAccount { account: ALICE }).unwrap();
    replica.group.purge_to(replica.next - 1, Bytes::new()).unwrap();
    assert_eq!(before, (export.marker, export.blocks.map(Result::unwrap).collect()));
}

#[test]
fn an_export_that_nobody_reads_does_not_hold_the_volume() {
    let directory = tempfile::tempdir().unwrap();
    {
        let volume = open(directory.path());
        let replica = filled(&volume, 6);
        let mut export = replica.group.export().unwrap();
        export.blocks.next().unwrap().unwrap();
        assert!(matches!(volume.group(GroupId(9)).unwrap().export(), Err(StorageError::Misuse(_))));
    }
    // The export's thread lets go of the database soon after its reader is gone.
    let volume = (0..1000).find_map(|_| {
        std::thread::yield_now();
        Volume::open(common::options(directory.path())).ok().or_else(|| {
            std::thread::park_timeout(std::time::Duration::from_millis(10));
            None
        })
    });
    assert!(volume.is_some());
}

#[test]
fn a_power_cut_at_any_point_of_an_install_leaves_the_old_state_or_the_new_one() {
    let source_directory = tempfile::tempdir().unwrap();
    let source = open(source_directory.path());
    let sender = filled(&source, 6);
    let (exported, new) = blocks(&sender.group);
    let directory = tempfile::tempdir().unwrap();
    // Memtables that are never flushed: the write-ahead log is all there is.
    let options = |path: &std::path::Path| VolumeOptions { memtable_bytes: 256 << 20, ..options(path) };
    let volume = Volume::open(options(directory.path())).unwrap();
    let group = filled(&volume, 3).group;
    let old = blocks(&group);
    let wal = live_wal(directory.path());
    let from = std::fs::metadata(&wal).unwrap().len() as usize;
    install(&group, sender.next - 1, &exported, &new);
    let new = (exported, new);
    drop((group, volume));
    let whole = std::fs::read(&wal).unwrap();
    let (mut olds, mut news) = (0, 0);
    let near_the_end = (whole.len() - 400..whole.len()).step_by(19);
    for cut in (from..whole.len()).step_by((whole.len() - from) / 24).chain(near_the_end).chain([whole.len()]) {
        let copy = tempfile::tempdir().unwrap();
        copy_volume(directory.path(), copy.path());
        forget_mark(copy.path());
        std::fs::write(live_wal(copy.path()), &whole[..cut]).unwrap();
        let volume = Volume::open(options(copy.path())).unwrap();
        let group = volume.group(SHARD).unwrap();
        let found = blocks(&group);
        if found == old {
            olds += 1;
            // The log that was replicated is whole too, bodies included.
            assert_eq!(group.read(1, 4, usize::MAX).unwrap().len(), 3);
        } else {
            assert!(found == new, "cut at {cut}");
            news += 1;
        }
    }
    assert!(olds > 20 && news > 0, "{olds} old, {news} new");
}

/// Drops a group in the middle of what reads the disk next.
#[derive(Default)]
struct DropMeanwhile(Mutex<Option<Volume>>);

impl std::fmt::Debug for DropMeanwhile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DropMeanwhile")
    }
}

impl Faults for DropMeanwhile {
    fn before(&self, _: HalfName, operation: Operation) -> std::io::Result<()> {
        if operation != Operation::Read {
            return Ok(());
        }
        // Dropping reads, too.
        let volume = self.0.lock().take();
        if let Some(volume) = volume {
            volume.drop_group(SHARD).unwrap();
        }
        Ok(())
    }
}

#[test]
fn a_group_that_is_dropped_amid_an_install_leaves_nothing_to_the_next_one() {
    let sources = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (volume_of_many, volume_of_few) = (open(sources[0].path()), open(sources[1].path()));
    let (many, few) = (filled(&volume_of_many, 6), filled(&volume_of_few, 3));
    let directory = tempfile::tempdir().unwrap();
    {
        let volume = open(directory.path());
        append(&volume.group(SHARD).unwrap(), many.group.read(1, 3, usize::MAX).unwrap());
    }
    let meanwhile = Arc::new(DropMeanwhile::default());
    {
        let faults: Option<Arc<dyn Faults>> = Some(meanwhile.clone());
        let volume = Volume::open(VolumeOptions { faults, ..options(directory.path()) }).unwrap();
        let group = volume.group(SHARD).unwrap();
        let (marker, blocks) = blocks(&many.group);
        let mut installer = group.installer(many.next - 1).unwrap();
        blocks.iter().for_each(|block| installer.push(block).unwrap());
        *meanwhile.0.lock() = Some(volume.clone());
        assert_eq!(installer.finish(marker), Err(StorageError::Dropped));
        assert!(meanwhile.0.lock().is_none(), "it was not dropped midway");
    }
    // As many spaces as were used before.
    let volume = open(directory.path());
    let group = volume.group(SHARD).unwrap();
    assert_eq!((group.applied().unwrap(), group.blob_count().unwrap()), (None, 0));
    let (marker, expected) = blocks(&few.group);
    install(&group, few.next - 1, &marker, &expected);
    assert_eq!((marker, expected), blocks(&group));
}

/// Writes the records of a closed volume's space 1 into other spaces too.
fn litter(directory: &Path, spaces: std::ops::RangeInclusive<u32>) {
    let mut options = rocksdb::Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    let families = ["default", "log", "blob", "state", "meta"];
    let db: rocksdb::DB = rocksdb::DB::open_cf(&options, directory.join("db"), families).unwrap();
    let state = db.cf_handle("state").unwrap();
    let records: Vec<_> = db.iterator_cf(&state, rocksdb::IteratorMode::Start).map(Result::unwrap).collect();
    assert!(records.iter().all(|(key, _)| key.starts_with(&1u32.to_be_bytes())) && !records.is_empty());
    for (space, (key, value)) in spaces.flat_map(|space| records.iter().map(move |record| (space, record))) {
        db.put_cf(&state, [&space.to_be_bytes()[..], &key[4..]].concat(), value).unwrap();
    }
}

#[test]
fn a_space_that_is_given_out_again_is_cleared_first() {
    let source_directory = tempfile::tempdir().unwrap();
    let source = open(source_directory.path());
    let few = filled(&source, 3);
    let directory = tempfile::tempdir().unwrap();
    drop(filled(&open(directory.path()), 6));
    litter(directory.path(), 2..=9);
    let volume = open(directory.path());
    let fresh = volume.group(GroupId(8)).unwrap();
    assert_eq!(fresh.applied().unwrap(), None);
    let group = volume.group(SHARD).unwrap();
    let (marker, expected) = blocks(&few.group);
    install(&group, few.next - 1, &marker, &expected);
    assert_eq!((marker, expected), blocks(&group));
}

#[test]
fn an_entry_is_applied_once_and_by_nobody_who_was_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = filled(&volume, 3);
    let before = blocks(&replica.group);
    let old = replica.group.clone();
    let last = replica.next - 1;
    let apply = |group: &Group, index| {
        let stamp = stamp(1_700_000_000);
        group.shard().apply(index, stamp, deliver(9), Some(5), marker(index)).map(drop)
    };
    assert!(matches!(apply(&old, last), Err(StorageError::Misuse(_))));
    // Queued when it is let go, and durable then.
    let (queued, durable) = done();
    old.append(vec![entry(replica.next, "queued", None)], queued).unwrap();
    volume.let_go(SHARD).unwrap();
    durable.try_recv().unwrap().unwrap();
    assert_eq!(apply(&old, replica.next), Err(StorageError::Dropped));
    assert_eq!(old.set_applied(marker(99)), Err(StorageError::Dropped));
    assert_eq!(old.append(vec![entry(replica.next + 1, "late", None)], done().0), Err(StorageError::Dropped));
    replica.group = volume.group(SHARD).unwrap();
    assert_eq!(before, blocks(&replica.group));
    assert_eq!(replica.group.last_entry().unwrap().unwrap(), entry(replica.next, "queued", None));
    replica.next += 1;
    replica.run_with(deliver(9), Some(body(9))).unwrap();
}
