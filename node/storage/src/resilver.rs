//! Making a half of a mirror anew while the volume serves.
//!
//! ```text
//! snapshot of the other half at number S ──► new tables ──► write-ahead log since S ──► level ──► into the order
//! ```
//!
//! The new database lies beside whatever the directory held. The half's record, written when all is there, makes it the
//! half's; a crash before that leaves the mirror as it was.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocksdb::{Cache, DB};
use tracing::{error, info, warn};

use crate::assemble::{is_one, replay};
use crate::error::StorageError;
use crate::faults::HalfName;
use crate::half::{Half, Progress};
use crate::half_record::HalfRecord;
use crate::keys::printable;
use crate::losses::Losses;
use crate::mark::{self, Mark};
use crate::mirror::{Cause, Mirror, side, write_record};
use crate::options::VolumeOptions;
use crate::patience::patiently;
use crate::prepare::prepare_again;
use crate::salvage::{Old, Source};
use crate::scrub::{self, ScrubHistory};
use crate::store::{Family, Store};
use crate::volume::Shared;

mod copying;
mod short;

use copying::Copying;

/// What may be missing when writes are made to wait for the rest.
const REST_BYTES_MAX: u64 = 1 << 20;
/// How often the log is followed before writes are made to wait however much is missing.
const ROUNDS_MAX: usize = 50;
/// After a failure the damage that is read again asks for no new attempt for so long.
const RETRY_MIN: Duration = Duration::from_secs(60);
/// Between looks whether a copy is to be broken off.
const WATCHED: Duration = Duration::from_millis(250);
/// Records without a good copy that the log names at once.
const LOST_TOLD_MAX: usize = 100;

/// The thread: rebuilds what is to be rebuilt until the volume is closed.
pub(crate) fn run(shared: &Shared, options: &VolumeOptions) {
    let store = &*shared.store;
    let Some(mirror) = &store.mirror else { return };
    let (mut failed_at, mut filled_at): (Option<Instant>, Option<Instant>) = (None, None);
    let has_rested = |since: Option<Instant>| since.is_none_or(|at| at.elapsed() >= RETRY_MIN);
    let mut look_at = Instant::now() + short::LOOK_AGAIN;
    loop {
        let is_wanted = {
            let mut rebuild = mirror.rebuild.lock();
            while !rebuild.wanted && !rebuild.closing && Instant::now() < look_at {
                mirror.rebuild_wanted.wait_until(&mut rebuild, look_at);
            }
            if rebuild.closing {
                return;
            }
            std::mem::take(&mut rebuild.wanted)
        };
        if Instant::now() >= look_at {
            // What has filled a disk up may do so again.
            if has_rested(filled_at) {
                short::look_again(mirror, options);
            }
            look_at = Instant::now() + short::LOOK_AGAIN;
        }
        // Damage alone is seen to when it is met again.
        let rested = is_wanted && has_rested(failed_at);
        while let Some(name) = next(mirror, rested) {
            *mirror.resilvering.lock() = Some(name);
            mirror.copied_bytes.store(0, Ordering::Relaxed);
            mirror.copied_records.store(0, Ordering::Relaxed);
            mirror.records.store(0, Ordering::Relaxed);
            let (begun, unread) = (Instant::now(), shared.unread.so_far());
            let result = Resilver { shared, store, mirror, options, name }.run();
            let ms = begun.elapsed().as_millis() as u64;
            match &result {
                Ok(()) => {
                    side(&mut mirror.sides.lock(), name).0.unmade = None;
                    mirror.resilvers.fetch_add(1, Ordering::Relaxed);
                    // Each record has come from one half or the other, or is told as lost.
                    shared.unread.was_read(None, unread, |_| false);
                    let bytes = mirror.copied_bytes.load(Ordering::Relaxed);
                    info!(half = %name, bytes, ms, "mirror half resilvered");
                }
                Err(error) => {
                    warn!(half = %name, %error, ms, "mirror half could not be resilvered");
                    failed_at = Some(Instant::now());
                    let mut sides = mirror.sides.lock();
                    let own = side(&mut sides, name).0;
                    short::tell(own, error);
                    if short::is_filled(error) {
                        own.short = true;
                        filled_at = failed_at;
                    }
                }
            }
            // Whoever sees that it is over finds what came of it.
            *mirror.resilvering.lock() = None;
            if result.is_err() {
                break;
            }
        }
    }
}

fn told(error: &StorageError) -> String {
    format!("resilver: {error}")
}

/// A half that was asked for, or one that is damaged.
fn next(mirror: &Mirror, rested: bool) -> Option<HalfName> {
    if mirror.rebuild.lock().closing {
        return None;
    }
    for side in mirror.sides.lock().iter_mut() {
        if std::mem::take(&mut side.rebuild) && (side.lost.is_some() || mirror.is_damaged(side.record.name)) {
            // Whoever looks sees it asked for or under way, not lost in between.
            *mirror.resilvering.lock() = Some(side.record.name);
            return Some(side.record.name);
        }
    }
    let halves = mirror.halves();
    let damaged = halves.iter().find(|half| half.damaged.load(Ordering::Relaxed) && halves.len() == 2 && rested);
    damaged.map(|half| half.name)
}

struct Resilver<'a> {
    shared: &'a Shared,
    store: &'a Store,
    mirror: &'a Mirror,
    options: &'a VolumeOptions,
    name: HalfName,
}

impl Resilver<'_> {
    fn run(&self) -> Result<(), StorageError> {
        let (directory, record, dropped, other) = {
            let mut sides = self.mirror.sides.lock();
            let (own, other) = side(&mut sides, self.name);
            own.short = false;
            (own.directory.clone(), own.record.clone(), own.dropped.clone(), other.directory.clone())
        };
        // As they are now: a directory may have come back as a link.
        if is_one(&directory, &other) {
            let reason = format!("{} and {} are one directory", directory.display(), other.display());
            return Err(StorageError::Refused(reason));
        }
        short::check(self.mirror, self.options, self.name, (&directory, &other))?;
        let is_live = self.mirror.halves().iter().any(|half| half.name == self.name);
        let generation = {
            let telling = self.telling();
            let _telling = telling.lock();
            prepare_again(&directory, &record, is_live)?
        };
        let cache = Cache::new_lru_cache(self.options.block_cache_bytes);
        let old = match is_live {
            true => None,
            false => Old::of(dropped, self.options, &cache, (&directory, &record)),
        };
        let left_out = self.mirror.left_out.load(Ordering::Relaxed);
        let result = self.fill(&directory, generation, (&cache, old.as_ref()));
        let misses = self.mirror.left_out.load(Ordering::Relaxed) > left_out;
        if result.is_ok() && misses && old.is_none() && !is_live {
            mark::set_aside(&directory, record.generation);
        }
        drop(old);
        // What it had may hold the only good copies: that goes when the new database is in use, never before.
        let removed = match &result {
            Ok(()) => mark::remove_others(&directory, &[generation]),
            Err(_) => mark::remove(&directory, generation),
        };
        if let Err(error) = removed {
            warn!(%error, directory = %directory.display(), "the rest of a resilver could not be removed");
        }
        result
    }

    fn fill(
        &self,
        directory: &Path,
        generation: u64,
        (cache, salvage): (&Cache, Option<&Old>),
    ) -> Result<(), StorageError> {
        let mark = Mark::open(directory, generation, true)?;
        let mut new = Half::open(self.options, cache, (self.name, directory.to_owned(), mark), (generation, 0))?;
        let halves = self.mirror.halves();
        let source = halves.iter().find(|half| half.name != self.name);
        let source = source.ok_or_else(|| StorageError::Misuse("there is no other half to copy".to_owned()))?;
        let old = halves.iter().find(|half| half.name == self.name);
        // The logs that are followed below must not go.
        let _kept = KeptFiles::of(&source.db)?;
        let number;
        let sources: Vec<Source<'_>> = {
            let order = self.mirror.order.lock();
            number = order.number;
            let mut level = Vec::new();
            for half in [Some(source), old].into_iter().flatten() {
                let written = patiently(self.options.hang_max, |deadline| half.wait_written(number, deadline));
                if written == Progress::Made {
                    level.push((half, half.db.snapshot()));
                }
            }
            level
        };
        if !sources.first().is_some_and(|(half, _)| Arc::ptr_eq(half, source)) {
            return Err(StorageError::io("resilver", "the other half does not answer"));
        }
        let estimates = Family::EVERY.map(|family| source.records_estimated(family));
        self.mirror.records.store(estimates.iter().sum(), Ordering::Relaxed);
        let (over, ended) = mpsc::channel();
        let (copied, broken_off) = thread::scope(|scope| {
            let new = &new;
            let watch = scope.spawn(move || self.watch(new, &ended));
            let copied = self.copy(&sources, new, salvage, number);
            drop::<mpsc::Sender<()>>(over);
            (copied, watch.join().unwrap_or(None))
        });
        drop(sources);
        if let Some(error) = broken_off {
            return Err(error);
        }
        copied?;
        // Each record of the copy had a number of its own once, so the copy has used no more of them.
        let used = new.db.latest_sequence_number();
        new.offset = number.checked_sub(used).ok_or_else(|| StorageError::corrupt("resilver", "too many records"))?;
        for _ in 0..ROUNDS_MAX {
            self.check()?;
            let bytes = replay(&source.db, source.offset, &new, source.written())?;
            self.mirror.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
            if bytes < REST_BYTES_MAX {
                break;
            }
        }
        // So that the last sync, for which writes wait, has little to do.
        new.sync()?;
        self.join(source, new)
    }

    /// All as of one moment, in tables on return.
    fn copy(&self, sources: &[Source<'_>], new: &Half, salvage: Option<&Old>, number: u64) -> Result<(), StorageError> {
        let mut copy = Copying::new(self, new, salvage, number);
        for family in Family::EVERY {
            copy.family(sources, family)?;
        }
        copy.write()?;
        let (lost, losses) = copy.lost(sources)?;
        drop(copy);
        self.tell(&lost, losses)?;
        // The copy is in no log: what follows it is.
        new.flush()
    }

    /// Breaks a copy off that would wait inside the database: for room on a disk that others have filled up, without an end; or
    /// when the volume is closed. Until the other end is dropped; why, if it did.
    fn watch(&self, new: &Half, over: &mpsc::Receiver<()>) -> Option<StorageError> {
        while over.recv_timeout(WATCHED) == Err(mpsc::RecvTimeoutError::Timeout) {
            let error = match self.check() {
                Err(error) => error,
                Ok(()) if new.met.full.load(Ordering::Relaxed) => {
                    StorageError::Refused(format!("the disk of {} {}", new.directory.display(), short::FILLED))
                }
                Ok(()) => continue,
            };
            new.db.cancel_all_background_work(false);
            return Some(error);
        }
        None
    }

    /// Recorded before the half is in use: nobody is to take the volume for whole.
    fn tell(&self, lost: &BTreeSet<Vec<u8>>, losses: Losses) -> Result<(), StorageError> {
        if lost.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = lost.iter().take(LOST_TOLD_MAX).map(|key| printable(Family::Blob, key)).collect();
        error!(bodies = lost.len(), keys = keys.join(" "), "bodies have no good copy here");
        self.mirror.left_out.fetch_add(lost.len() as u64, Ordering::Relaxed);
        scrub::note(self.shared, |history| {
            let losses = history.losses.clone().with(losses.current(self.store)?);
            Ok(ScrubHistory { losses, ..history })
        })
    }

    fn check(&self) -> Result<(), StorageError> {
        if self.mirror.rebuild.lock().closing { Err(StorageError::Closed) } else { self.store.check() }
    }
}

/// The end.
impl Resilver<'_> {
    /// Takes the new database into the order of writes, which waits meanwhile, and reads from it where the old one was
    /// read or the other is damaged. Writes wait for the new disk no longer than for one that is dropped.
    fn join(&self, source: &Arc<Half>, new: Half) -> Result<(), StorageError> {
        let mirror = self.mirror;
        let new = Arc::new(new);
        let mut sides = mirror.sides.lock();
        let mut order = mirror.order.lock();
        let there = order.halves.iter().any(|half| Arc::ptr_eq(half, source));
        let lost = || StorageError::io("resilver", "the other half was lost meanwhile");
        let number = order.number;
        let written = |deadline| source.wait_written(number, deadline);
        if !there || patiently(self.options.hang_max, written) != Progress::Made {
            return Err(lost());
        }
        // The two must be level on their disks too: the new one's log does not go back to before the copy, and could not
        // give the other what a crash takes from it.
        source.want_sync(number);
        let (own, kept) = side(&mut sides, self.name);
        let record = HalfRecord {
            name: self.name,
            epoch: kept.record.epoch,
            opened: kept.record.opened,
            partner_current: true,
            stale: false,
            generation: new.generation,
            offset: new.offset,
            closed: None,
            ..own.record
        };
        let (source_of, new_of) = (source.clone(), new.clone());
        let last =
            Last { source: source_of, new: new_of, number, record: record.clone(), telling: own.telling.clone() };
        if let Err((error, stage)) = last.write_within(self.options.hang_max) {
            let old = order.halves.iter().find(|half| half.name == self.name).cloned();
            drop((order, sides));
            if let (Some(old), Stage::Writing) = (old, stage) {
                // Which of the two databases its record names is not known: neither is current.
                self.store.drop_half(mirror, &old, (Cause::Failed, &error.to_string()))?;
            }
            return Err(error);
        }
        let mut begin = || {
            let synced = |deadline| source.wait_synced(number, deadline);
            if patiently(self.options.hang_max, synced) != Progress::Made {
                return Err(lost());
            }
            if !kept.record.partner_current {
                let current = HalfRecord { partner_current: true, ..kept.record.clone() };
                write_record(source, &current)?;
                kept.record = current;
            }
            new.start()
        };
        if let Err(error) = begin() {
            drop((order, sides));
            new.fail("it did not join");
            new.stop();
            self.put_back(&new)?;
            return Err(error);
        }
        (own.record, own.lost, own.dropped) = (record, None, None);
        let old = order.halves.iter().position(|half| half.name == self.name).map(|at| order.halves.remove(at));
        order.halves.push(new.clone());
        // The one that was there goes on until nobody reads it.
        self.store.reader.keep(&new);
        let reader = self.store.reader();
        if reader.name == self.name || reader.damaged.load(Ordering::Relaxed) {
            self.store.read_from(new);
        }
        drop(order);
        if let Some(old) = old {
            old.fail("it was made anew");
            old.stop();
            // Its files are removed next, and it must make no new ones.
            old.db.cancel_all_background_work(true);
        }
        Ok(())
    }

    /// After a join that came to nothing: the half's record names the new database, which goes. It is to name the one that it
    /// named before, which is in use, or has what may be nowhere else.
    fn put_back(&self, new: &Arc<Half>) -> Result<(), StorageError> {
        let mirror = self.mirror;
        let mut sides = mirror.sides.lock();
        let own = side(&mut sides, self.name).0;
        let live = mirror.halves().into_iter().find(|half| half.name == self.name);
        let record = match &live {
            Some(_) => own.record.clone(),
            None => HalfRecord { stale: true, closed: None, ..own.record.clone() },
        };
        let (new, telling) = (new.clone(), own.telling.clone());
        let write = move || {
            // Whoever is dropped is told so behind this.
            let _telling = telling.lock();
            write_record(&new, &record)
        };
        let limit = self.options.hang_max;
        let Some(live) = live else {
            drop(sides);
            if let Err(error) = within(limit, write) {
                warn!(half = %self.name, %error, "the record of a half could not be put back");
            }
            return Ok(());
        };
        // With `sides` held: one that is in use may be the one that says next that the other was dropped.
        let written = within(limit, write);
        drop(sides);
        written.or_else(|error| self.store.drop_half(mirror, &live, (Cause::Failed, &error.to_string())))
    }

    /// What is held while the half's record is written. One whose disk hangs in it is left behind with its disk.
    fn telling(&self) -> Arc<Mutex<()>> {
        let telling = side(&mut self.mirror.sides.lock(), self.name).0.telling.clone();
        if telling.try_lock_for(self.options.hang_max).is_some() {
            return telling;
        }
        let fresh: Arc<Mutex<()>> = Arc::default();
        side(&mut self.mirror.sides.lock(), self.name).0.telling = fresh.clone();
        fresh
    }
}

/// The last of what a new half lacks, and the record that makes it the half's. By a thread of its own: its disk may hang.
struct Last {
    source: Arc<Half>,
    new: Arc<Half>,
    number: u64,
    record: HalfRecord,
    telling: Arc<Mutex<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Before,
    /// From now on the record may be the new one.
    Writing,
    /// Nobody waits any more: the record is not to be written.
    Abandoned,
}

impl Last {
    fn write_within(self, limit: Duration) -> Result<(), (StorageError, Stage)> {
        let stage = Arc::new(Mutex::new(Stage::Before));
        let result = within(limit, {
            let stage = stage.clone();
            move || self.write(&stage)
        });
        let mut stage = stage.lock();
        result.map_err(|error| (error, std::mem::replace(&mut *stage, Stage::Abandoned)))
    }

    fn write(&self, stage: &Mutex<Stage>) -> Result<(), StorageError> {
        replay(&self.source.db, self.source.offset, &self.new, self.number)?;
        self.new.sync()?;
        let _telling = self.telling.lock();
        {
            let mut stage = stage.lock();
            if *stage == Stage::Abandoned {
                return Err(StorageError::Closed);
            }
            *stage = Stage::Writing;
        }
        // First the new half's own, which alone says nothing: the other one still calls it stale.
        write_record(&self.new, &self.record)
    }
}

/// Does what a disk may hang in by a thread of its own, which is left behind if it does.
fn within(
    limit: Duration,
    work: impl FnOnce() -> Result<(), StorageError> + Send + 'static,
) -> Result<(), StorageError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("half-join".to_owned()).spawn(move || {
        let _ = sender.send(work());
    });
    spawned.map_err(|error| StorageError::io("starting to join", error))?;
    let mut result = Err(StorageError::io("resilver", "the new disk does not answer"));
    patiently(limit, |deadline| {
        let wait = deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
        match receiver.recv_timeout(wait) {
            Ok(answer) => result = answer,
            Err(_) => return Progress::Late,
        }
        Progress::Made
    });
    result
}

/// A database whose obsolete files are kept.
struct KeptFiles<'a> {
    db: &'a DB,
}

impl KeptFiles<'_> {
    fn of(db: &DB) -> Result<KeptFiles<'_>, StorageError> {
        db.disable_file_deletions().map_err(|error| StorageError::io("keeping write-ahead logs", error))?;
        Ok(KeptFiles { db })
    }
}

impl Drop for KeptFiles<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.db.enable_file_deletions() {
            warn!(%error, "obsolete files are kept until the volume is opened again");
        }
    }
}
