//! The live halves of a mirror: one order of batches for both, syncs that wait for both, and what is done when one of
//! them fails.
//!
//! Invariant: a half that does not get what is acknowledged is out of the order, and the record of the other one, durable
//! on its disk, says so before the acknowledgement.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rocksdb::WriteBatch;
use tracing::{error, warn};

use crate::error::StorageError;
use crate::faults::{HalfName, Operation};
use crate::half::{Half, Progress};
use crate::half_record::HalfRecord;
use crate::half_status::HalfStatus;
use crate::patience::{patiently, tick};
use crate::store::Store;

pub(crate) struct Mirror {
    /// Held while a batch is handed to both halves. Never while `sides` is waited for.
    pub order: Mutex<Order>,
    /// Held while a drop or a return is recorded.
    pub sides: Mutex<[Side; 2]>,
    /// As it was shown last.
    pub shown: Mutex<Vec<HalfStatus>>,
    pub hang_max: Duration,
    pub dropped: AtomicU64,
    pub served_elsewhere: AtomicU64,
    /// When reads have last left a half that was slow.
    pub moved: Mutex<Option<Instant>>,
    /// Tells the thread that rebuilds that there is something to rebuild.
    pub rebuild: Mutex<Rebuild>,
    pub rebuild_wanted: Condvar,
    /// The half that is made anew at this moment, and how far that is.
    pub resilvering: Mutex<Option<HalfName>>,
    pub copied_bytes: AtomicU64,
    pub copied_records: AtomicU64,
    pub records: AtomicU64,
    pub resilvers: AtomicU64,
    /// Bodies that only the old database of a dropped half still had, and those that no database had.
    pub salvaged: AtomicU64,
    pub left_out: AtomicU64,
    /// Other records that only it had.
    pub recalled: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Rebuild {
    pub wanted: bool,
    pub closing: bool,
}

pub(crate) struct Order {
    /// Of the last change that was handed out.
    pub number: u64,
    pub halves: Vec<Arc<Half>>,
}

/// One of the two places.
pub(crate) struct Side {
    pub directory: PathBuf,
    /// As it is on the disk, or was before the half was lost.
    pub record: HalfRecord,
    /// Why it is not in use; `None` while it is.
    pub lost: Option<String>,
    /// Whether it is to be made anew: not where its disk has just failed, unless somebody asks.
    pub rebuild: bool,
    /// Why it could not be made anew where it is in use, last.
    pub unmade: Option<String>,
    /// Whether there was no room to make it anew, last: it is, once there is.
    pub short: bool,
    /// What was in use when it was dropped: until it has been made anew it may hold the only good copies.
    pub dropped: Option<Arc<Half>>,
    /// Held while the record in this directory is looked at and written: whoever is told late that it was dropped must
    /// not write over what it has become.
    pub telling: Arc<Mutex<()>>,
}

impl Side {
    pub(crate) fn new(directory: PathBuf, record: HalfRecord, lost: Option<String>) -> Side {
        let (rebuild, unmade, short, dropped, telling) = Default::default();
        Side { directory, record, lost, rebuild, unmade, short, dropped, telling }
    }
}

/// Why a half is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// It lacks what was written, or takes no more.
    Failed,
    Hangs,
    /// Some of it cannot be read. It still takes all that is written, so the last half is not given up over that; nor is one
    /// beside a damaged one, for it may have the only good copies: that one is damaged itself, no more.
    Unread,
    /// Its disk has next to no room, while the other one's has. It still takes all that is written, and cannot be made anew where
    /// it is: it stays where the other one is not whole.
    Full,
}

impl Mirror {
    pub(crate) fn new(halves: Vec<Arc<Half>>, sides: [Side; 2], hang_max: Duration) -> Mirror {
        let number = halves.iter().map(|half| half.number()).max().unwrap_or(0);
        Mirror {
            order: Mutex::new(Order { number, halves }),
            sides: Mutex::new(sides),
            shown: Mutex::default(),
            hang_max,
            dropped: AtomicU64::new(0),
            served_elsewhere: AtomicU64::new(0),
            moved: Mutex::default(),
            rebuild: Mutex::default(),
            rebuild_wanted: Condvar::new(),
            resilvering: Mutex::default(),
            copied_bytes: AtomicU64::new(0),
            copied_records: AtomicU64::new(0),
            records: AtomicU64::new(0),
            resilvers: AtomicU64::new(0),
            salvaged: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            recalled: AtomicU64::new(0),
        }
    }

    pub(crate) fn halves(&self) -> Vec<Arc<Half>> {
        self.order.lock().halves.clone()
    }

    /// A half, if it was not dropped meanwhile.
    fn in_use(&self, half: &Half) -> Option<Arc<Half>> {
        self.halves().into_iter().find(|one| std::ptr::eq(&raw const **one, &raw const *half))
    }

    /// Damage was met in a half, which is made anew.
    fn note_damage(&self, half: &Half, reason: &impl Display) {
        if half.note_damage() {
            warn!(half = %half.name, %reason, "mirror half is damaged");
        }
        self.want_rebuild();
    }

    pub(crate) fn stop(&self) {
        for half in self.halves() {
            half.stop();
        }
    }

    pub(crate) fn want_rebuild(&self) {
        self.rebuild.lock().wanted = true;
        self.rebuild_wanted.notify_all();
    }

    /// No more rebuilding; what is under way is given up.
    pub(crate) fn end_rebuilding(&self) {
        self.rebuild.lock().closing = true;
        self.rebuild_wanted.notify_all();
    }

    /// A half that is in use, beside another one.
    pub(crate) fn is_damaged(&self, name: HalfName) -> bool {
        let halves = self.halves();
        let is_damaged = |half: &Arc<Half>| half.name == name && half.damaged.load(Ordering::Relaxed);
        halves.len() == 2 && halves.iter().any(is_damaged)
    }

    /// Asks for a half to be made anew.
    pub(crate) fn resilver(&self, name: HalfName) -> Result<(), StorageError> {
        {
            let mut sides = self.sides.lock();
            let own = side(&mut sides, name).0;
            if own.lost.is_none() && !self.is_damaged(name) {
                return Err(StorageError::Misuse(format!("half {name} is in use")));
            }
            own.rebuild = true;
        }
        self.want_rebuild();
        Ok(())
    }
}

/// The place of a half, and that of the other one.
pub(crate) fn side(sides: &mut [Side; 2], name: HalfName) -> (&mut Side, &mut Side) {
    let [first, second] = sides;
    if first.record.name == name { (first, second) } else { (second, first) }
}

impl Store {
    /// Hands a batch to both halves, and returns when it can be read.
    pub(crate) fn write_both(&self, mirror: &Mirror, batch: WriteBatch) -> Result<(), StorageError> {
        if batch.is_empty() {
            return Ok(());
        }
        let number = hand_out(mirror, &mut mirror.order.lock(), batch);
        self.await_readable(mirror, number)
    }

    /// Returns when a batch that was handed out can be read.
    pub(crate) fn await_readable(&self, mirror: &Mirror, number: u64) -> Result<(), StorageError> {
        loop {
            let half = Arc::clone(&self.reader());
            self.await_half(mirror, &half, |half, deadline| half.wait_written(number, deadline))?;
            if Arc::ptr_eq(&half, &self.reader()) {
                return self.check();
            }
        }
    }

    /// Returns when every half that is not dropped has synced all that was written, and every drop is recorded.
    pub(crate) fn sync_both(&self, mirror: &Mirror) -> Result<(), StorageError> {
        let (number, halves) = {
            let order = mirror.order.lock();
            (order.number, order.halves.clone())
        };
        halves.iter().for_each(|half| half.want_sync(number));
        for half in &halves {
            self.await_half(mirror, half, |half, deadline| half.wait_synced(number, deadline))?;
        }
        self.check()
    }

    /// Waits for a half, and drops it if it fails or is much slower than the other one.
    fn await_half(
        &self,
        mirror: &Mirror,
        half: &Arc<Half>,
        reached: impl Fn(&Half, Option<Instant>) -> Progress,
    ) -> Result<(), StorageError> {
        loop {
            let mut progress = patiently(mirror.hang_max, |deadline| reached(half, deadline));
            if progress == Progress::Late {
                let others = mirror.halves();
                let mut others = others.iter().filter(|other| !Arc::ptr_eq(other, half));
                if !others.any(|other| reached(other, Some(Instant::now())) == Progress::Made) {
                    continue;
                }
                // The two may have been woken one after the other.
                progress = reached(half, Some(Instant::now() + tick(mirror.hang_max)));
            }
            return match progress {
                Progress::Made => Ok(()),
                Progress::Failed(reason) => self.drop_half(mirror, half, (Cause::Failed, &reason)),
                Progress::Late => {
                    let reason = format!("no answer within {} ms", mirror.hang_max.as_millis());
                    self.drop_half(mirror, half, (Cause::Hangs, &reason))
                }
            };
        }
    }

    /// Takes a half out of use. When this returns that is recorded; an error if it was the last one.
    pub(crate) fn drop_half(
        &self,
        mirror: &Mirror,
        half: &Arc<Half>,
        (cause, reason): (Cause, &str),
    ) -> Result<(), StorageError> {
        let mut sides = mirror.sides.lock();
        let halves = mirror.halves();
        if !halves.iter().any(|one| Arc::ptr_eq(one, half)) {
            return self.check(); // by somebody else
        }
        let survivor = halves.into_iter().find(|other| !Arc::ptr_eq(other, half) && other.failed().is_none());
        let is_other_damaged = survivor.as_ref().is_some_and(|other| other.damaged.load(Ordering::Relaxed));
        if cause == Cause::Unread && is_other_damaged {
            mirror.note_damage(half, &reason);
        }
        if matches!(cause, Cause::Unread | Cause::Full) && (is_other_damaged || survivor.is_none()) {
            return Ok(());
        }
        half.fail(reason);
        let Some(survivor) = survivor else { return Err(self.fail(format!("half {}: {reason}", half.name))) };
        error!(half = %half.name, reason, "mirror half dropped");
        mirror.dropped.fetch_add(1, Ordering::Relaxed);
        let (lost, kept) = side(&mut sides, half.name);
        let mut record = kept.record.clone();
        record.epoch += 1;
        record.partner_current = false;
        write_record(&survivor, &record).map_err(|error| self.fail(error.to_string()))?;
        kept.record = record;
        (lost.lost, lost.dropped, lost.short) = (Some(reason.to_owned()), Some(half.clone()), false);
        // What it had when it was dropped may be the only good copies. Not where that would be waited for, nor without room.
        let is_damaged = half.damaged.load(Ordering::Relaxed) || (is_other_damaged && cause != Cause::Hangs);
        if is_damaged && cause != Cause::Full {
            lost.rebuild = true;
            mirror.want_rebuild();
        }
        mark_stale(half, &lost.record, lost.telling.clone());
        let mut order = mirror.order.lock();
        order.halves.retain(|one| !Arc::ptr_eq(one, half));
        if Arc::ptr_eq(half, &self.reader()) {
            if let Progress::Failed(reason) = survivor.wait_written(order.number, None) {
                return Err(self.fail(format!("half {}: {reason}", survivor.name)));
            }
            self.read_from(survivor);
        }
        Ok(())
    }

    /// Takes a half out of use whose disk is full, where the other one is whole and owes no answer. Whether it is out of use then.
    pub(crate) fn drop_full(&self, mirror: &Mirror, name: HalfName, reason: &str) -> Result<bool, StorageError> {
        let (number, halves) = {
            let order = mirror.order.lock();
            (order.number, order.halves.clone())
        };
        let Some(half) = halves.iter().find(|half| half.name == name) else { return Ok(true) };
        let Some(other) = halves.iter().find(|other| other.name != name) else { return Ok(false) };
        // What is recorded on it is waited for, with all that waits for this one.
        other.want_sync(number);
        let soon = tick(mirror.hang_max);
        let is_level = other.wait_synced(number, Some(Instant::now() + soon)) == Progress::Made;
        if !is_level || other.reads.oldest() > soon {
            return Ok(false);
        }
        self.drop_half(mirror, half, (Cause::Full, reason))?;
        Ok(mirror.in_use(half).is_none())
    }

    /// Another half to read from, which has all that was written by now, after one could not be read. What follows for that
    /// one: see [`Store::unread`].
    pub(crate) fn elsewhere(&self, half: &Half, error: &StorageError) -> Option<Arc<Half>> {
        self.unread(half, error).ok()?;
        self.other_than(half, error)
    }

    /// A half that could not be read is rebuilt if it is damaged, and dropped if its disk gives no answer.
    pub(crate) fn unread(&self, half: &Half, error: &StorageError) -> Result<(), StorageError> {
        let Some(mirror) = self.mirror.as_ref().filter(|_| error.is_unread()) else { return Ok(()) };
        match (mirror.in_use(half), error) {
            (Some(own), StorageError::Corrupt { .. }) => mirror.note_damage(&own, error),
            (Some(own), _) => self.drop_half(mirror, &own, (Cause::Unread, &error.to_string()))?,
            (None, _) => {}
        }
        Ok(())
    }

    /// As [`Store::unread`], where the other one could not be read either: then none is dropped.
    pub(crate) fn both_unread(&self, both: [(&Half, &StorageError); 2]) {
        let Some(mirror) = &self.mirror else { return };
        for (half, error) in both.into_iter().filter(|(_, error)| error.is_unread()) {
            if let Some(own) = mirror.in_use(half) {
                mirror.note_damage(&own, error);
            }
        }
    }

    /// Another half than one that could not be read, as soon as it has all that was written by now.
    pub(crate) fn other_than(&self, half: &Half, error: &StorageError) -> Option<Arc<Half>> {
        let mirror = self.mirror.as_ref().filter(|_| error.is_unread())?;
        let order = mirror.order.lock();
        let other = order.halves.iter().find(|one| !std::ptr::eq(&raw const ***one, &raw const *half))?.clone();
        if patiently(mirror.hang_max, |deadline| other.wait_written(order.number, deadline)) != Progress::Made {
            return None;
        }
        mirror.served_elsewhere.fetch_add(1, Ordering::Relaxed);
        let reading_here = std::ptr::eq(&raw const **self.reader(), &raw const *half);
        if reading_here && !other.damaged.load(Ordering::Relaxed) {
            self.read_from(other.clone());
        }
        Some(other)
    }

    /// New reads leave a half that takes its time with others. It stays in use. Not to and fro: where both are slow, one of
    /// them is as good as the other until it is to be dropped.
    pub(crate) fn read_elsewhere(&self, mirror: &Mirror, slow: &Arc<Half>, other: &Arc<Half>) {
        if !Arc::ptr_eq(slow, &self.reader()) || other.damaged.load(Ordering::Relaxed) {
            return;
        }
        // Who holds it may wait for a disk.
        let Some(order) = mirror.order.try_lock() else { return };
        let is_there = order.halves.iter().any(|half| Arc::ptr_eq(half, other));
        let is_level = || other.wait_written(order.number, Some(Instant::now())) == Progress::Made;
        let mut moved = mirror.moved.lock();
        let is_rested = moved.is_none_or(|at| at.elapsed() >= mirror.hang_max);
        if is_there && is_rested && is_level() {
            *moved = Some(Instant::now());
            warn!(half = %slow.name, "reads of a mirror half are slow, the other one is read");
            self.read_from(other.clone());
        }
    }

    /// Makes everything durable, and notes that nothing is missing.
    pub(crate) fn close(&self) -> Result<(), StorageError> {
        self.sync()?;
        let Some(mirror) = &self.mirror else { return self.reader().mark.lock().sync() };
        let mut sides = mirror.sides.lock();
        for half in mirror.halves().iter().filter(|half| half.failed().is_none()) {
            half.mark.lock().sync()?;
            let own = side(&mut sides, half.name).0;
            let closed = HalfRecord { closed: Some(half.number()), ..own.record.clone() };
            write_record(half, &closed)?;
            own.record = closed;
        }
        Ok(())
    }
}

/// Gives a batch its number, and to both halves.
pub(crate) fn hand_out(mirror: &Mirror, order: &mut Order, batch: WriteBatch) -> u64 {
    order.number += batch.len() as u64;
    let order = &*order;
    if let [_, second] = &order.halves[..] {
        push(mirror, order, second, WriteBatch::from_data(batch.data()));
    }
    if let Some(first) = order.halves.first() {
        push(mirror, order, first, batch);
    }
    order.number
}

fn push(mirror: &Mirror, order: &Order, half: &Arc<Half>, batch: WriteBatch) {
    let mut batch = Some(batch);
    while let Some(refused) = batch.take() {
        let mut waiting = Some(refused);
        patiently(mirror.hang_max, |deadline| {
            waiting = waiting.take().and_then(|batch| half.push(batch, order.number, deadline?));
            if waiting.is_some() { Progress::Late } else { Progress::Made }
        });
        batch = waiting;
        let mut others = order.halves.iter().filter(|other| !Arc::ptr_eq(other, half));
        if batch.is_some() && others.any(|other| other.failed().is_none() && other.waiting_bytes() == 0) {
            // Recorded before the next acknowledgement, by whoever waits for this half.
            half.fail("its queue stayed full");
        }
    }
}

pub(crate) fn write_record(half: &Half, record: &HalfRecord) -> Result<(), StorageError> {
    half.before(Operation::Record)?;
    record.write(&half.directory)
}

/// Tells the dropped half too, where its disk still takes it: the other one may be missing when it is opened again.
fn mark_stale(half: &Arc<Half>, record: &HalfRecord, telling: Arc<Mutex<()>>) {
    let record = HalfRecord { stale: true, ..record.clone() };
    let half = half.clone();
    let spawned = thread::Builder::new().name("half-stale".to_owned()).spawn(move || {
        let _telling = telling.lock();
        // Whenever its disk answers. By then another one may be in its place, or a rebuilt database.
        let in_place = half.mark.lock().check_in_place().is_ok();
        let same = |found: HalfRecord| found.generation == record.generation && found.opened == record.opened;
        let own = in_place && HalfRecord::read(&half.directory).is_ok_and(|found| found.is_some_and(same));
        if !own || write_record(&half, &record).is_err() {
            warn!(half = %half.name, "the dropped half could not be told");
        }
    });
    if let Err(error) = spawned {
        warn!(%error, "the dropped half could not be told");
    }
}
