//! The walk over a volume, slice by slice, and what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rocksdb::Snapshot;
use tracing::{info, warn};

use super::cursor::View;
use super::merge::{Merge, Step};
use super::remake::{self, Remade};
use super::repair::{self, logged};
use super::report::{Book, Name};
use super::verdict::{Judgement, Reading, judge};
use super::{ScrubOptions, ScrubProgress, ScrubReport, check, set_family};
use crate::error::StorageError;
use crate::faults::HalfName;
use crate::group::{Group, SpaceRecord};
use crate::half::{Half, Progress};
use crate::keys::{
    GroupId, META_BEGUN, META_HOME, META_INSTALL, META_PURGED, META_SPACE, META_VOTE, log_key, meta_key, space_range,
    u32_at, u64_at,
};
use crate::log::check_entry;
use crate::mirror::{Cause, Mirror};
use crate::patience::patiently;
use crate::records::decode;
use crate::snapshot::IndexSet;
use crate::state::check_record;
use crate::store::{Changes, Family};
use crate::volume::Shared;

/// Bodies before what refers to them.
pub(crate) const ORDER: [Family; 4] = [Family::Blob, Family::Log, Family::State, Family::Meta];
/// References to bodies that were not met, looked at together.
const DOUBTS_MAX: usize = 1000;

pub(crate) struct Scrub<'a> {
    shared: &'a Shared,
    options: &'a ScrubOptions,
    progress: &'a ScrubProgress,
    begun: Instant,
    book: Book,
    /// Bodies that are there, by group: a bit each.
    bodies: BTreeMap<u32, IndexSet>,
    doubts: Vec<Doubt>,
    /// Halves whose disk gives no answer in places, and that are kept as damaged ones.
    as_damaged: Vec<Name>,
}

/// A record that refers to a body that was not met.
struct Doubt {
    family: Family,
    key: Vec<u8>,
    group: GroupId,
    index: u64,
}

/// Why a slice ended.
enum Ended {
    /// There is more.
    Full,
    Whole,
    /// A half's disk gave no answer to a read.
    Unanswered {
        at: usize,
        error: StorageError,
    },
    /// A half has failed, or is far behind the other.
    Lags {
        at: usize,
    },
    Cancelled,
}

impl<'a> Scrub<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        opened: Vec<Group>,
        options: &'a ScrubOptions,
        progress: &'a ScrubProgress,
    ) -> Scrub<'a> {
        let book = Book::new(opened, options.group, shared.store.mirror.is_some());
        let (bodies, doubts, as_damaged) = Default::default();
        Scrub { shared, options, progress, begun: Instant::now(), book, bodies, doubts, as_damaged }
    }

    pub(crate) fn run(mut self) -> Result<ScrubReport, StorageError> {
        let sections = self.sections();
        self.estimate(&sections);
        self.book.report.complete = true;
        'all: for (family, mut from, to) in sections {
            set_family(self.progress, family);
            loop {
                let halves = self.halves();
                match self.slice(&halves, family, &mut from, &to)? {
                    Ended::Full => {}
                    Ended::Whole => break,
                    Ended::Unanswered { at, error } => self.unanswered(&halves, at, error)?,
                    Ended::Lags { at } => self.lags(halves.get(at))?,
                    Ended::Cancelled => {
                        self.book.report.complete = false;
                        break 'all;
                    }
                }
            }
        }
        if self.book.report.complete {
            self.look_again()?;
        }
        self.begin_resilvers();
        let report = self.book.finished();
        let (records, bytes, findings) = (report.records, report.bytes, report.findings.len());
        info!(records, bytes, findings, lost = report.lost, complete = report.complete, "scrubbed");
        Ok(report)
    }

    fn halves(&self) -> Vec<Arc<Half>> {
        match &self.shared.store.mirror {
            Some(mirror) => mirror.halves(),
            None => vec![Arc::clone(&self.shared.store.reader())],
        }
    }

    fn sections(&self) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
        let Some(group) = self.options.group else {
            return ORDER.iter().map(|family| (*family, Vec::new(), vec![u8::MAX; 64])).collect();
        };
        let mut sections = Vec::new();
        for family in [Family::Blob, Family::Log] {
            sections.push((family, log_key(group, 0), log_key(group, u64::MAX)));
        }
        for name in [META_SPACE, META_INSTALL] {
            let key = meta_key(name, group);
            // A record that cannot be read is met below.
            let value = self.halves().iter().find_map(|half| half.get(None, Family::Meta, &key).ok().flatten());
            let record = value.and_then(|value| decode::<SpaceRecord>(Family::Meta, &key, &value).ok());
            if let Some(record) = record {
                let (from, to) = space_range(record.space);
                sections.push((Family::State, from, to));
            }
        }
        for name in [META_VOTE, META_PURGED, META_SPACE, META_INSTALL, META_HOME, META_BEGUN] {
            let key = meta_key(name, group);
            let behind = [&key[..], &[0]].concat();
            sections.push((Family::Meta, key, behind));
        }
        sections
    }

    fn estimate(&self, sections: &[(Family, Vec<u8>, Vec<u8>)]) {
        let halves = self.halves();
        let Some(half) = halves.first() else { return };
        let mut records = 0.0;
        for (family, from, to) in sections {
            let Ok(handle) = half.family(*family) else { continue };
            let keys = half.db.property_int_value_cf(&handle, "rocksdb.estimate-num-keys").ok().flatten();
            let sizes = [(&from[..], &to[..]), (&[], &[u8::MAX; 64])].map(|(from, to)| {
                let sizes = half.db.get_approximate_sizes_cf(&handle, &[rocksdb::Range::new(from, to)]);
                sizes.first().copied().unwrap_or(0) as f64
            });
            let share = if self.options.group.is_none() { 1.0 } else { sizes[0] / sizes[1].max(1.0) };
            records += keys.unwrap_or(0) as f64 * share;
        }
        self.progress.records_estimated.store(records as u64, Ordering::Relaxed);
    }

    /// A half whose disk gives no answer goes, as after any other read, unless the other one is damaged. It may have gone
    /// already: then the slice is simply read again.
    fn unanswered(&mut self, halves: &[Arc<Half>], at: usize, error: StorageError) -> Result<(), StorageError> {
        let (Some(half), Some(mirror)) = (halves.get(at), &self.shared.store.mirror) else { return Err(error) };
        let name = (half.name, half.generation);
        if !error.is_unread() || self.as_damaged.contains(&name) {
            return Err(error);
        }
        let mut others = halves.iter().filter(|other| other.name != half.name);
        let is_damaged = |other: &Arc<Half>| {
            other.damaged.load(Ordering::Relaxed) || self.book.bad.contains_key(&(other.name, other.generation))
        };
        if others.any(is_damaged) {
            warn!(half = %half.name, %error, "a half gives no answer, and the other one is damaged");
            self.as_damaged.push(name);
            return Ok(());
        }
        self.shared.store.drop_half(mirror, half, (Cause::Unread, &error.to_string()))
    }

    fn lags(&self, half: Option<&Arc<Half>>) -> Result<(), StorageError> {
        let reason = "it does not answer a scrub";
        match (half, &self.shared.store.mirror) {
            (Some(half), Some(mirror)) => self.shared.store.drop_half(mirror, half, (Cause::Hangs, reason)),
            _ => Ok(()),
        }
    }

    fn views<'v>(&self, halves: &'v [Arc<Half>], snapshots: &'v [Snapshot<'v>]) -> Vec<View<'v>> {
        let both = halves.iter().zip(snapshots);
        let as_damage = |half: &Half| self.as_damaged.contains(&(half.name, half.generation));
        both.map(|(half, snapshot)| View { half, snapshot, as_damage: as_damage(half) }).collect()
    }

    fn begin_resilvers(&mut self) {
        let Some(mirror) = &self.shared.store.mirror else { return };
        if self.book.report.differing > 0 {
            // The resilver would choose one of the two.
            warn!("halves differ and nothing tells which is right: no half is made anew");
            return;
        }
        let Remade { resilvers, unmade } = remake::begin(mirror, &self.book.bad);
        (self.book.report.resilvers, self.book.report.unmade) = (resilvers, unmade);
    }
}

/// A slice.
impl Scrub<'_> {
    /// Reads on from `from`, which is where the next one begins.
    fn slice(
        &mut self,
        halves: &[Arc<Half>],
        family: Family,
        from: &mut Vec<u8>,
        to: &[u8],
    ) -> Result<Ended, StorageError> {
        let snapshots = match &self.shared.store.mirror {
            Some(mirror) => match level(mirror, halves) {
                Level::Taken(snapshots) => snapshots,
                Level::Again => return Ok(self.pause(false).map_or(Ended::Full, |()| Ended::Cancelled)),
                Level::Lags(at) => return Ok(Ended::Lags { at }),
            },
            None => halves.iter().map(|half| half.db.snapshot()).collect(),
        };
        let views = self.views(halves, &snapshots);
        self.book.read_spaces(&views);
        let names: Vec<(HalfName, u64)> = halves.iter().map(|half| (half.name, half.generation)).collect();
        let mut cursors = Vec::new();
        for (at, view) in views.iter().enumerate() {
            match view.cursor(family, to.to_vec()) {
                Ok(cursor) => cursors.push(cursor),
                Err(error) => return Ok(Ended::Unanswered { at, error }),
            }
        }
        let mut merge = Merge::new(cursors, from);
        let end = self.book.report.bytes.saturating_add(self.options.slice_bytes);
        loop {
            let gap = match merge.step() {
                Step::End => {
                    self.book.place_ended(family, None, &names);
                    return Ok(Ended::Whole);
                }
                Step::Broken { at, error, .. } if views.len() > 1 && !is_damage(&error) => {
                    return Ok(Ended::Unanswered { at, error });
                }
                Step::Broken { at, from, error } => {
                    self.book.broken(names[at], from, error);
                    None
                }
                Step::Record { key, readings } => {
                    if let Some((at, error)) = unanswered(&readings) {
                        return Ok(Ended::Unanswered { at, error });
                    }
                    self.book.reached(family, key, &readings, &names);
                    self.record(&views, &names, family, key, &readings)?;
                    (*from).clear();
                    from.extend_from_slice(key);
                    from.push(0);
                    None
                }
                Step::Gap { from, to, unknown, error } => Some((from, to, unknown, error)),
            };
            if let Some((gap_from, gap_to, unknown, error)) = gap {
                let keys = self.book.keys_between(family, &gap_from, gap_to.as_deref()).filter(|_| unknown);
                // Of bodies it is known which ones there should be, and of entries.
                let is_listed = matches!(family, Family::Blob | Family::Log);
                let mut known = keys.is_some();
                for key in keys.iter().flatten() {
                    let readings = merge.read(key);
                    if let Some((at, error)) = unanswered(&readings) {
                        return Ok(Ended::Unanswered { at, error });
                    }
                    if !is_listed && readings.iter().all(Result::is_err) {
                        known = false;
                        continue;
                    }
                    self.record(&views, &names, family, key, &readings)?;
                }
                // Bodies are missed by what refers to them.
                match unknown && !known && family != Family::Blob {
                    true => self.book.lost_place(family, &gap_from, gap_to.as_deref(), &error, &names),
                    false => self.book.place_ended(family, gap_to.as_deref(), &names),
                }
                if let Some(gap_to) = gap_to {
                    *from = gap_to;
                }
            }
            if self.pause(true).is_some() {
                return Ok(Ended::Cancelled);
            }
            if self.book.report.bytes >= end {
                return Ok(Ended::Full);
            }
        }
    }

    fn record(
        &mut self,
        views: &[View<'_>],
        names: &[(HalfName, u64)],
        family: Family,
        key: &[u8],
        readings: &[Reading<'_>],
    ) -> Result<(), StorageError> {
        self.book.count(key, readings, names);
        let log = || views.iter().find_map(|view| logged(view.get(Family::Log, key), key)).flatten();
        let judgement = judge(readings, |value| check::holds(family, key, value, log));
        if family == Family::Blob
            && let (Some(group), Some(index)) = (u32_at(key, 0), u64_at(key, 4))
            && readings.iter().any(|reading| !matches!(reading, Ok(None)))
        {
            self.bodies.entry(group).or_default().insert(index);
        }
        let mut rewritten = false;
        match &judgement {
            Judgement::Good => {}
            // A block that cannot be read is not put right by a write.
            Judgement::Damaged { at, .. } | Judgement::Missing { at } => {
                if let (Some(Ok(_)), Some(mirror)) = (readings.get(*at), &self.shared.store.mirror) {
                    rewritten = repair::rewrite(&self.shared.store, mirror, family, key)?;
                }
            }
            Judgement::Differs | Judgement::Lost { .. } => {}
        }
        self.book.judged(family, key, readings, judgement, names, rewritten);
        self.progress.findings.store(self.book.findings(), Ordering::Relaxed);
        let good = readings.iter().find_map(|reading| reading.as_ref().ok()?.as_deref());
        if let (Some(value), Family::Log | Family::State) = (good, family) {
            self.references(views, family, key, value)?;
        }
        Ok(())
    }

    /// Notes bodies that a record needs and that were not met: they may have come since.
    fn references(&mut self, views: &[View<'_>], family: Family, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        let Some(group) = self.book.refers_to_bodies(family, key) else { return Ok(()) };
        let applied = self.options.applied.get(&group).filter(|_| family == Family::Log);
        let is_applied = |index: u64| applied.is_some_and(|applied| index <= *applied);
        for index in referred(family, key, value).into_iter().filter(|index| !is_applied(*index)) {
            self.book.needs(&log_key(group, index), group);
            if self.bodies.get(&group.0).is_some_and(|bodies| bodies.contains(index)) {
                continue;
            }
            let body = log_key(group, index);
            if !views.iter().any(|view| matches!(view.get(Family::Blob, &body), Ok(Some(_)))) {
                self.doubts.push(Doubt { family, key: key.to_vec(), group, index });
            }
        }
        if self.doubts.len() >= DOUBTS_MAX { self.look_again() } else { Ok(()) }
    }

    /// An entry may be applied before it is written here: what refers to a body is looked at again when all that was
    /// queued before is written.
    fn look_again(&mut self) -> Result<(), StorageError> {
        let doubts = std::mem::take(&mut self.doubts);
        if doubts.is_empty() {
            return Ok(());
        }
        self.shared.writer.write_and_wait(Changes::default())?;
        let halves = self.halves();
        let snapshots: Vec<Snapshot<'_>> = halves.iter().map(|half| half.db.snapshot()).collect();
        let views = self.views(&halves, &snapshots);
        for Doubt { family, key, group, index } in doubts {
            let body = log_key(group, index);
            let found = views.iter().any(|view| matches!(view.get(Family::Blob, &body), Ok(Some(_))));
            let refers = views.iter().any(|view| {
                let value = view.get(family, &key).ok().flatten();
                value.is_some_and(|value| referred(family, &key, &value).contains(&index))
            });
            if refers && !found {
                self.book.lost_body(&body, group, (family, &key));
            }
        }
        Ok(())
    }

    /// Keeps to the speed; `Some` if the scrub is to end.
    fn pause(&self, publish: bool) -> Option<()> {
        let bytes = self.book.report.bytes;
        if publish {
            self.progress.bytes.store(bytes, Ordering::Relaxed);
            self.progress.records.store(self.book.report.records, Ordering::Relaxed);
        }
        let due = Duration::from_secs_f64(bytes as f64 / self.options.bytes_per_s.max(1) as f64);
        loop {
            let closing = self.shared.store.mirror.as_ref().is_some_and(|mirror| mirror.rebuild.lock().closing);
            if self.progress.cancelled.load(Ordering::Relaxed) || closing {
                return Some(());
            }
            let early = due.checked_sub(self.begun.elapsed()).filter(|early| !early.is_zero())?;
            thread::sleep(early.min(Duration::from_millis(50)));
        }
    }
}

enum Level<'a> {
    Taken(Vec<Snapshot<'a>>),
    /// They are not the halves in use any more, or none of them is level yet.
    Again,
    /// This one has failed, or lags far behind the other.
    Lags(usize),
}

/// Snapshots of both halves at one number.
fn level<'a>(mirror: &Mirror, halves: &'a [Arc<Half>]) -> Level<'a> {
    let wait = |number: u64| {
        let written = |half: &Arc<Half>| patiently(mirror.hang_max, |deadline| half.wait_written(number, deadline));
        let reached: Vec<Progress> = halves.iter().map(written).collect();
        let made = reached.contains(&Progress::Made);
        let lags = reached.iter().position(|one| matches!(one, Progress::Failed(_)) || made && *one == Progress::Late);
        match lags {
            Some(at) => Some(Level::Lags(at)),
            None if made => None,
            None => Some(Level::Again),
        }
    };
    // First without holding up writes.
    let number = mirror.order.lock().number;
    if let Some(not_yet) = wait(number) {
        return not_yet;
    }
    let order = mirror.order.lock();
    let same = order.halves.len() == halves.len() && order.halves.iter().zip(halves).all(|(a, b)| Arc::ptr_eq(a, b));
    if !same {
        return Level::Again;
    }
    wait(order.number).unwrap_or_else(|| Level::Taken(halves.iter().map(|half| half.db.snapshot()).collect()))
}

fn is_damage(error: &StorageError) -> bool {
    matches!(error, StorageError::Corrupt { .. })
}

/// In a mirror, a half that did not answer where the other one did.
fn unanswered(readings: &[Reading<'_>]) -> Option<(usize, StorageError)> {
    let errors = readings.iter().enumerate().filter_map(|(at, reading)| Some((at, reading.as_ref().err()?)));
    let mut errors = errors.filter(|(_, error)| readings.len() > 1 && !is_damage(error));
    let all = readings.iter().all(Result::is_err);
    errors.next().filter(|(_, error)| !all || error.is_want()).map(|(at, error)| (at, error.clone()))
}

/// Log indices of the bodies that a record refers to; none if it cannot be read, which is told elsewhere.
pub(crate) fn referred(family: Family, key: &[u8], value: &[u8]) -> Vec<u64> {
    match family {
        Family::Log => match check_entry(key, value) {
            Ok(Some(_)) => u64_at(key, 4).into_iter().collect(),
            _ => Vec::new(),
        },
        Family::State => {
            let chunks = check_record(key, value).unwrap_or_default();
            chunks.iter().map(|chunk| chunk.index).collect()
        }
        Family::Blob | Family::Meta => Vec::new(),
    }
}
