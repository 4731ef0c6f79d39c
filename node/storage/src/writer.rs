//! One thread per volume that turns waiting log writes into one batch and one sync.
//!
//! ```text
//! push ──► queue (bounded in bytes) ──► round: one WriteBatch, write, sync, mark ──► done callbacks
//! ```
//!
//! The queue takes a job while it is not full, however large the job: so no job waits for ever behind smaller ones,
//! and the bound is exceeded by one job at most.
//!
//! Jobs are written in the order in which they came, and their callbacks run in that order on the writer's thread.
//! A callback must not block, nor write to the volume: a full queue would wait for itself.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tracing::error;

use crate::error::StorageError;
use crate::planted::{Bug, planted};
use crate::store::{Changes, Store};

/// Called once, from the writer's thread, when a write is durable or has failed. Must not block.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

pub(crate) struct Job {
    pub changes: Changes,
    /// Log entries among the changes, for the statistics.
    pub entries: u64,
    pub done: Done,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Of the waiting jobs and of those in the round under way.
    bytes: usize,
    closing: bool,
    /// Called, and forgotten, when a round has made room.
    room: Vec<Notify>,
}

/// Tells somebody who must not block that the queue has room again. Must not block either.
pub type Notify = Box<dyn FnOnce() + Send>;

pub(crate) struct Writer {
    store: Arc<Store>,
    waiting: Mutex<Waiting>,
    work: Condvar,
    room: Condvar,
    queue_bytes_max: usize,
    round_bytes_max: usize,
    pub(crate) syncs: AtomicU64,
    pub(crate) entries: AtomicU64,
}

impl Writer {
    pub(crate) fn new(store: Arc<Store>, queue_bytes_max: usize, round_bytes_max: usize) -> Writer {
        Writer {
            store,
            waiting: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            queue_bytes_max,
            round_bytes_max,
            syncs: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    /// Queues a job. Blocks while the queue is full. If the job is refused its callback is not called: it comes back.
    pub(crate) fn push(&self, job: Job) -> Result<(), (StorageError, Done)> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Err(error) = self.check(&waiting) {
                return Err((error, job.done));
            }
            if waiting.bytes < self.queue_bytes_max {
                break;
            }
            self.room.wait(&mut waiting);
        }
        self.take_in(&mut waiting, job);
        Ok(())
    }

    fn check(&self, waiting: &Waiting) -> Result<(), StorageError> {
        self.store.check()?;
        if waiting.closing { Err(StorageError::Closed) } else { Ok(()) }
    }

    fn take_in(&self, waiting: &mut Waiting, job: Job) {
        waiting.bytes += job.changes.bytes();
        waiting.jobs.push_back(job);
        self.work.notify_one();
    }

    /// Holds a place in the queue for a job of about `bytes`; `None` while the queue is full. Never waits.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<Option<Place<'_>>, StorageError> {
        let mut waiting = self.waiting.lock();
        self.check(&waiting)?;
        if waiting.bytes >= self.queue_bytes_max {
            return Ok(None);
        }
        waiting.bytes += bytes;
        Ok(Some(Place { writer: self, bytes }))
    }

    /// Calls back once the queue has room, at once if it has it now or takes no more jobs.
    pub(crate) fn when_room(&self, notify: Notify) {
        let mut waiting = self.waiting.lock();
        if waiting.bytes < self.queue_bytes_max || self.check(&waiting).is_err() {
            drop(waiting);
            return notify();
        }
        waiting.room.push(notify);
    }

    fn give_back(&self, bytes: usize) {
        let room = {
            let mut waiting = self.waiting.lock();
            waiting.bytes -= bytes;
            if waiting.bytes < self.queue_bytes_max { std::mem::take(&mut waiting.room) } else { Vec::new() }
        };
        self.room.notify_all();
        room.into_iter().for_each(|notify| notify());
    }

    /// Queues changes and waits until they are durable.
    pub(crate) fn write_and_wait(&self, changes: Changes) -> Result<(), StorageError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let done: Done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.push(Job { changes, entries: 0, done }).map_err(|(error, _)| error)?;
        receiver.recv().unwrap_or(Err(StorageError::Closed))
    }

    /// No more jobs; those that wait are still written.
    pub(crate) fn close(&self) {
        let room = {
            let mut waiting = self.waiting.lock();
            waiting.closing = true;
            std::mem::take(&mut waiting.room)
        };
        self.work.notify_all();
        self.room.notify_all();
        room.into_iter().for_each(|notify| notify());
    }

    /// The thread: returns when closed and everything is written.
    pub(crate) fn run(&self) {
        while let Some((jobs, bytes)) = self.take() {
            let result = self.round(&jobs);
            if let Err(reason) = &result {
                error!(%reason, "volume failed");
            }
            for job in jobs {
                let result = result.clone();
                if catch_unwind(AssertUnwindSafe(|| (job.done)(result))).is_err() {
                    self.store.fail("a completion callback panicked".to_owned());
                }
            }
            self.give_back(bytes);
        }
        if self.store.check().is_ok() {
            // The state machine's writes since the last round are made durable too.
            if let Err(reason) = self.store.close() {
                error!(%reason, "volume failed while it was closed");
            }
        }
    }

    /// What the next round writes; `None` when there is nothing left to do.
    fn take(&self) -> Option<(Vec<Job>, usize)> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() {
            if waiting.closing {
                return None;
            }
            self.work.wait(&mut waiting);
        }
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        while let Some(job) = waiting.jobs.front() {
            if !jobs.is_empty() && bytes + job.changes.bytes() > self.round_bytes_max {
                break;
            }
            bytes += job.changes.bytes();
            jobs.extend(waiting.jobs.pop_front());
        }
        Some((jobs, bytes))
    }

    fn round(&self, jobs: &[Job]) -> Result<(), StorageError> {
        let changes: Vec<&Changes> = jobs.iter().map(|job| &job.changes).filter(|one| !one.is_empty()).collect();
        if changes.is_empty() {
            return self.store.check();
        }
        let begun = Instant::now();
        if planted(Bug::AcknowledgeBeforeSync) {
            self.store.sync()?;
            self.store.write(self.store.batch(&changes)?)?;
        } else {
            self.store.write(self.store.batch(&changes)?)?;
            self.store.sync()?;
        }
        self.store.round_times.note(begun.elapsed());
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_add(jobs.iter().map(|job| job.entries).sum(), Ordering::Relaxed);
        Ok(())
    }
}

/// A place in the queue: given back when it is dropped unused.
pub(crate) struct Place<'a> {
    writer: &'a Writer,
    bytes: usize,
}

impl Place<'_> {
    /// Queues a job in this place. If the job is refused its callback is not called: it comes back.
    pub(crate) fn push(self, job: Job) -> Result<(), (StorageError, Done)> {
        let mut waiting = self.writer.waiting.lock();
        if let Err(error) = self.writer.check(&waiting) {
            return Err((error, job.done));
        }
        self.writer.take_in(&mut waiting, job);
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.writer.give_back(self.bytes);
    }
}
