//! A group's Raft log: entries, vote and purge mark. Entries are opaque bytes; a body lies in the blob column family
//! under the entry's index, written with it in one batch, and the entry records its length and checksum.
//!
//! Recent entries are in memory too: what is appended can be read at once, and replication and apply of fresh entries
//! read no disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use prost::Message;

use crate::error::StorageError;
use crate::group::{Group, Inner};
use crate::keys::{GroupId, META_BEGUN, META_PURGED, META_VOTE, log_key, meta_key, printable, u64_at};
use crate::records::{decode, encode, encode_bytes, payload};
use crate::store::{Changes, Family, Store};
use crate::tail::PurgedRecord;
use crate::writer::{Done, Job, Notify, Place};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    pub index: u64,
    pub head: Bytes,
    pub body: Option<Bytes>,
}

/// What became of an append that must not wait.
pub enum TryAppend {
    Queued,
    /// The volume's queue is full: [`Group::when_room`] tells when to try again.
    Full {
        entries: Vec<LogEntry>,
        done: Done,
    },
    /// A snapshot is becoming the group's state at this moment: only [`Group::append`], which waits, can go on.
    Busy {
        entries: Vec<LogEntry>,
        done: Done,
    },
}

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(bytes = "bytes", tag = "1")]
    head: Bytes,
    #[prost(message, optional, tag = "2")]
    body: Option<BodyCheck>,
}

/// By which a body is known again.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct BodyCheck {
    #[prost(uint64, tag = "1")]
    pub len: u64,
    #[prost(fixed32, tag = "2")]
    pub crc: u32,
}

impl BodyCheck {
    pub(crate) fn of(body: &[u8]) -> BodyCheck {
        BodyCheck { len: body.len() as u64, crc: crc32c::crc32c(body) }
    }
}

impl Group {
    /// Appends entries that follow the last one without a gap. They can be read when this returns; `done` is called
    /// from the writer's thread when they are durable. Blocks while the volume's queue is full. If this errs, `done`
    /// is not called.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), StorageError> {
        self.inner.check_write()?;
        let _order = self.inner.order.lock();
        self.append_ordered(entries, done, None)
    }

    /// As [`Group::append`], but never waits: neither for room in the queue nor for a lock that is held over a write
    /// to the disk. What it does itself is memory only: the entries' records and their checksums.
    pub fn try_append(&self, entries: Vec<LogEntry>, done: Done) -> Result<TryAppend, StorageError> {
        let inner = &self.inner;
        inner.check_write()?;
        // `space` and `log` are never held over a write without `order`.
        let Some(_order) = inner.order.try_lock() else { return Ok(TryAppend::Busy { entries, done }) };
        let bytes = entries.iter().map(LogEntry::bytes).sum();
        let Some(place) = inner.shared.writer.try_reserve(bytes)? else {
            return Ok(TryAppend::Full { entries, done });
        };
        self.append_ordered(entries, done, Some(place)).map(|()| TryAppend::Queued)
    }

    /// Calls back, from the writer's thread or at once, when the volume's queue has room or will never have any again.
    pub fn when_room(&self, notify: Notify) {
        self.inner.shared.writer.when_room(notify);
    }

    /// With `order` held. Waits for room in the queue unless a place is given.
    fn append_ordered(&self, entries: Vec<LogEntry>, done: Done, place: Option<Place<'_>>) -> Result<(), StorageError> {
        let inner = &self.inner;
        inner.check()?;
        let mut changes = Changes::default();
        for entry in &entries {
            put_entry(&mut changes, inner.id, entry);
        }
        let count = entries.len() as u64;
        let (epoch, last) = {
            let installed = inner.space.read().installed;
            let mut log = inner.log.lock();
            let mut next = log.next();
            for entry in &entries {
                // After an install the log goes on behind the snapshot, be the older entries purged yet or not.
                let after_install = installed.is_some_and(|index| {
                    entry.index == index.saturating_add(1) && next.is_none_or(|next| next <= index)
                });
                if entry.index == u64::MAX || !(after_install || next.is_none_or(|next| next == entry.index)) {
                    let reason = format!("append of {} to group {}, expected {next:?}", entry.index, inner.id.0);
                    return Err(StorageError::Misuse(reason));
                }
                next = Some(entry.index + 1);
            }
            for entry in entries {
                if log.last().is_some_and(|last| last + 1 != entry.index) {
                    log.truncate(None, &inner.shared); // older than the snapshot
                }
                log.push(entry, &inner.shared);
            }
            (log.epoch, log.last())
        };
        let group = Arc::clone(inner);
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                let mut log = group.log.lock();
                if log.epoch == epoch {
                    log.synced = log.synced.max(last);
                }
                log.trim(&group.shared);
            }
            done(result);
        });
        let job = Job { changes, entries: count, done };
        let pushed = match place {
            Some(place) => place.push(job),
            None => inner.shared.writer.push(job),
        };
        pushed.map_err(|(error, _)| error)
    }

    /// Entries from `from` up to, not including, `to`, with their bodies: at least one if there is one, no more when
    /// `bytes_max` is reached, none behind the end of the log. Below the purge mark it is `Purged`; a hole or a body
    /// that does not fit its checksum is `Corrupt`.
    pub fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<LogEntry>, StorageError> {
        let inner = &self.inner;
        inner.check()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut next = from;
        let (disk_to, recent) = {
            let log = inner.log.lock();
            if let Some(purged) = log.purged.as_ref().filter(|purged| from <= purged.index) {
                return Err(StorageError::Purged { index: purged.index });
            }
            let Some((first, last)) = log.range else { return Ok(entries) };
            let to = to.min(last + 1);
            if from >= to {
                return Ok(entries);
            }
            if from < first {
                return Err(StorageError::corrupt(printable(Family::Log, &log_key(inner.id, from)), "missing"));
            }
            let disk_to = to.min(log.tail_first().unwrap_or(u64::MAX));
            let (mut recent, mut recent_bytes) = (Vec::new(), 0);
            let mut index = from.max(disk_to);
            while index < to
                && (recent.is_empty() || recent_bytes < bytes_max)
                && let Some(entry) = log.in_tail(index)
            {
                recent_bytes += entry.bytes();
                recent.push(entry.clone());
                index += 1;
            }
            (disk_to, recent)
        };
        let store = &inner.shared.store;
        if from < disk_to {
            let range = (log_key(inner.id, from), log_key(inner.id, disk_to));
            let mut hole = false;
            store.scan(Family::Log, range, |key, value| {
                let index = u64_at(key, 4).ok_or_else(|| StorageError::corrupt(printable(Family::Log, key), "key"))?;
                if index != next {
                    hole = true;
                    return Ok(false);
                }
                let Some(entry) = read_entry(store, inner.id, index, key, value)? else {
                    hole = true;
                    return Ok(false);
                };
                bytes += entry.bytes();
                entries.push(entry);
                next += 1;
                Ok(bytes < bytes_max)
            })?;
            if hole || (next < disk_to && bytes < bytes_max) {
                return self.explain_hole(next, entries);
            }
        }
        if next == disk_to.max(from) {
            for entry in recent {
                if !entries.is_empty() && bytes >= bytes_max {
                    break;
                }
                bytes += entry.bytes();
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The log may have been cut or purged while it was read; else something is lost.
    fn explain_hole(&self, missing: u64, found: Vec<LogEntry>) -> Result<Vec<LogEntry>, StorageError> {
        let log = self.inner.log.lock();
        if let Some(purged) = log.purged.as_ref().filter(|purged| missing <= purged.index) {
            return Err(StorageError::Purged { index: purged.index });
        }
        // Once truncated, the place may have been filled anew: then the tail has it.
        if log.last().is_none_or(|last| last < missing) || log.in_tail(missing).is_some() {
            return Ok(found);
        }
        let key = printable(Family::Log, &log_key(self.inner.id, missing));
        Err(StorageError::corrupt(key, "entry or body is missing"))
    }

    /// The last entry, without its body. `None` when the log is empty, purged or not.
    pub fn last_entry(&self) -> Result<Option<LogEntry>, StorageError> {
        let inner = &self.inner;
        inner.check()?;
        let last = {
            let log = inner.log.lock();
            if let Some(entry) = log.tail.back() {
                return Ok(Some(LogEntry { body: None, ..entry.clone() }));
            }
            log.last()
        };
        let Some(index) = last else { return Ok(None) };
        let key = log_key(inner.id, index);
        match inner.shared.store.get(Family::Log, &key)? {
            Some(value) => {
                let record: EntryRecord = decode(Family::Log, &key, &value)?;
                Ok(Some(LogEntry { index, head: record.head, body: None }))
            }
            None => self.explain_hole(index, Vec::new()).map(|_| None),
        }
    }

    /// Removes the entries after `keep`, all of them for `None`. Ordered with appends; durable on return.
    pub fn truncate_after(&self, keep: Option<u64>) -> Result<(), StorageError> {
        let inner = &self.inner;
        let order = inner.order.lock();
        inner.check_write()?;
        let from = keep.map_or(0, |keep| keep.saturating_add(1));
        let mut changes = Changes::default();
        let floor = inner.body_floor();
        self.spare_bodies(from)?;
        changes.delete_range(Family::Log, (log_key(inner.id, from), log_key(inner.id, u64::MAX)));
        let bodies_from = from.max(floor.map_or(0, |floor| floor.saturating_add(1)));
        changes.delete_range(Family::Blob, (log_key(inner.id, bodies_from), log_key(inner.id, u64::MAX)));
        inner.log.lock().truncate(keep, &inner.shared);
        let durable = inner.queue(changes)?;
        // Queued under the lock, waited for without it.
        drop(order);
        durable.recv().unwrap_or(Err(StorageError::Closed))
    }

    /// Tells an install under way which bodies a truncation leaves to it.
    fn spare_bodies(&self, from: u64) -> Result<(), StorageError> {
        let inner = &self.inner;
        let Some(last_index) = inner.installing.lock().as_ref().map(|install| install.last_index) else {
            return Ok(());
        };
        let Some(last) = inner.log.lock().last() else { return Ok(()) };
        let spared = inner.bodies_in(from, last.min(last_index))?;
        if let Some(install) = inner.installing.lock().as_mut() {
            install.spared.extend(spared);
        }
        Ok(())
    }

    /// Removes the entries up to and including `index`, and bodies that nothing refers to. `marker` is kept as
    /// [`Group::purged`]. Ordered with appends; durable on return. Only what is applied may be purged.
    pub fn purge_to(&self, index: u64, marker: Bytes) -> Result<(), StorageError> {
        let inner = &self.inner;
        let order = inner.order.lock();
        inner.check_write()?;
        let already = inner.log.lock().purged.as_ref().map(|purged| purged.index);
        if already.is_some_and(|already| already > index) {
            return Ok(());
        }
        let removed = index.saturating_sub(already.unwrap_or(0));
        let record = PurgedRecord { index, marker };
        let mut changes = Changes::default();
        let from = already.unwrap_or(0);
        changes.delete_range(Family::Log, (log_key(inner.id, from), log_key(inner.id, index.saturating_add(1))));
        let bodies = inner.collect_garbage(index, &mut changes)?;
        changes.put(Family::Meta, meta_key(META_PURGED, inner.id), encode(&record));
        inner.log.lock().purge(record, &inner.shared);
        let durable = inner.queue(changes)?;
        drop(order);
        durable.recv().unwrap_or(Err(StorageError::Closed))?;
        inner.shared.removed.fetch_add(removed.saturating_add(bodies as u64), Ordering::Relaxed);
        Ok(())
    }

    /// Removes some of the bodies that nothing refers to and whose entries are purged, as a purge does. Durable on return;
    /// answers how many went.
    pub(crate) fn collect(&self) -> Result<usize, StorageError> {
        let inner = &self.inner;
        let order = inner.order.lock();
        inner.check_write()?;
        let Some(purged) = inner.log.lock().purged.as_ref().map(|purged| purged.index) else { return Ok(0) };
        let mut changes = Changes::default();
        let bodies = inner.collect_garbage(purged, &mut changes)?;
        if bodies == 0 {
            return Ok(0);
        }
        let durable = inner.queue(changes)?;
        drop(order);
        durable.recv().unwrap_or(Err(StorageError::Closed))?;
        inner.shared.removed.fetch_add(bodies as u64, Ordering::Relaxed);
        Ok(bodies)
    }

    /// The marker of the last purge.
    pub fn purged(&self) -> Result<Option<Bytes>, StorageError> {
        self.inner.check()?;
        Ok(self.inner.log.lock().purged.as_ref().map(|purged| purged.marker.clone()))
    }

    /// Saves the vote; `done` is called when it is durable, or at once if it is refused. Ordered with appends.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        let inner = &self.inner;
        let order = inner.order.lock();
        if let Err(error) = inner.check_write() {
            drop(order);
            return done(Err(error));
        }
        let mut changes = Changes::default();
        changes.put(Family::Meta, meta_key(META_VOTE, inner.id), encode_bytes(&vote));
        inner.log.lock().vote = Some(vote);
        let pushed = inner.shared.writer.push(Job { changes, entries: 0, done });
        drop(order);
        if let Err((error, done)) = pushed {
            done(Err(error));
        }
    }

    /// Begins an empty group: with the vote of the leader that has it begun, and the entry without which it takes part
    /// in no election. Both together, durable on return.
    pub fn begin(&self, vote: Bytes, votes_from: u64) -> Result<(), StorageError> {
        let inner = &self.inner;
        let _order = inner.order.lock();
        inner.check_write()?;
        if inner.log.lock().greatest().is_some() {
            return Err(StorageError::Misuse(format!("group {} is not empty", inner.id.0)));
        }
        let mut changes = Changes::default();
        changes.put(Family::Meta, meta_key(META_VOTE, inner.id), encode_bytes(&vote));
        changes.put(Family::Meta, meta_key(META_BEGUN, inner.id), encode_bytes(&votes_from.to_be_bytes()));
        inner.log.lock().vote = Some(vote);
        inner.shared.writer.write_and_wait(changes)
    }

    /// What [`Group::begin`] was given; `None` for a group that took part from its start. Reads the disk.
    pub fn votes_from(&self) -> Result<Option<u64>, StorageError> {
        self.inner.check()?;
        let key = meta_key(META_BEGUN, self.inner.id);
        let Some(value) = self.inner.shared.store.get(Family::Meta, &key)? else { return Ok(None) };
        let index = u64_at(payload(Family::Meta, &key, &value)?, 0);
        index.map(Some).ok_or_else(|| StorageError::corrupt(printable(Family::Meta, &key), "short record"))
    }

    /// The vote that was saved last, synced or not.
    pub fn vote(&self) -> Result<Option<Bytes>, StorageError> {
        self.inner.check()?;
        Ok(self.inner.log.lock().vote.clone())
    }
}

impl Inner {
    /// Queues changes that hold no entries; the receiver tells when they are durable.
    fn queue(&self, changes: Changes) -> Result<mpsc::Receiver<Result<(), StorageError>>, StorageError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let done: Done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.shared.writer.push(Job { changes, entries: 0, done }).map_err(|(error, _)| error)?;
        Ok(receiver)
    }

    /// The indices from `from` to `to`, both included, whose entries have bodies.
    pub(crate) fn bodies_in(&self, from: u64, to: u64) -> Result<Vec<u64>, StorageError> {
        let mut found = Vec::new();
        let tail_first = {
            let log = self.log.lock();
            found.extend(
                log.tail
                    .iter()
                    .filter(|entry| (from..=to).contains(&entry.index) && entry.body.is_some())
                    .map(|entry| entry.index),
            );
            log.tail_first().unwrap_or(u64::MAX)
        };
        let range = (log_key(self.id, from), log_key(self.id, to.saturating_add(1).min(tail_first)));
        if range.0 < range.1 {
            self.shared.store.scan(Family::Log, range, |key, value| {
                let record: EntryRecord = decode(Family::Log, key, value)?;
                if record.body.is_some() {
                    found.extend(u64_at(key, 4));
                }
                Ok(true)
            })?;
        }
        Ok(found)
    }

    /// What the log says of the body at an index: `None` where there is no entry.
    pub(crate) fn body_check(&self, index: u64) -> Result<Option<Option<BodyCheck>>, StorageError> {
        {
            let log = self.log.lock();
            if !log.range.is_some_and(|(first, last)| (first..=last).contains(&index)) {
                return Ok(None);
            }
            if let Some(entry) = log.in_tail(index) {
                return Ok(Some(entry.body.as_deref().map(BodyCheck::of)));
            }
        }
        let key = log_key(self.id, index);
        let Some(value) = self.shared.store.get(Family::Log, &key)? else { return Ok(None) };
        Ok(Some(decode::<EntryRecord>(Family::Log, &key, &value)?.body))
    }

    /// Cuts the log off in memory, where an install has found it to contradict the snapshot.
    pub(crate) fn truncated(&self, keep: Option<u64>) {
        self.log.lock().truncate(keep, &self.shared);
    }
}

/// That an entry's record can be read; what it says of its body.
pub(crate) fn check_entry(key: &[u8], value: &[u8]) -> Result<Option<BodyCheck>, StorageError> {
    Ok(decode::<EntryRecord>(Family::Log, key, value)?.body)
}

fn put_entry(changes: &mut Changes, group: GroupId, entry: &LogEntry) {
    let key = log_key(group, entry.index);
    let body = entry.body.as_deref().map(BodyCheck::of);
    if let Some(bytes) = &entry.body {
        changes.put(Family::Blob, key.clone(), bytes.clone());
    }
    changes.put(Family::Log, key, encode(&EntryRecord { head: entry.head.clone(), body }));
}

/// `None` if the body is not there.
fn read_entry(
    store: &Store,
    group: GroupId,
    index: u64,
    key: &[u8],
    value: &[u8],
) -> Result<Option<LogEntry>, StorageError> {
    let record: EntryRecord = decode(Family::Log, key, value)?;
    let Some(check) = record.body else { return Ok(Some(LogEntry { index, head: record.head, body: None })) };
    let blob_key = log_key(group, index);
    let Some(body) = store.get(Family::Blob, &blob_key)? else { return Ok(None) };
    let fits = |body: &Bytes| BodyCheck::of(body) == check;
    let body = if fits(&body) { Some(body) } else { store.second_opinion(Family::Blob, &blob_key, fits)? };
    let Some(body) = body else {
        return Err(StorageError::corrupt(printable(Family::Blob, &blob_key), "wrong length or checksum"));
    };
    Ok(Some(LogEntry { index, head: record.head, body: Some(body) }))
}
