//! The one door to RocksDB: reads, and every write of the crate.
//!
//! Each write, of the log, the state, a purge or an install, goes through [`Store::write`] as one WriteBatch, to the
//! one database or to both halves of a mirror. Reads come from one half, and from the other where that one fails.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use rocksdb::{Snapshot, WriteBatch};

use crate::error::StorageError;
use crate::half::Half;
use crate::keys::printable;
use crate::mirror::Mirror;
use crate::pace::RoundTimes;
use crate::piecemeal::keys_between;
use crate::reader::{Reader, Reading};
use crate::reading::Iter;
use crate::scrub::behind_damage;
use crate::under_way::UnderWay;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Family {
    Log,
    Blob,
    State,
    Meta,
}

impl Family {
    pub(crate) const EVERY: [Family; 4] = [Family::Log, Family::Blob, Family::State, Family::Meta];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Log => "log",
            Family::Blob => "blob",
            Family::State => "state",
            Family::Meta => "meta",
        }
    }
}

#[derive(Debug)]
pub(crate) enum Change {
    Put {
        family: Family,
        key: Vec<u8>,
        value: Bytes,
    },
    Delete {
        family: Family,
        key: Vec<u8>,
    },
    /// `to` is not included.
    DeleteRange {
        family: Family,
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

/// Changes that happen together, in order.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    list: Vec<Change>,
    bytes: usize,
}

impl Changes {
    pub(crate) fn put(&mut self, family: Family, key: Vec<u8>, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += key.len() + value.len() + 16;
        self.list.push(Change::Put { family, key, value });
    }

    pub(crate) fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.bytes += key.len() + 16;
        self.list.push(Change::Delete { family, key });
    }

    pub(crate) fn delete_range(&mut self, family: Family, (from, to): (Vec<u8>, Vec<u8>)) {
        if from < to {
            self.bytes += from.len() + to.len() + 16;
            self.list.push(Change::DeleteRange { family, from, to });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// About what the changes take in memory and in the write-ahead log.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn append(&mut self, mut other: Changes) {
        self.bytes += other.bytes;
        self.list.append(&mut other.list);
    }
}

pub(crate) struct Store {
    pub(crate) reader: Reader,
    pub(crate) mirror: Option<Mirror>,
    failed: OnceLock<String>,
    /// Of a volume of one database: shared by writes until it is known whether they have failed.
    writing: RwLock<()>,
    written_batches: AtomicU64,
    written_bytes: AtomicU64,
    pub(crate) under_way: UnderWay,
    pub(crate) round_times: Arc<RoundTimes>,
}

impl Store {
    /// A volume of one database, or of the halves of a mirror; reads come from the first.
    pub(crate) fn new(first: Arc<Half>, mirror: Option<Mirror>) -> Store {
        let reader = Reader::new(first);
        mirror.iter().flat_map(Mirror::halves).for_each(|half| reader.keep(&half));
        Store {
            reader,
            mirror,
            failed: OnceLock::new(),
            writing: RwLock::new(()),
            written_batches: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            under_way: UnderWay::default(),
            round_times: Arc::default(),
        }
    }

    /// Where to read from. Whoever needs one state of things over several reads stays with one of these.
    pub(crate) fn reader(&self) -> Reading {
        self.reader.now()
    }

    /// Reads come from this half from now on. It must hold whatever a write has returned for.
    pub(crate) fn read_from(&self, half: Arc<Half>) {
        self.reader.move_to(half);
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.get_in(&self.reader(), None, family, key)
    }

    /// Reads from a half, and from the other one, as it is now, where that half cannot be read. It is not dropped before it is
    /// known that the other one can.
    pub(crate) fn get_in(
        &self,
        half: &Half,
        snapshot: Option<&Snapshot<'_>>,
        family: Family,
        key: &[u8],
    ) -> Result<Option<Bytes>, StorageError> {
        let error = match half.get(snapshot, family, key) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(other) = self.other_than(half, &error) else {
            self.unread(half, &error)?;
            return Err(error);
        };
        match other.get(None, family, key) {
            Ok(value) => {
                // An error is kept, and answered to whoever writes.
                let _ = self.unread(half, &error);
                Ok(value)
            }
            Err(second) => {
                self.both_unread([(half, &error), (&other, &second)]);
                Err(error)
            }
        }
    }

    /// The other half's copy of a record whose content is wrong here, if it is right there.
    pub(crate) fn second_opinion(
        &self,
        family: Family,
        key: &[u8],
        right: impl Fn(&Bytes) -> bool,
    ) -> Result<Option<Bytes>, StorageError> {
        let Some(mirror) = &self.mirror else { return Ok(None) };
        let reader = self.reader();
        let Some(other) = mirror.halves().into_iter().find(|half| !Arc::ptr_eq(half, &reader)) else { return Ok(None) };
        let found = other.get(None, family, key)?.filter(right);
        if found.is_some() {
            self.elsewhere(&reader, &StorageError::corrupt(printable(family, key), "wrong length or checksum"));
        }
        Ok(found)
    }

    /// Visits every key and value from `from` up to, not including, `to`, until the visitor answers false.
    pub(crate) fn scan(
        &self,
        family: Family,
        range: (Vec<u8>, Vec<u8>),
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        self.scan_in(&self.reader(), None, family, range, visit)
    }

    /// Goes on in the other half, as it is now, where one cannot be read, and back again; where no walk can go on, record by
    /// record.
    pub(crate) fn scan_in(
        &self,
        half: &Half,
        snapshot: Option<&Snapshot<'_>>,
        family: Family,
        (mut from, to): (Vec<u8>, Vec<u8>),
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut walked = Walked::default();
        let mut other: Option<Arc<Half>> = None;
        // What one half was left for: the next one cannot go on either, if nothing is visited in between.
        let mut stuck: Option<StorageError> = None;
        loop {
            let current = other.as_deref().unwrap_or(half);
            let snapshot = if other.is_some() { None } else { snapshot };
            let before = walked.items;
            let iterator = current.iterator(snapshot, family, to.clone());
            let error = match iterator.and_then(|iterator| walk(iterator, family, &from, &mut walked, &mut visit)) {
                Ok(None) => return Ok(()),
                Ok(Some(error)) => error,
                Err(error) if walked.refused => return Err(error),
                Err(error) => error,
            };
            if walked.items > before {
                (stuck, from) = (None, walked.after());
            }
            let next = self.elsewhere(current, &error);
            match (stuck.take(), next) {
                (None, Some(next)) => {
                    stuck = Some(error);
                    other = if std::ptr::eq(&raw const *next, &raw const *half) { None } else { Some(next) };
                }
                // Neither can be read on from here, or there is but one.
                (first, _) => {
                    let (range, error) = ((&from[..], &to[..]), first.unwrap_or(error));
                    match self.one_by_one(half, snapshot, family, range, error, &mut visit)? {
                        Some(behind) => (from, other) = (behind, None),
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    /// Visits what no walk comes to, record by record. Answers where a walk can go on; `None` where there is no more.
    fn one_by_one(
        &self,
        half: &Half,
        snapshot: Option<&Snapshot<'_>>,
        family: Family,
        (from, to): (&[u8], &[u8]),
        error: StorageError,
        visit: &mut impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<Option<Vec<u8>>, StorageError> {
        if !error.is_unread() {
            return Err(error);
        }
        let halves = self.mirror.as_ref().map(Mirror::halves).unwrap_or_default();
        let others = halves.iter().map(|other| &**other).filter(|other| !std::ptr::eq(*other, half));
        let mut again: Option<Vec<u8>> = None;
        for one in std::iter::once(half).chain(others) {
            let own = behind_damage(one, &one.db.snapshot(), family, (from, to))?;
            again = match (again, own) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        let keys = keys_between(family, from, again.as_deref().unwrap_or(to));
        let (Some(keys), false) = (keys, again.as_deref().is_some_and(|again| again <= from)) else {
            return Err(error);
        };
        for key in keys {
            // What was met first tells the place.
            let value = self.get_in(half, snapshot, family, &key).map_err(|_| error.clone())?;
            if let Some(value) = value
                && !visit(&key, &value)?
            {
                return Ok(None);
            }
        }
        Ok(again)
    }

    /// As [`Store::scan_in`], in this half alone.
    pub(crate) fn scan_exact(
        &self,
        half: &Half,
        snapshot: Option<&Snapshot<'_>>,
        family: Family,
        (from, to): (Vec<u8>, Vec<u8>),
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let iterator = half.iterator(snapshot, family, to)?;
        let Some(error) = walk(iterator, family, &from, &mut Walked::default(), visit)? else { return Ok(()) };
        self.elsewhere(half, &error);
        Err(error)
    }

    pub(crate) fn batch(&self, changes: &[&Changes]) -> Result<WriteBatch, StorageError> {
        let bytes: usize = changes.iter().map(|one| one.bytes).sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 64);
        // Of whichever half: their column families have the same numbers.
        let half = self.reader();
        let families = [
            half.family(Family::Log)?,
            half.family(Family::Blob)?,
            half.family(Family::State)?,
            half.family(Family::Meta)?,
        ];
        let [log, blob, state, meta] = &families;
        let handle = |family: Family| match family {
            Family::Log => log,
            Family::Blob => blob,
            Family::State => state,
            Family::Meta => meta,
        };
        for change in changes.iter().flat_map(|one| &one.list) {
            match change {
                Change::Put { family, key, value } => batch.put_cf(handle(*family), key, value),
                Change::Delete { family, key } => batch.delete_cf(handle(*family), key),
                Change::DeleteRange { family, from, to } => batch.delete_range_cf(handle(*family), from, to),
            }
        }
        Ok(batch)
    }

    /// Writes changes to the write-ahead log and the memtables, without a sync: they survive this process, and a
    /// power cut only if a later [`Store::sync`] came before it. What survives is always a prefix of the writes.
    pub(crate) fn write_changes(&self, changes: &Changes) -> Result<(), StorageError> {
        self.write(self.batch(&[changes])?)
    }

    /// The only place that writes to the database. An error fails the volume for good.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        self.check()?;
        let _awaited = self.under_way.begin();
        self.written_batches.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(batch.size_in_bytes() as u64, Ordering::Relaxed);
        match &self.mirror {
            None => {
                let _writing = self.writing.read();
                self.reader().write(batch).map_err(|error| self.fail(error.to_string()))
            }
            Some(mirror) => self.write_both(mirror, batch),
        }
    }

    /// Makes every earlier write durable. Writes may go on meanwhile. An error fails the volume for good: after a
    /// failed fsync the kernel may have dropped the pages, so a second fsync that succeeds proves nothing.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.check()?;
        let _awaited = self.under_way.begin();
        match &self.mirror {
            None => {
                self.reader().sync().map_err(|error| self.fail(error.to_string()))?;
                // Another write may have failed meanwhile, and RocksDB go on behind it: what came behind it in the log is
                // not acknowledged.
                drop(self.writing.write());
                self.check()
            }
            Some(mirror) => self.sync_both(mirror),
        }
    }

    /// How long a disk has owed an answer that does not come from another one either: to a write or sync, to a read where
    /// there is no other half, and to a read that a half was dropped for, and whoever waits for it waits on. Never waits.
    pub(crate) fn unanswered_for(&self) -> Duration {
        let is_alone = match &self.mirror {
            None => true,
            Some(mirror) => mirror.order.try_lock().is_some_and(|order| order.halves.len() < 2),
        };
        self.under_way.oldest().max(self.reader.unanswered_for(is_alone))
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.failed.get() {
            Some(reason) => Err(StorageError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn fail(&self, reason: String) -> StorageError {
        let reason = self.failed.get_or_init(|| reason);
        StorageError::Failed(reason.clone())
    }

    pub(crate) fn written(&self) -> (u64, u64) {
        (self.written_batches.load(Ordering::Relaxed), self.written_bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(mirror) = &self.mirror {
            mirror.stop();
        }
    }
}

#[derive(Default)]
pub(crate) struct Walked {
    pub items: u64,
    last: Vec<u8>,
    /// The visitor gave an error: not the disk.
    refused: bool,
}

impl Walked {
    /// The first key behind the last one that was visited.
    pub(crate) fn after(&self) -> Vec<u8> {
        let mut key = self.last.clone();
        key.push(0);
        key
    }
}

/// Runs an iterator, whose upper bound is set, from a key on. Answers the error that broke it off.
pub(crate) fn walk(
    mut iterator: Iter<'_>,
    family: Family,
    from: &[u8],
    walked: &mut Walked,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
) -> Result<Option<StorageError>, StorageError> {
    iterator.seek(from);
    if walked.items == 0 {
        walked.last = from.to_vec();
    }
    while let Some((key, value)) = iterator.item() {
        match visit(key, value) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                walked.refused = true;
                return Err(error);
            }
        }
        walked.items += 1;
        walked.last.clear();
        walked.last.extend_from_slice(key);
        iterator.next();
    }
    let broken = iterator.status().err();
    Ok(broken.map(|error| StorageError::read(|| format!("{} and after", printable(family, &walked.last)), &error)))
}
