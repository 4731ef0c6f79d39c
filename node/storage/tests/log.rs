//! The Raft log: against a plain model, over reopens, and the sharing of syncs.

mod common;

use std::sync::{Arc, Barrier, mpsc};

use bytes::Bytes;
use common::{SHARD, append, done, entry, open, options};
use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};
use storage::{GroupId, LogEntry, StorageError, TryAppend, Volume, VolumeOptions};

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Truncate(u64),
    Purge(u64),
    Vote(u8),
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
    let body = prop::option::of(prop_oneof![bytes(40), bytes(4000)]);
    let op = prop_oneof![
        6 => prop::collection::vec((bytes(60), body), 0..5).prop_map(Op::Append),
        2 => any::<u64>().prop_map(Op::Truncate),
        1 => any::<u64>().prop_map(Op::Purge),
        1 => any::<u8>().prop_map(Op::Vote),
        1 => proptest::prelude::Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..30)
}

#[derive(Default)]
struct Model {
    entries: Vec<LogEntry>,
    purged: Option<u64>,
    vote: Option<u8>,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.last().map(|entry| entry.index).or(self.purged).map_or(0, |last| last + 1)
    }

    fn check(&self, volume: &Volume) {
        let group = volume.group(SHARD).unwrap();
        assert_eq!(group.vote().unwrap(), self.vote.map(|vote| Bytes::copy_from_slice(&[vote])));
        assert_eq!(group.purged().unwrap(), self.purged.map(|index| Bytes::from(index.to_string())));
        let last = self.entries.last().map(|entry| LogEntry { body: None, ..entry.clone() });
        assert_eq!(group.last_entry().unwrap(), last);
        let first = self.purged.map_or(0, |index| index + 1);
        assert_eq!(group.read(first, u64::MAX, usize::MAX).unwrap(), self.entries);
        for (at, one) in self.entries.iter().enumerate() {
            assert_eq!(group.read(one.index, u64::MAX, 1).unwrap(), std::slice::from_ref(one));
            assert_eq!(group.read(first, one.index, usize::MAX).unwrap(), self.entries[..at]);
        }
        if let Some(index) = self.purged {
            assert_eq!(group.read(index, u64::MAX, 1), Err(StorageError::Purged { index }));
        }
    }
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn the_log_agrees_with_a_plain_list_over_reopens(ops in ops(), tail in 0usize..3000) {
        let directory = tempfile::tempdir().unwrap();
        // A small tail, so that reads come from the disk, from memory, and from both.
        let options = VolumeOptions { tail_bytes_per_group: tail, ..options(directory.path()) };
        let mut volume = Volume::open(options.clone()).unwrap();
        let mut model = Model::default();
        for op in ops {
            let group = volume.group(SHARD).unwrap();
            match op {
                Op::Append(list) => {
                    let next = model.next();
                    let entries: Vec<LogEntry> = list
                        .into_iter()
                        .zip(next..)
                        .map(|((head, body), index)| entry(index, head, body.map(Bytes::from)))
                        .collect();
                    model.entries.extend(entries.clone());
                    let (done, synced) = done();
                    group.append(entries, done).unwrap();
                    // Readable before it is synced.
                    model.check(&volume);
                    synced.recv().unwrap().unwrap();
                }
                Op::Truncate(at) => {
                    let keep = at.checked_rem(model.next() + 1).and_then(|at| at.checked_sub(1));
                    let keep = keep.max(model.purged);
                    group.truncate_after(keep).unwrap();
                    model.entries.retain(|entry| Some(entry.index) <= keep);
                }
                Op::Purge(at) => {
                    if model.next() > 0 {
                        let index = (at % model.next()).max(model.purged.unwrap_or(0));
                        group.purge_to(index, Bytes::from(index.to_string())).unwrap();
                        model.entries.retain(|entry| entry.index > index);
                        model.purged = Some(index);
                    }
                }
                Op::Vote(vote) => {
                    let (done, synced) = done();
                    group.save_vote(Bytes::copy_from_slice(&[vote]), done);
                    synced.recv().unwrap().unwrap();
                    model.vote = Some(vote);
                }
                Op::Reopen => {
                    drop((group, volume));
                    volume = Volume::open(options.clone()).unwrap();
                }
            }
            model.check(&volume);
        }
        drop(volume);
        model.check(&Volume::open(options).unwrap());
    }
}

#[test]
fn concurrent_appends_share_their_syncs() {
    const GROUPS: u32 = 16;
    const EACH: u64 = 40;
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let barrier = Arc::new(Barrier::new(GROUPS as usize));
    let before = {
        for id in 0..GROUPS {
            volume.group(GroupId(id)).unwrap();
        }
        volume.statistics()
    };
    let threads: Vec<_> = (0..GROUPS)
        .map(|id| {
            let group = volume.group(GroupId(id)).unwrap();
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                barrier.wait();
                let (sender, receiver) = mpsc::channel();
                for index in 0..EACH {
                    let sender = sender.clone();
                    let done = Box::new(move |result| sender.send(result).unwrap());
                    group.append(vec![entry(index, vec![0; 100], Some(vec![1; 500].into()))], done).unwrap();
                }
                (0..EACH).for_each(|_| receiver.recv().unwrap().unwrap());
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let after = volume.statistics();
    let (syncs, entries) =
        (after.synced_writes - before.synced_writes, after.appended_entries - before.appended_entries);
    assert_eq!(entries, u64::from(GROUPS) * EACH);
    assert!(syncs * 4 <= entries, "{syncs} syncs for {entries} entries");
}

#[test]
fn a_full_queue_blocks_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(VolumeOptions {
        queue_bytes_max: 10_000,
        round_bytes_max: 3_000,
        tail_bytes_per_group: 0,
        ..options(directory.path())
    })
    .unwrap();
    let group = volume.group(SHARD).unwrap();
    let (sender, receiver) = mpsc::channel();
    for index in 0..100 {
        let sender = sender.clone();
        let body = (index % 7 == 0).then(|| Bytes::from(vec![1; 20_000]));
        group
            .append(
                vec![entry(index, vec![0; 1000], body)],
                Box::new(move |result| sender.send((index, result)).unwrap()),
            )
            .unwrap();
    }
    let order: Vec<u64> = (0..100)
        .map(|_| receiver.recv().unwrap())
        .map(|(index, result)| {
            result.unwrap();
            index
        })
        .collect();
    assert!(order.is_sorted(), "callbacks come in the order of the appends");
    assert_eq!(group.read(0, 100, usize::MAX).unwrap().len(), 100);
}

/// The path of an async caller: what does not fit comes back at once, and the volume says when to try again.
#[test]
fn an_append_that_must_not_wait_comes_back_from_a_full_queue() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(VolumeOptions { queue_bytes_max: 10_000, ..options(directory.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    let other = volume.group(GroupId(8)).unwrap();
    // The writer stands still in this callback, and what it has taken counts until the round is over.
    let (release, released) = mpsc::channel::<()>();
    let (started, standing) = mpsc::channel();
    let first = other.try_append(
        vec![entry(0, vec![0; 20_000], None)],
        Box::new(move |result| {
            started.send(result).unwrap();
            released.recv().unwrap();
        }),
    );
    assert!(matches!(first.unwrap(), TryAppend::Queued), "one job is taken, however large");
    standing.recv().unwrap().unwrap();
    let (callback, appended) = done();
    let TryAppend::Full { entries, done } = group.try_append(vec![entry(0, "head", None)], callback).unwrap() else {
        panic!("a full queue takes no more");
    };
    assert!(group.last_entry().unwrap().is_none(), "what was not taken is not in the log");
    let (room_sender, room) = mpsc::channel();
    group.when_room(Box::new(move || room_sender.send(()).unwrap()));
    assert!(room.try_recv().is_err());
    release.send(()).unwrap();
    room.recv().unwrap();
    assert!(matches!(group.try_append(entries, done).unwrap(), TryAppend::Queued));
    appended.recv().unwrap().unwrap();
    assert_eq!(group.read(0, 9, usize::MAX).unwrap().len(), 1);
    // With room there is nothing to wait for, and a closed volume keeps nobody waiting.
    let (room_sender, room) = mpsc::channel();
    group.when_room(Box::new(move || room_sender.send(()).unwrap()));
    room.recv().unwrap();
    volume.close();
    let (callback, _) = common::done();
    assert_eq!(group.try_append(vec![entry(1, "x", None)], callback).err(), Some(StorageError::Closed));
}

#[test]
fn a_gap_in_the_log_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let group = volume.group(SHARD).unwrap();
    append(&group, vec![entry(0, "a", None), entry(1, "b", None)]);
    for bad in [vec![entry(3, "x", None)], vec![entry(1, "x", None)], vec![entry(2, "x", None), entry(4, "x", None)]] {
        let (done, _) = done();
        assert!(matches!(group.append(bad, done), Err(StorageError::Misuse(_))));
    }
    assert_eq!(group.last_entry().unwrap().unwrap().index, 1);
}

#[test]
fn groups_are_apart_and_a_dropped_one_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    for id in [GroupId(1), GroupId(2), GroupId::DIRECTORY] {
        let group = volume.group(id).unwrap();
        append(&group, vec![entry(0, id.0.to_string(), Some(vec![b'x'; 2000].into()))]);
        group.table().write([(b"k".to_vec(), Some(Bytes::from(id.0.to_string())))], Bytes::from("m")).unwrap();
    }
    let dropped = volume.group(GroupId(1)).unwrap();
    volume.drop_group(GroupId(1)).unwrap();
    assert_eq!(dropped.vote(), Err(StorageError::Dropped));
    assert_eq!(volume.groups().unwrap(), [GroupId(2), GroupId::DIRECTORY]);
    drop((dropped, volume));
    let volume = open(directory.path());
    let fresh = volume.group(GroupId(1)).unwrap();
    assert_eq!(fresh.last_entry().unwrap(), None);
    assert_eq!(fresh.applied().unwrap(), None);
    assert_eq!(fresh.table().scan().unwrap(), []);
    for id in [GroupId(2), GroupId::DIRECTORY] {
        let group = volume.group(id).unwrap();
        assert_eq!(group.read(0, 9, 9).unwrap()[0].head, id.0.to_string());
        assert_eq!(group.table().read(b"k").unwrap().unwrap(), id.0.to_string());
        assert_eq!(group.applied().unwrap().unwrap(), "m");
    }
}

#[test]
fn the_same_group_is_given_out_twice_and_a_closed_volume_refuses_writes() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let (one, two) = (volume.group(SHARD).unwrap(), volume.group(SHARD).unwrap());
    append(&one, vec![entry(0, "a", None)]);
    append(&two, vec![entry(1, "b", None)]);
    assert!(Volume::open(options(directory.path())).is_err(), "two may not share a volume");
    volume.close();
    let (done, _) = done();
    assert_eq!(one.append(vec![entry(2, "c", None)], done), Err(StorageError::Closed));
}

#[test]
fn entries_are_readable_while_they_wait_for_their_sync() {
    let directory = tempfile::tempdir().unwrap();
    // No tail beyond what it must have: entries leave memory as soon as they are synced, and no sooner.
    let volume = Volume::open(VolumeOptions { tail_bytes_per_group: 0, ..options(directory.path()) }).unwrap();
    let group = volume.group(SHARD).unwrap();
    let (sender, receiver) = mpsc::channel();
    for index in 0..500 {
        let sender = sender.clone();
        let one = entry(index, index.to_string(), Some(Bytes::from(vec![index as u8; 3000])));
        group.append(vec![one.clone()], Box::new(move |result| sender.send(result).unwrap())).unwrap();
        let from = index.saturating_sub(40);
        let read = group.read(from, index + 1, usize::MAX).unwrap();
        assert_eq!((read.len() as u64, read.last()), (index + 1 - from, Some(&one)));
    }
    (0..500).for_each(|_| receiver.recv().unwrap().unwrap());
}
