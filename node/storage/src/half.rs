//! One database of a volume, with its mark; and, in a mirror, the line of batches that wait for it.
//!
//! ```text
//! push (in the volume's order) ──► line ──► writer thread ──► written ──► sync thread ──► synced
//! ```
//!
//! A half of a mirror is written and synced by threads of its own, so that a disk that hangs holds up nobody but them.
//! Numbers are the volume's: the database's sequence number and the half's offset.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rocksdb::{BoundColumnFamily, Cache, DB, FlushOptions, WriteBatch, WriteOptions};
use tracing::warn;

use crate::error::StorageError;
use crate::faults::{self, Faults, HalfName, Operation};
use crate::mark::{self, Mark};
use crate::options::{self, Tables, VolumeOptions};
use crate::reads::Reads;
use crate::rewrites::Rewrites;
use crate::room::room_for_copy;
use crate::store::Family;
use crate::watch::{LOOK_INTERVAL, Met, Rest};

pub(crate) struct Half {
    pub name: HalfName,
    pub directory: PathBuf,
    pub generation: u64,
    pub offset: u64,
    pub db: DB,
    pub mark: Mutex<Mark>,
    /// Damage was read here: it is written on, and rebuilt.
    pub damaged: AtomicBool,
    pub damage_found: AtomicU64,
    /// Those that its disk has not answered.
    pub reads: Reads,
    /// Others than whoever copies or compares were read here.
    pub was_read: AtomicBool,
    /// A write became another number here than in the volume: what it holds is not told by its number.
    pub is_astray: AtomicBool,
    pub met: Arc<Met>,
    pub rest: Rest,
    pub rewrites: Rewrites,
    faults: Option<Arc<dyn Faults>>,
    line: Mutex<Line>,
    work: Condvar,
    progress: Condvar,
    /// For the thread that looks after it.
    ended: Condvar,
    line_bytes_max: usize,
}

#[derive(Default)]
struct Line {
    batches: VecDeque<Batch>,
    /// Of the waiting batches and the one under way.
    bytes: usize,
    written: u64,
    sync_wanted: u64,
    synced: u64,
    failed: Option<String>,
    closing: bool,
    /// Threads that are inside the database at this moment.
    busy: usize,
    threads: Vec<JoinHandle<()>>,
}

struct Batch {
    batch: WriteBatch,
    /// Of the batch's last change.
    number: u64,
}

/// What one waits for came, did not come in time, or never will.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    Made,
    Late,
    Failed(String),
}

impl Half {
    pub(crate) fn open(
        options: &VolumeOptions,
        cache: &Cache,
        (name, directory, mark): (HalfName, PathBuf, Mark),
        (generation, offset): (u64, u64),
    ) -> Result<Half, StorageError> {
        let path = mark::database_path(&directory, generation);
        // As it is opened to be written it takes damage in its log for the log's end: that is looked at before.
        let (strictly, damage) = match path.join("CURRENT").exists() {
            true => look_before(options, cache, &path)?,
            false => (0, None),
        };
        let met = Arc::new(Met::default());
        let mut db_options = options::database(options, cache)?;
        db_options.set_info_logger(met.logger());
        let db = DB::open_cf_descriptors(&db_options, &path, options::families(options, cache));
        let db = db.map_err(|error| open_error(&path, &error))?;
        let found = db.latest_sequence_number();
        if found != strictly {
            let reason = format!("it holds number {found}, and {strictly} when it was read before");
            return Err(StorageError::corrupt(path.display().to_string(), reason));
        }
        let half = Half {
            name,
            directory,
            generation,
            offset,
            db,
            mark: Mutex::new(mark),
            damaged: AtomicBool::new(false),
            damage_found: AtomicU64::new(0),
            reads: Reads::default(),
            was_read: AtomicBool::new(false),
            is_astray: AtomicBool::new(false),
            met,
            rest: Rest::default(),
            rewrites: Rewrites::default(),
            faults: options.faults.clone(),
            line: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            ended: Condvar::new(),
            line_bytes_max: options.queue_bytes_max,
        };
        let number = half.number();
        half.mark.lock().check(number)?;
        if let Some(reason) = damage {
            warn!(half = %half.name, directory = %half.directory.display(), %reason, "a table is damaged");
            half.note_damage();
        }
        let mut line = half.line.lock();
        (line.written, line.synced, line.sync_wanted) = (number, number, number);
        drop(line);
        Ok(half)
    }

    /// The volume's number of the last write.
    pub(crate) fn number(&self) -> u64 {
        self.db.latest_sequence_number() + self.offset
    }

    /// About how many records there are; 0 where the database cannot tell.
    pub(crate) fn records_estimated(&self, family: Family) -> u64 {
        let Ok(handle) = self.family(family) else { return 0 };
        let found = self.db.property_int_value_cf(&handle, "rocksdb.estimate-num-keys");
        found.ok().flatten().unwrap_or(0)
    }

    pub(crate) fn family(&self, family: Family) -> Result<Arc<BoundColumnFamily<'_>>, StorageError> {
        self.db.cf_handle(family.name()).ok_or_else(|| StorageError::corrupt(family.name(), "no such column family"))
    }

    pub(crate) fn before(&self, operation: Operation) -> Result<(), StorageError> {
        faults::before(self.faults.as_ref(), self.name, operation)
    }

    /// Whether its disk has room for it to be made anew there from the other one.
    pub(crate) fn room_for_copy(&self, other: &Path) -> Result<(), StorageError> {
        room_for_copy(self.faults.as_ref(), self.name, (&self.directory, other))
    }

    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        self.before(Operation::Write)?;
        self.db.write(batch).map_err(|error| self.failure("write", &error))
    }

    /// Writes past the write-ahead log: nothing of it is durable before [`Half::flush`].
    pub(crate) fn write_unlogged(&self, batch: WriteBatch) -> Result<(), StorageError> {
        self.before(Operation::Write)?;
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(|error| self.failure("write", &error))
    }

    /// Puts all that was written into tables. Durable on return.
    pub(crate) fn flush(&self) -> Result<(), StorageError> {
        self.before(Operation::Sync)?;
        let families = Family::EVERY.map(|family| self.family(family));
        let families = families.into_iter().collect::<Result<Vec<_>, _>>()?;
        let flushed = self.db.flush_cfs_opt(&families.iter().collect::<Vec<_>>(), &FlushOptions::default());
        flushed.map_err(|error| self.failure("flush", &error))
    }

    /// A write may tell of damage that a compaction has met.
    fn failure(&self, doing: &str, error: &rocksdb::Error) -> StorageError {
        if error.kind() == rocksdb::ErrorKind::Corruption {
            self.note_damage();
        }
        StorageError::io(doing, error)
    }

    /// True if that is news.
    pub(crate) fn note_damage(&self) -> bool {
        self.damage_found.fetch_add(1, Ordering::Relaxed);
        !self.damaged.swap(true, Ordering::Relaxed)
    }

    /// Makes every earlier write durable, and notes it.
    pub(crate) fn sync(&self) -> Result<u64, StorageError> {
        self.before(Operation::Sync)?;
        // Read before the sync: whatever has this number or a lower one is in the log that is synced.
        let number = self.number();
        self.db.flush_wal(true).map_err(|error| self.failure("sync", &error))?;
        let mut mark = self.mark.lock();
        // After the sync: what is acknowledged was synced to a directory that is still there.
        mark.check_in_place()?;
        mark.note(number)?;
        Ok(number)
    }

    /// Starts the threads of a half of a mirror.
    pub(crate) fn start(self: &Arc<Half>) -> Result<(), StorageError> {
        let number = self.number();
        let mut line = self.line.lock();
        (line.written, line.synced, line.sync_wanted) = (number, number, number);
        for (purpose, run) in
            [("write", Half::run_writes as fn(&Half)), ("sync", Half::run_syncs), ("watch", Half::run_watch)]
        {
            let half = self.clone();
            let spawned =
                thread::Builder::new().name(format!("half-{}-{purpose}", self.name)).spawn(move || run(&half));
            line.threads.push(spawned.map_err(|error| StorageError::io("starting a half", error))?);
        }
        Ok(())
    }

    /// Queues a batch, if there is room or comes in time.
    pub(crate) fn push(&self, batch: WriteBatch, number: u64, deadline: Instant) -> Option<WriteBatch> {
        let mut line = self.line.lock();
        while line.bytes >= self.line_bytes_max && line.failed.is_none() {
            if self.progress.wait_until(&mut line, deadline).timed_out() {
                return Some(batch);
            }
        }
        if line.failed.is_none() {
            line.bytes += batch.size_in_bytes();
            line.batches.push_back(Batch { batch, number });
            self.work.notify_all();
        }
        None
    }

    /// The number of the last change that can be read.
    pub(crate) fn written(&self) -> u64 {
        self.line.lock().written
    }

    pub(crate) fn want_sync(&self, number: u64) {
        let mut line = self.line.lock();
        line.sync_wanted = line.sync_wanted.max(number);
        self.work.notify_all();
    }

    pub(crate) fn wait_written(&self, number: u64, deadline: Option<Instant>) -> Progress {
        self.wait(deadline, |line| line.written >= number)
    }

    pub(crate) fn wait_synced(&self, number: u64, deadline: Option<Instant>) -> Progress {
        self.wait(deadline, |line| line.synced >= number)
    }

    fn wait(&self, deadline: Option<Instant>, reached: impl Fn(&Line) -> bool) -> Progress {
        let mut line = self.line.lock();
        loop {
            if let Some(reason) = &line.failed {
                return Progress::Failed(reason.clone());
            }
            if reached(&line) {
                return Progress::Made;
            }
            match deadline {
                None => self.progress.wait(&mut line),
                Some(deadline) => {
                    if self.progress.wait_until(&mut line, deadline).timed_out() && !reached(&line) {
                        return Progress::Late;
                    }
                }
            }
        }
    }
}

/// The threads.
impl Half {
    fn run_writes(&self) {
        let mut line = self.line.lock();
        loop {
            if line.failed.is_some() {
                return;
            }
            let Some(Batch { batch, number }) = line.batches.pop_front() else {
                if line.closing {
                    return;
                }
                self.work.wait(&mut line);
                continue;
            };
            let bytes = batch.size_in_bytes();
            let result = self.unlocked(&mut line, || self.write(batch));
            line.bytes = line.bytes.saturating_sub(bytes);
            let found = self.number();
            match result {
                // The halves' numbers can only differ if their contents do.
                Ok(()) if found != number => {
                    self.is_astray.store(true, Ordering::Relaxed);
                    self.give_up(&mut line, format!("write {number} has become number {found}"));
                }
                Ok(()) => line.written = number,
                Err(error) => self.give_up(&mut line, error.to_string()),
            }
            self.progress.notify_all();
            self.work.notify_all();
        }
    }

    fn run_syncs(&self) {
        let mut line = self.line.lock();
        loop {
            if line.failed.is_some() {
                return;
            }
            if line.sync_wanted <= line.synced || line.written < line.sync_wanted {
                if line.closing && line.batches.is_empty() && line.sync_wanted <= line.synced {
                    return;
                }
                self.work.wait(&mut line);
                continue;
            }
            let result = self.unlocked(&mut line, || self.sync());
            match result {
                Ok(number) => line.synced = number,
                // What the disk holds after a failed fsync is unknown: it is not tried again.
                Err(error) => self.give_up(&mut line, error.to_string()),
            }
            self.progress.notify_all();
            self.work.notify_all();
        }
    }

    fn run_watch(&self) {
        let mut line = self.line.lock();
        while line.failed.is_none() && !line.closing {
            if !self.ended.wait_for(&mut line, LOOK_INTERVAL).timed_out() {
                continue;
            }
            if let Err(error) = self.unlocked(&mut line, || self.look()) {
                self.give_up(&mut line, error.to_string());
            }
        }
    }

    fn unlocked<T>(&self, line: &mut MutexGuard<'_, Line>, work: impl FnOnce() -> T) -> T {
        line.busy += 1;
        let result = MutexGuard::unlocked(line, work);
        line.busy -= 1;
        result
    }

    fn give_up(&self, line: &mut Line, reason: String) {
        line.failed.get_or_insert(reason);
        line.batches.clear();
        line.bytes = 0;
        self.progress.notify_all();
        self.work.notify_all();
        self.ended.notify_all();
    }

    /// No more writes: what waits is given up.
    pub(crate) fn fail(&self, reason: &str) {
        self.give_up(&mut self.line.lock(), reason.to_owned());
    }

    pub(crate) fn failed(&self) -> Option<String> {
        self.line.lock().failed.clone()
    }

    /// Bytes that wait to be written.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.line.lock().bytes
    }

    /// Ends the threads. Those of a half that hangs are left behind: they hold the database until it answers.
    pub(crate) fn stop(&self) {
        let threads = {
            let mut line = self.line.lock();
            line.closing = true;
            self.work.notify_all();
            self.ended.notify_all();
            if line.failed.is_some() && line.busy > 0 {
                return;
            }
            std::mem::take(&mut line.threads)
        };
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// The number of a database's last write, and the damage of a table that opening it has met. Damage in its log or MANIFEST
/// is an error.
fn look_before(
    options: &VolumeOptions,
    cache: &Cache,
    path: &Path,
) -> Result<(u64, Option<StorageError>), StorageError> {
    let damage = match peek(options, cache, (path, Tables::Opened)) {
        Ok(db) => return Ok((db.latest_sequence_number(), None)),
        Err(damage @ StorageError::Corrupt { .. }) => damage,
        Err(error) => return Err(error),
    };
    Ok((peek(options, cache, (path, Tables::Left))?.latest_sequence_number(), Some(damage)))
}

/// A database as it is, without a change to it. Refuses damage in what was written last, and takes a torn end of it.
pub(crate) fn peek(
    options: &VolumeOptions,
    cache: &Cache,
    (path, tables): (&Path, Tables),
) -> Result<DB, StorageError> {
    let db_options = options::strict(options, cache, tables)?;
    DB::open_cf_descriptors_read_only(&db_options, path, options::families(options, cache), false)
        .map_err(|error| open_error(path, &error))
}

pub(crate) fn open_error(path: &Path, error: &rocksdb::Error) -> StorageError {
    let text = error.to_string();
    match error.kind() {
        rocksdb::ErrorKind::Corruption => StorageError::corrupt(path.display().to_string(), error),
        rocksdb::ErrorKind::IOError if text.contains("lock") => {
            StorageError::Refused(format!("{} is in use by another process: {text}", path.display()))
        }
        _ => StorageError::io(format!("opening {}", path.display()), error),
    }
}
