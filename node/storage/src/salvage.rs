//! What a resilver does where no half that is in use can be read: it looks into the database that the half to be made
//! anew had when it was dropped, and goes on behind bodies that are found nowhere.
//!
//! Bodies never change: one that its log entry vouches for is the same, and so is one of an entry that was purged there,
//! hence applied, hence committed. A body that is missing is an error that names it, never less mail; so a resilver may go
//! on without it. Any other record may have changed since: it is taken from there where the write-ahead log of the half
//! that went on tells of everything since (`since`), and else ends the resilver.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rocksdb::{Cache, DB, DBRawIterator, IteratorMode, ReadOptions, Snapshot};
use tracing::warn;

use crate::error::StorageError;
use crate::half::{Half, peek};
use crate::half_record::HalfRecord;
use crate::keys::{GroupId, META_PURGED, meta_key, printable, u32_at, u64_at};
use crate::log::{BodyCheck, check_entry};
use crate::mark::{self, Mark};
use crate::options::{self, Tables, VolumeOptions};
use crate::piecemeal::keys_between;
use crate::records::decode;
use crate::scrub::{Item, Records, behind, behind_damage, holds};
use crate::since::Since;
use crate::store::Family;
use crate::tail::PurgedRecord;

/// The database of a dropped half.
pub(crate) enum Old {
    /// It was in use when it was dropped.
    Dropped(Arc<Half>),
    /// Found in its directory; and the volume's number of its last write, where nothing before that is missing.
    Found { db: DB, number: Option<u64> },
}

impl Old {
    /// `None` where there is none, or none that can be opened.
    pub(crate) fn of(
        dropped: Option<Arc<Half>>,
        options: &VolumeOptions,
        cache: &Cache,
        (directory, record): (&Path, &HalfRecord),
    ) -> Option<Old> {
        let generation = record.generation;
        let path = mark::database_path(directory, generation);
        if let Some(half) = dropped.filter(|half| half.directory == directory && half.generation == generation) {
            // Held by a thread that hangs, perhaps.
            let mark = half.mark.try_lock_for(options.hang_max);
            let in_place = mark.is_some_and(|mark| mark.check_in_place().is_ok());
            return in_place.then_some(Old::Dropped(half));
        }
        if !path.join("CURRENT").exists() {
            return None;
        }
        let whole = Mark::open(directory, generation, false).and_then(|mark| {
            let db = peek(options, cache, (&path, Tables::Left))?;
            let number = db.latest_sequence_number() + record.offset;
            mark.check(number)?;
            Ok(Old::Found { db, number: Some(number) })
        });
        let damaged = match whole {
            Ok(old) => return Some(old),
            Err(error) => error,
        };
        warn!(error = %damaged, "of the old database of a half only bodies are taken");
        // Its log may be damaged: what can be read of it is welcome.
        let opened = options::database(options, cache).and_then(|db_options| {
            DB::open_cf_descriptors_read_only(&db_options, &path, options::families(options, cache), false)
                .map_err(|error| StorageError::io(format!("opening {}", path.display()), error))
        });
        let opened = opened.inspect_err(|error| warn!(%error, "the old database of a half cannot be read"));
        opened.ok().map(|db| Old::Found { db, number: None })
    }

    fn db(&self) -> &DB {
        match self {
            Old::Dropped(half) => &half.db,
            Old::Found { db, .. } => db,
        }
    }

    /// The volume's number of its last write; `None` where it is not certain that it has all before that.
    pub(crate) fn number(&self) -> Option<u64> {
        match self {
            Old::Dropped(half) => (!half.is_astray.load(Ordering::Relaxed)).then(|| half.number()),
            Old::Found { number, .. } => *number,
        }
    }

    /// Visits every record of a stretch as it is now: those that nothing was written to `since`, and those that were
    /// written. An error where this database cannot tell one of them. Not for bodies.
    pub(crate) fn recall(
        &self,
        since: &Since,
        family: Family,
        (from, to): (&[u8], &[u8]),
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let db = self.db();
        let handle =
            db.cf_handle(family.name()).ok_or_else(|| StorageError::corrupt(family.name(), "no such column family"))?;
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from.to_vec());
        options.set_iterate_upper_bound(to.to_vec());
        let iterator = db.iterator_cf_opt(&handle, options, IteratorMode::Start);
        // A write that hung may have been done after all. The iterator is of before this look.
        if self.number() != Some(since.from) {
            return Err(StorageError::io("salvage", "the dropped half has changed"));
        }
        for item in iterator {
            let (key, value) = item.map_err(|error| StorageError::read(|| printable(family, from), &error))?;
            if !since.touches(family, &key) {
                holds(family, &key, &value, || None)?;
                visit(&key, &value)?;
            }
        }
        since.records(family, (from, to)).try_for_each(|(key, value)| visit(key, value))
    }

    fn get(&self, family: Family, key: &[u8]) -> Option<Bytes> {
        let db = self.db();
        db.get_cf(&db.cf_handle(family.name())?, key).ok().flatten().map(Bytes::from)
    }

    /// Up to which index a group's log had been purged.
    fn purged(&self, group: GroupId) -> Option<u64> {
        let key = meta_key(META_PURGED, group);
        let record: PurgedRecord = decode(Family::Meta, &key, &self.get(Family::Meta, &key)?).ok()?;
        Some(record.index)
    }
}

/// Bodies of an old database.
struct Rest<'a> {
    old: &'a Old,
    iterator: DBRawIterator<'a>,
    /// Nothing before this is still to come.
    at: Vec<u8>,
}

impl Rest<'_> {
    /// The next one that can be read, behind whatever cannot; `None` at the end.
    fn next_readable(&mut self) -> Option<(Vec<u8>, Bytes)> {
        loop {
            let error = match self.item() {
                Ok(item) => {
                    let (key, value) = item?;
                    let found = (key.to_vec(), Bytes::copy_from_slice(value));
                    self.at.clone_from(&found.0);
                    self.at.push(0);
                    self.advance();
                    return Some(found);
                }
                Err(error) => error,
            };
            // Where it can be read again, or fails in another way.
            let from = std::mem::take(&mut self.at);
            self.at = behind(self, &from, &error)?;
            let at = self.at.clone();
            self.seek(&at);
        }
    }
}

impl Records for Rest<'_> {
    fn seek(&mut self, key: &[u8]) {
        self.iterator.seek(key);
    }

    fn advance(&mut self) {
        if self.iterator.valid() {
            self.iterator.next();
        }
    }

    fn item(&self) -> Result<Option<Item<'_>>, StorageError> {
        match (self.iterator.item(), self.iterator.status()) {
            (Some(item), _) => Ok(Some(item)),
            (None, Ok(())) => Ok(None),
            (None, Err(error)) => Err(StorageError::read(|| "an old body".to_owned(), &error)),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.old.get(Family::Blob, key))
    }
}

/// A source of a resilver, as of the moment at which it is copied.
pub(crate) type Source<'a> = (&'a Arc<Half>, Snapshot<'a>);

/// Where something can be read again, from `from` on, in one of the sources. `None`: not before `end`.
pub(crate) fn readable_again(
    sources: &[Source<'_>],
    family: Family,
    (from, end): (&[u8], &[u8]),
) -> Result<Option<Vec<u8>>, StorageError> {
    let mut to: Option<Vec<u8>> = None;
    for (half, snapshot) in sources {
        let next = behind_damage(half, snapshot, family, (from, end))?;
        to = match (to, next) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    Ok(to)
}

/// What the sources tell of a stretch, key by key.
#[derive(Default)]
pub(crate) struct Told {
    /// Keys of records that one of them can read.
    pub keys: Vec<Vec<u8>>,
    /// Whether all else there is known to have no record.
    pub whole: bool,
}

/// Asks for each record of a stretch by its key.
pub(crate) fn ask(sources: &[Source<'_>], family: Family, (from, to): (&[u8], &[u8])) -> Told {
    let Some(keys) = keys_between(family, from, to) else { return Told::default() };
    let mut told = Told { keys: Vec::new(), whole: true };
    for key in keys {
        match read(sources, family, &key) {
            Some(Some(_)) => told.keys.push(key),
            Some(None) => {}
            None => told.whole = false,
        }
    }
    told
}

/// A record, or that there is none, from whichever source can read it.
pub(crate) fn read(sources: &[Source<'_>], family: Family, key: &[u8]) -> Option<Option<Bytes>> {
    sources.iter().find_map(|(half, snapshot)| half.get(Some(snapshot), family, key).ok())
}

/// A stretch of bodies that no source can read.
pub(crate) struct Stretch {
    /// What the old database has of it.
    pub bodies: Vec<(Vec<u8>, Bytes)>,
    /// Bodies that entries of the log refer to, and that are nowhere.
    pub lost: Vec<Vec<u8>>,
}

/// What there is from `from` on and before `to`, but for the bodies that are there already.
pub(crate) fn stretch(
    sources: &[Source<'_>],
    old: Option<&Old>,
    (from, to): (&[u8], &[u8]),
    there: &[Vec<u8>],
) -> Result<Stretch, StorageError> {
    let range = || {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from.to_vec());
        options.set_iterate_upper_bound(to.to_vec());
        options
    };
    let entry = |key: &[u8]| -> Option<Option<BodyCheck>> {
        let value = sources.iter().find_map(|(half, snapshot)| half.get(Some(snapshot), Family::Log, key).ok()?)?;
        check_entry(key, &value).ok()
    };
    let mut bodies: Vec<(Vec<u8>, Bytes)> = Vec::new();
    if let Some(old) = old
        && let Some(handle) = old.db().cf_handle(Family::Blob.name())
    {
        let mut rest = Rest { old, iterator: old.db().raw_iterator_cf_opt(&handle, range()), at: from.to_vec() };
        rest.seek(from);
        while let Some((key, value)) = rest.next_readable() {
            if there.iter().any(|own| own[..] == key[..]) {
                continue;
            }
            let same = match (entry(&key), u32_at(&key, 0), u64_at(&key, 4)) {
                (Some(check), ..) => check == Some(BodyCheck::of(&value)),
                (None, Some(group), Some(index)) => old.purged(GroupId(group)).is_some_and(|purged| index <= purged),
                _ => false,
            };
            if same {
                bodies.push((key, value));
            }
        }
    }
    let mut lost = Vec::new();
    for (half, snapshot) in sources.iter().take(1) {
        let handle = half.family(Family::Log)?;
        for item in snapshot.iterator_cf_opt(&handle, range(), IteratorMode::Start) {
            let Ok((key, value)) = item else { break };
            let has_body = check_entry(&key, &value).is_ok_and(|check| check.is_some());
            let mut had = there.iter().chain(bodies.iter().map(|(own, _)| own));
            if has_body && !had.any(|own| own[..] == key[..]) {
                lost.push(key.to_vec());
            }
        }
    }
    Ok(Stretch { bodies, lost })
}
