//! A group's log for openraft, over [`storage::Group`], which knows entries as bytes alone.

use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::RaftLogReader;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use tokio::sync::oneshot;

use super::codec::{decode_log_id, decode_vote, encode_log_id, encode_vote, entry_from_disk, entry_id, entry_to_disk};
use super::{Entry, LogId, Types, Vote};

/// Bytes of entries read for one append call: a few milliseconds of a slow network, so that heartbeats pass between.
const REPLICATION_OCTETS_MAX: usize = 2 * 1024 * 1024;
/// Bytes read at a time where all of a range is asked for.
const READ_OCTETS: usize = 8 * 1024 * 1024;

#[derive(Clone)]
pub struct GroupLog {
    group: storage::Group,
}

impl GroupLog {
    pub fn new(group: storage::Group) -> GroupLog {
        GroupLog { group }
    }

    /// Reads `from..to`, up to `octets_max` but at least one entry, off the async threads when it may touch the disk.
    async fn read(&self, from: u64, to: u64, octets_max: usize) -> io::Result<Vec<Entry>> {
        let group = self.group.clone();
        let entries = blocking(move || group.read(from, to, octets_max)).await?;
        entries.into_iter().map(entry_from_disk).collect()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, storage::StorageError> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?.map_err(io::Error::other)
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + Send,
    {
        let mut from = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let mut all = Vec::new();
        while from < to {
            let mut some = self.read(from, to, READ_OCTETS).await?;
            let Some(last) = some.last() else { break };
            from = last.log_id.index + 1;
            all.append(&mut some);
        }
        Ok(all)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let vote = self.group.vote().map_err(io::Error::other)?;
        vote.map(|bytes| decode_vote(&bytes)).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, REPLICATION_OCTETS_MAX).await
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let purged = self.group.purged().map_err(io::Error::other)?;
        let purged: Option<LogId> = purged.map(|bytes| decode_log_id(&bytes)).transpose()?;
        let last = self.group.last_entry().map_err(io::Error::other)?;
        let last = last.map(|entry| entry_id(&entry)).transpose()?;
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        self.group.save_vote(encode_vote(vote), Box::new(move |result| drop(done.send(result))));
        saved.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<_> = entries.into_iter().map(entry_to_disk).collect();
        let done =
            move |result: Result<(), storage::StorageError>| callback.io_completed(result.map_err(io::Error::other));
        self.group.append(entries, Box::new(done)).map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let group = self.group.clone();
        let keep = last_log_id.map(|id| id.index);
        blocking(move || group.truncate_after(keep)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let group = self.group.clone();
        blocking(move || group.purge_to(log_id.index, encode_log_id(log_id))).await
    }
}
