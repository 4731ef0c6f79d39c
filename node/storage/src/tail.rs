//! What is known of a group's log without reading the disk: its bounds, vote and purge mark, and its tail, the recent
//! entries. The tail always includes what is not yet synced: the disk may not have that yet.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message;

use crate::error::StorageError;
use crate::half::Half;
use crate::keys::{GroupId, META_PURGED, META_VOTE, log_key, meta_key, u32_at, u64_at};
use crate::log::LogEntry;
use crate::records::{decode, payload};
use crate::store::{Family, Store};
use crate::volume::Shared;

/// What an entry takes in memory beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 96;

impl LogEntry {
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.body.as_ref().map_or(0, Bytes::len) + ENTRY_OVERHEAD_BYTES
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PurgedRecord {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub marker: Bytes,
}

/// What is known of the log without reading the disk.
pub(crate) struct LogState {
    /// First and last index, `None` for an empty log.
    pub range: Option<(u64, u64)>,
    pub purged: Option<PurgedRecord>,
    pub vote: Option<Bytes>,
    /// Consecutive entries, the last of them the log's last.
    pub tail: VecDeque<LogEntry>,
    tail_bytes: usize,
    /// Entries up to here are durable and may leave the tail.
    pub synced: Option<u64>,
    /// Grows with each truncation, so that a sync of entries that were cut off is not taken for one of their successors.
    pub epoch: u64,
}

impl LogState {
    pub(crate) fn load(store: &Store, group: GroupId) -> Result<LogState, StorageError> {
        let purged_key = meta_key(META_PURGED, group);
        let purged = store.get(Family::Meta, &purged_key)?;
        let purged = purged.map(|value| decode(Family::Meta, &purged_key, &value)).transpose()?;
        let vote_key = meta_key(META_VOTE, group);
        let vote = match store.get(Family::Meta, &vote_key)? {
            Some(value) => Some(Bytes::copy_from_slice(payload(Family::Meta, &vote_key, &value)?)),
            None => None,
        };
        let range = bounds(store, group)?;
        let synced = range.map(|(_, last)| last);
        Ok(LogState { range, purged, vote, tail: VecDeque::new(), tail_bytes: 0, synced, epoch: 0 })
    }

    pub(crate) fn last(&self) -> Option<u64> {
        self.range.map(|(_, last)| last)
    }

    /// The greatest index that was ever appended or purged, as far as is known.
    pub(crate) fn greatest(&self) -> Option<u64> {
        self.last().max(self.purged.as_ref().map(|purged| purged.index))
    }

    /// The index that the next entry must have, `None` where any will do.
    pub(crate) fn next(&self) -> Option<u64> {
        match (self.range, &self.purged) {
            (Some((_, last)), _) => Some(last + 1),
            (None, Some(purged)) => Some(purged.index + 1),
            (None, None) => None,
        }
    }

    pub(crate) fn tail_first(&self) -> Option<u64> {
        self.tail.front().map(|entry| entry.index)
    }

    pub(crate) fn in_tail(&self, index: u64) -> Option<&LogEntry> {
        let at = index.checked_sub(self.tail_first()?)?;
        self.tail.get(usize::try_from(at).ok()?)
    }

    pub(crate) fn push(&mut self, entry: LogEntry, shared: &Shared) {
        let bytes = entry.bytes();
        self.tail_bytes += bytes;
        shared.tail_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.range = Some((self.range.map_or(entry.index, |(first, _)| first), entry.index));
        self.tail.push_back(entry);
    }

    fn forget(&mut self, entry: Option<LogEntry>, shared: &Shared) {
        let bytes = entry.map_or(0, |entry| entry.bytes());
        self.tail_bytes -= bytes;
        shared.tail_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Keeps the tail within its bounds; what is not synced stays.
    pub(crate) fn trim(&mut self, shared: &Shared) {
        while let Some(first) = self.tail_first()
            && self.synced.is_some_and(|synced| first <= synced)
            && (self.tail_bytes > shared.tail_bytes_per_group
                || shared.tail_bytes.load(Ordering::Relaxed) > shared.tail_bytes_max)
        {
            let entry = self.tail.pop_front();
            self.forget(entry, shared);
        }
    }

    pub(crate) fn truncate(&mut self, keep: Option<u64>, shared: &Shared) {
        while self.tail.back().is_some_and(|entry| keep.is_none_or(|keep| entry.index > keep)) {
            let entry = self.tail.pop_back();
            self.forget(entry, shared);
        }
        self.range = match (self.range, keep) {
            (Some((first, last)), Some(keep)) if keep >= first => Some((first, last.min(keep))),
            _ => None,
        };
        self.synced = self.synced.min(self.last());
        self.epoch += 1;
    }

    pub(crate) fn purge(&mut self, purged: PurgedRecord, shared: &Shared) {
        while self.tail_first().is_some_and(|first| first <= purged.index) {
            let entry = self.tail.pop_front();
            self.forget(entry, shared);
        }
        self.range = self
            .range
            .filter(|(_, last)| *last > purged.index)
            .map(|(first, last)| (first.max(purged.index + 1), last));
        self.purged = Some(purged);
    }

    pub(crate) fn clear(&mut self, shared: &Shared) {
        self.truncate(None, shared);
        (self.purged, self.vote) = (None, None);
    }
}

/// The first and last index on the disk. One half may tell the one, and the other half the other.
fn bounds(store: &Store, group: GroupId) -> Result<Option<(u64, u64)>, StorageError> {
    let end = |last: bool| {
        let half = store.reader();
        end_in(&half, group, last).or_else(|error| match store.elsewhere(&half, &error) {
            Some(other) => end_in(&other, group, last),
            None => Err(error),
        })
    };
    Ok(end(false)?.zip(end(true)?))
}

fn end_in(half: &Half, group: GroupId, last: bool) -> Result<Option<u64>, StorageError> {
    let mut iterator = half.iterator(None, Family::Log, log_key(group, u64::MAX))?;
    match last {
        false => iterator.seek(log_key(group, 0)),
        true => iterator.seek_to_last(),
    }
    iterator.status().map_err(|error| StorageError::read(|| format!("log/{}", group.0), &error))?;
    let key = iterator.key().filter(|key| u32_at(key, 0) == Some(group.0));
    Ok(key.and_then(|key| u64_at(key, 4)))
}

/// The greatest index that the log has had as far as the disk knows.
pub(crate) fn greatest_index(store: &Store, group: GroupId) -> Result<Option<u64>, StorageError> {
    Ok(LogState::load(store, group)?.greatest())
}
