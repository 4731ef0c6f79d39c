//! The copy that a resilver makes: every record of the sources as of one moment, into new tables.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rocksdb::WriteBatch;
use tracing::warn;

use super::Resilver;
use crate::error::StorageError;
use crate::group::SpaceRecord;
use crate::half::Half;
use crate::keys::{GroupId, Key, Kind, META_SPACE, log_key, prefix_range, printable, u32_at};
use crate::losses::Losses;
use crate::pace::Pace;
use crate::records::decode;
use crate::salvage::{Old, Source, Stretch, ask, read, readable_again, stretch};
use crate::scrub::referred;
use crate::since::Since;
use crate::store::{Family, Walked, walk};

/// Written to the new database at once.
const BATCH_BYTES: usize = 1 << 20;
/// Before it is looked again whether to write: the volume may be closed, or the rate be another one.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// What is copied as it was at one moment.
pub(super) struct Copying<'a> {
    resilver: &'a Resilver<'a>,
    new: &'a Half,
    pace: Pace,
    old: Option<&'a Old>,
    /// Of that moment.
    number: u64,
    /// What was written since the old database; read when it is needed.
    since: Option<Since>,
    batch: WriteBatch,
    /// Where no source can be walked over bodies.
    holes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The bodies there that the log tells of and that were not found.
    lost: BTreeSet<Vec<u8>>,
}

impl<'a> Copying<'a> {
    pub(super) fn new(resilver: &'a Resilver<'a>, new: &'a Half, old: Option<&'a Old>, number: u64) -> Copying<'a> {
        let pace = Pace::new(&resilver.store.round_times, resilver.options.resilver_bytes_per_s, Instant::now());
        let (since, batch, holes, lost) = Default::default();
        Copying { resilver, new, pace, old, number, since, batch, holes, lost }
    }

    /// Copies a column family. What cannot be read in one source comes from the other: both are of one moment.
    pub(super) fn family(&mut self, sources: &[Source<'_>], family: Family) -> Result<(), StorageError> {
        let (mut from, end) = (Vec::new(), vec![u8::MAX; 64]);
        let (mut walked, mut at) = (Walked::default(), 0);
        // Neither this source nor the other one can be read from `from` on.
        let mut stuck = false;
        loop {
            let Some((half, snapshot)) = sources.get(at) else { return Ok(()) };
            let before = walked.items;
            let iterator = half.iterator(Some(snapshot), family, end.clone())?;
            let broken = walk(iterator, family, &from, &mut walked, |key, value| {
                self.put(family, key, value)?;
                Ok(true)
            })?;
            let Some(error) = broken else { return Ok(()) };
            if walked.items > before {
                (stuck, from) = (false, walked.after());
            }
            if !error.is_unread() {
                return Err(error);
            }
            if half.note_damage() {
                warn!(half = %half.name, %error, "mirror half is damaged");
            }
            if !stuck && sources.len() > 1 {
                (stuck, at) = (true, 1 - at);
                continue;
            }
            let to = readable_again(sources, family, (&from, &end))?;
            self.stretch(sources, family, (&from, to.as_deref().unwrap_or(&end)), error)?;
            let Some(to) = to else { return Ok(()) };
            (stuck, from) = (false, to);
        }
    }

    /// What no walk can read, from `from` on and before `to`: record by record, or from the old database.
    fn stretch(
        &mut self,
        sources: &[Source<'_>],
        family: Family,
        (from, to): (&[u8], &[u8]),
        error: StorageError,
    ) -> Result<(), StorageError> {
        let told = ask(sources, family, (from, to));
        let mirror = self.resilver.mirror;
        if !told.whole && family != Family::Blob {
            let recalled = self.recall(sources, family, (from, to));
            // What was met first is told, as it is where there is no old database.
            return recalled.map_err(|second| {
                warn!(%second, "the old database of the half does not help");
                error
            });
        }
        for key in &told.keys {
            if let Some(Some(value)) = read(sources, family, key) {
                self.put(family, key, &value)?;
            }
        }
        if told.whole {
            return Ok(());
        }
        let Stretch { bodies, lost } = stretch(sources, self.old, (from, to), &told.keys)?;
        for (key, value) in bodies {
            self.put(family, &key, &value)?;
            mirror.salvaged.fetch_add(1, Ordering::Relaxed);
        }
        for body in lost {
            if !self.found(sources, &body)? {
                self.lost.insert(body);
            }
        }
        self.holes.push((from.to_vec(), to.to_vec()));
        Ok(())
    }

    /// Copies a body that some source can read though no walk comes to it: a walk needs more of the tables than one record does.
    fn found(&mut self, sources: &[Source<'_>], body: &[u8]) -> Result<bool, StorageError> {
        let Some(Some(value)) = read(sources, Family::Blob, body) else { return Ok(false) };
        self.put(Family::Blob, body, &value)?;
        self.resilver.mirror.salvaged.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// The bodies that are in none of the sources, and among them those that a message has: others go with the log. Of what
    /// was copied, once all of it is; bodies that a message has and that no walk has come to are copied now.
    pub(super) fn lost(&mut self, sources: &[Source<'_>]) -> Result<(BTreeSet<Vec<u8>>, Losses), StorageError> {
        let mut losses = Losses::default();
        let mut lost = std::mem::take(&mut self.lost);
        if self.holes.is_empty() {
            return Ok((lost, losses));
        }
        let mut spaces: Vec<(GroupId, u32)> = Vec::new();
        self.each(Family::Meta, (vec![META_SPACE], vec![META_SPACE + 1]), |key, value| {
            let record: SpaceRecord = decode(Family::Meta, key, value)?;
            spaces.extend(u32_at(key, 1).map(|group| (GroupId(group), record.space)));
            Ok(())
        })?;
        for (group, space) in spaces {
            losses.found_in(group, space);
            let (first, last) = (log_key(group, 0), log_key(group, u64::MAX));
            if !self.holes.iter().any(|(from, to)| *from <= last && *to > first) {
                continue;
            }
            let mut missing: BTreeSet<Vec<u8>> = BTreeSet::new();
            for kind in [Kind::Body, Kind::Upload] {
                self.each(Family::State, prefix_range(&Key::state(space, kind).done()), |key, value| {
                    let bodies = referred(Family::State, key, value).into_iter().map(|index| log_key(group, index));
                    for body in bodies.filter(|body| self.holes.iter().any(|(from, to)| from <= body && body < to)) {
                        if self.new.get(None, Family::Blob, &body)?.is_none() {
                            missing.insert(body);
                        }
                    }
                    Ok(())
                })?;
            }
            for body in missing {
                if !self.found(sources, &body)? {
                    losses.add(Some(group), printable(Family::Blob, &body));
                    lost.insert(body);
                }
            }
        }
        self.write()?;
        Ok((lost, losses))
    }

    /// Visits what was copied.
    fn each(
        &self,
        family: Family,
        (from, to): (Vec<u8>, Vec<u8>),
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let iterator = self.new.iterator(None, family, to)?;
        let broken = walk(iterator, family, &from, &mut Walked::default(), |key, value| {
            visit(key, value)?;
            Ok(true)
        })?;
        broken.map_or(Ok(()), Err)
    }

    /// Takes records from the old database, where the log of the half that went on tells what has changed since.
    fn recall(&mut self, sources: &[Source<'_>], family: Family, range: (&[u8], &[u8])) -> Result<(), StorageError> {
        let nothing = || StorageError::io("salvage", "there is none that is whole");
        let (old, (source, _)) = self.old.zip(sources.first()).ok_or_else(nothing)?;
        let since = match self.since.take() {
            Some(since) => since,
            None => Since::read(source, old.number().ok_or_else(nothing)?, self.number)?,
        };
        let recalled = old.recall(&since, family, range, |key, value| {
            self.put(family, key, value)?;
            self.resilver.mirror.recalled.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        self.since = Some(since);
        recalled
    }

    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.batch.put_cf(&self.new.family(family)?, key, value);
        if self.batch.size_in_bytes() >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    pub(super) fn write(&mut self) -> Result<(), StorageError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        while let Some(early) = self.pace.wait(Instant::now()) {
            self.resilver.check()?;
            thread::sleep(early.min(WAIT_MAX));
        }
        self.resilver.check()?;
        let mirror = self.resilver.mirror;
        let (bytes, records) = (batch.size_in_bytes() as u64, batch.len() as u64);
        self.new.write_unlogged(batch)?;
        self.pace.wrote(bytes);
        mirror.copied_records.fetch_add(records, Ordering::Relaxed);
        mirror.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}
