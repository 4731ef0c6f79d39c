//! A group's log for openraft, over [`storage::Group`], which knows entries as bytes alone.

use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, RaftLogReader};
use storage::{Failpoint, TryAppend, reach};
use tokio::sync::{oneshot, watch};

use super::codec::{decode_log_id, decode_vote, encode_log_id, encode_vote, entry_from_disk, entry_id, entry_to_disk};
use super::{Damage, Entry, LogId, Recent, Types, Vote, membership_steps};

/// Bytes of entries read for one append call. No more than the largest entry has, so that a replica that is behind gains
/// something within a minute even over a link of 64 kbit/s.
const REPLICATION_OCTETS_MAX: usize = 512 * 1024;
/// Bytes read at a time where all of a range is asked for.
const READ_OCTETS: usize = 8 * 1024 * 1024;

/// How far this node's own log is synced; None: a write failed, and nothing more will be.
///
/// Invariant: nothing is applied before it is in this node's synced log. openraft applies what a majority has, which
/// may be ahead of the local disk, and applied state without its entry and body would survive a crash.
#[derive(Clone)]
pub struct Synced(watch::Sender<Option<u64>>);

impl Synced {
    pub async fn wait_for(&self, index: u64) -> io::Result<()> {
        let mut synced = self.0.subscribe();
        let reached = synced.wait_for(|synced| synced.is_none_or(|synced| synced >= index)).await;
        match reached.map_err(io::Error::other)?.is_some() {
            true => Ok(()),
            false => Err(io::Error::other("the log cannot be written")),
        }
    }
}

#[derive(Clone)]
pub struct GroupLog {
    group: storage::Group,
    synced: Synced,
    recent: Recent,
    damage: Damage,
}

impl GroupLog {
    /// Whatever the log holds when it is opened is on disk. Reads the disk.
    pub fn open(group: storage::Group, damage: Damage) -> io::Result<GroupLog> {
        let last = group.last_entry().map_err(|e| damage.note(e))?.map_or(0, |entry| entry.index);
        Ok(GroupLog { group, synced: Synced(watch::Sender::new(Some(last))), recent: Recent::behind(last), damage })
    }

    pub fn synced(&self) -> Synced {
        self.synced.clone()
    }

    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }

    /// Reads `from..to`, up to `octets_max` but at least one entry, off the async threads when it may touch the disk.
    async fn read(&self, from: u64, to: u64, octets_max: usize) -> io::Result<Vec<Entry>> {
        let group = self.group.clone();
        let entries = self.blocking(move || group.read(from, to, octets_max)).await?;
        let entries: io::Result<Vec<Entry>> = entries.into_iter().map(entry_from_disk).collect();
        entries.map_err(|e| self.damage.undecodable("log entry", e))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, storage::StorageError> + Send + 'static,
    ) -> io::Result<T> {
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?.map_err(|e| self.damage.note(e))
    }
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

    /// Kept in memory by the log.
    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let vote = self.group.vote().map_err(|e| self.damage.note(e))?;
        vote.map(|bytes| decode_vote(&bytes)).transpose().map_err(|e| self.damage.undecodable("vote", e))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, REPLICATION_OCTETS_MAX).await
    }
}

/// Which step of a move is done once an entry is in the log.
fn step(entry: &Entry) -> Option<Failpoint> {
    match &entry.payload {
        EntryPayload::Membership(membership) => Some(membership_steps(membership).0),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let group = self.group.clone();
        let (purged, last) = self.blocking(move || Ok((group.purged()?, group.last_entry()?))).await?;
        let undecodable = |e: io::Error| self.damage.undecodable("log bounds", e);
        let purged: Option<LogId> = purged.map(|bytes| decode_log_id(&bytes)).transpose().map_err(undecodable)?;
        let last = last.map(|entry| entry_id(&entry)).transpose().map_err(undecodable)?;
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        let (group, vote) = (self.group.clone(), encode_vote(vote));
        // It may have to wait for room in the volume's queue. Votes are rare enough for a thread of their own.
        tokio::task::spawn_blocking(move || group.save_vote(vote, Box::new(move |result| drop(done.send(result)))));
        saved.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Without another thread where the volume's queue has room; while it has none, this waits and no thread does.
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut steps = Vec::new();
        let noted = entries.into_iter().inspect(|entry| steps.extend(step(entry)));
        let mut entries: Vec<_> = noted.map(entry_to_disk).collect();
        let last = entries.last().map(|entry| entry.index);
        let octets = |entry: &storage::LogEntry| entry.head.len() + entry.body.as_ref().map_or(0, Bytes::len);
        self.recent.append(entries.iter().map(|entry| (entry.index, octets(entry))));
        let synced = self.synced.clone();
        let done = move |result: Result<(), storage::StorageError>| {
            synced.0.send_modify(|synced| match &result {
                Ok(()) => *synced = synced.map(|synced| last.map_or(synced, |last| synced.max(last))),
                Err(_) => *synced = None,
            });
            callback.io_completed(result.map_err(io::Error::other));
        };
        let mut done: storage::Done = Box::new(done);
        loop {
            match self.group.try_append(entries, done).map_err(io::Error::other)? {
                TryAppend::Queued => break,
                TryAppend::Full { entries: back, done: with } => (entries, done) = (back, with),
                TryAppend::Busy { entries, done } => {
                    let group = self.group.clone();
                    self.blocking(move || group.append(entries, done)).await?;
                    break;
                }
            }
            let (notify, room) = oneshot::channel();
            self.group.when_room(Box::new(move || {
                let _ = notify.send(());
            }));
            // Dropped or called: either way it is worth another try.
            drop(room.await);
        }
        steps.into_iter().for_each(|step| reach(step, self.group.id()));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let group = self.group.clone();
        let keep = last_log_id.map(|id| id.index);
        // Ordered behind the appends: their callbacks have run when it returns.
        self.blocking(move || group.truncate_after(keep)).await?;
        self.synced.0.send_modify(|synced| *synced = synced.map(|synced| synced.min(keep.unwrap_or(0))));
        self.recent.truncate_after(keep);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let group = self.group.clone();
        self.blocking(move || group.purge_to(log_id.index, encode_log_id(log_id))).await
    }
}
