//! Opening a volume: which halves there are, which of them may be used, and the tail that one of them lacks after a
//! crash.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{Cache, DB};
use tracing::{info, warn};

use crate::error::StorageError;
use crate::faults::HalfName;
use crate::half::{Half, peek};
use crate::half_record::HalfRecord;
use crate::location::Location;
use crate::mark::{self, Mark};
use crate::mirror::{Mirror, Side, write_record};
use crate::options::{Tables, VolumeOptions};
use crate::store::Store;

pub(crate) fn open(options: &VolumeOptions) -> Result<Store, StorageError> {
    match &options.mirror {
        None => open_alone(options),
        Some(second) => open_mirror(options, [options.directory.clone(), second.clone()]),
    }
}

fn open_alone(options: &VolumeOptions) -> Result<Store, StorageError> {
    let directory = &options.directory;
    if HalfRecord::exists(directory) {
        let reason = format!("{} is half of a mirror: the other half must be named too", directory.display());
        return Err(StorageError::Refused(reason));
    }
    mark::create_directory(directory)?;
    let mark = Mark::open(directory, 0, options.create)?;
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let half = Half::open(options, &cache, (HalfName::A, directory.clone(), mark), (0, 0))?;
    Ok(Store::new(Arc::new(half), None))
}

/// What is in a directory.
enum Found {
    /// Not even the disk that it should be on.
    Missing,
    Empty,
    /// A volume of one disk.
    Alone,
    Half(HalfRecord),
    Damaged(StorageError),
}

fn look(directory: &Path) -> Found {
    let parent_exists = directory.parent().is_none_or(|parent| parent.as_os_str().is_empty() || parent.is_dir());
    match HalfRecord::read(directory) {
        Ok(Some(record)) => Found::Half(record),
        Err(error) => Found::Damaged(error),
        Ok(None) if !directory.is_dir() && !parent_exists => Found::Missing,
        Ok(None) => match mark::generations(directory) {
            Ok(found) if found.is_empty() => Found::Empty,
            Ok(_) => Found::Alone,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Empty,
            Err(error) => Found::Damaged(StorageError::io(format!("listing {}", directory.display()), error)),
        },
    }
}

fn fresh(volume: u64, name: HalfName, partner_current: bool) -> HalfRecord {
    HalfRecord {
        volume,
        name,
        epoch: 1,
        opened: 0,
        partner_current,
        stale: false,
        generation: 0,
        offset: 0,
        closed: None,
    }
}

/// A number that no other volume has.
fn fresh_volume() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Whether what is written to one directory may end up in the other.
pub(crate) fn is_one(first: &Path, second: &Path) -> bool {
    match (Location::of(first), Location::of(second)) {
        (Some(one), Some(other)) => one.overlaps(&other),
        _ => first == second,
    }
}

/// A half of this volume whose record is not there any more.
struct Unrecorded {
    at: usize,
    /// The number up to which it had what was acknowledged, at least.
    acknowledged: u64,
}

/// The two places, each with why it cannot be used, if so; and which of them has lost its record. Makes the records of a new
/// mirror.
fn sides(options: &VolumeOptions, directories: [PathBuf; 2]) -> Result<([Side; 2], Option<Unrecorded>), StorageError> {
    let refused = |reason: String| Err(StorageError::Refused(reason));
    let [first, second] = &directories;
    let shown = [first.display(), second.display()];
    if is_one(first, second) {
        return refused(format!("{} and {} are one directory, or one is within the other", shown[0], shown[1]));
    }
    let lost = |reason: &str| Some(reason.to_owned());
    let mut unrecorded = None;
    let (records, lost) = match (look(first), look(second)) {
        (Found::Half(one), Found::Half(other)) => {
            if one.volume != other.volume {
                return refused(format!("{} and {} are halves of different volumes", shown[0], shown[1]));
            }
            if one.name == other.name {
                return refused(format!("{} and {} are the same half of one volume", shown[0], shown[1]));
            }
            let lost = judge(&one, &other);
            ([one, other], lost)
        }
        (Found::Half(one), Found::Alone) => {
            let (other, reason) = unrecorded_half(options, second, &one)?;
            unrecorded = Some(Unrecorded { at: 1, acknowledged: mark::acknowledged(second)? });
            ([one.clone(), other], [own_reason(&one), reason])
        }
        (Found::Alone, Found::Half(one)) => {
            let (other, reason) = unrecorded_half(options, first, &one)?;
            unrecorded = Some(Unrecorded { at: 0, acknowledged: mark::acknowledged(first)? });
            ([other, one.clone()], [reason, own_reason(&one)])
        }
        (Found::Half(one), other) => {
            let reason = without(&other);
            ([one.clone(), fresh(one.volume, one.name.other(), false)], [own_reason(&one), lost(&reason)])
        }
        (other, Found::Half(one)) => {
            let reason = without(&other);
            ([fresh(one.volume, one.name.other(), false), one.clone()], [lost(&reason), own_reason(&one)])
        }
        (Found::Damaged(error), _) | (_, Found::Damaged(error)) => return Err(error),
        (Found::Alone, Found::Empty) => {
            let volume = fresh_volume();
            ([fresh(volume, HalfName::A, false), fresh(volume, HalfName::B, false)], [None, lost("it is new")])
        }
        (Found::Empty | Found::Missing, Found::Empty | Found::Missing) => {
            if !options.create {
                return refused(format!("{} and {} are empty, but a volume was expected there", shown[0], shown[1]));
            }
            let volume = fresh_volume();
            let records = [fresh(volume, HalfName::A, true), fresh(volume, HalfName::B, true)];
            for (record, directory) in records.iter().zip(&directories) {
                mark::create_directory(directory)?;
                record.write(directory)?;
            }
            (records, [None, None])
        }
        (Found::Alone, _) | (_, Found::Alone) => {
            return refused(format!(
                "{} and {} are no mirror: to make one of a volume, name it first and an empty directory beside it",
                shown[0], shown[1]
            ));
        }
    };
    let [directory, other_directory] = directories;
    let [record, other_record] = records;
    let [lost, other_lost] = lost;
    let sides = [Side::new(directory, record, lost), Side::new(other_directory, other_record, other_lost)];
    Ok((sides, unrecorded))
}

/// The record that a half gets which has none any more, though it belongs beside this one: it is never opened again.
fn unrecorded_half(
    options: &VolumeOptions,
    directory: &Path,
    one: &HalfRecord,
) -> Result<(HalfRecord, Option<String>), StorageError> {
    if !options.is_one_volume {
        let reason = format!("{} holds another volume than volume {:016x}", directory.display(), one.volume);
        return Err(StorageError::Refused(reason));
    }
    let doing = |error| StorageError::io(format!("listing {}", directory.display()), error);
    let generation = mark::generations(directory).map_err(doing)?.last().copied().unwrap_or(0);
    let record = HalfRecord { stale: true, generation, ..fresh(one.volume, one.name.other(), false) };
    Ok((record, Some("its record has gone".to_owned())))
}

impl Unrecorded {
    /// It is to be made anew from the other half, unless it had more than that one has.
    fn give_way(&self, sides: &[Side; 2], number: u64) -> Result<(), StorageError> {
        let [first, second] = sides;
        let (own, other) = if self.at == 0 { (first, second) } else { (second, first) };
        if self.acknowledged > number {
            return Err(StorageError::Refused(format!(
                "{} has lost its record, and had number {} when {} has {number}: put the newest disks back, or move that \
                 directory away to go on without what it had",
                own.directory.display(),
                self.acknowledged,
                other.directory.display(),
            )));
        }
        if let Err(error) = own.record.write(&own.directory) {
            warn!(%error, directory = %own.directory.display(), "a half without a record does not take one");
        }
        Ok(())
    }
}

fn without(found: &Found) -> String {
    match found {
        Found::Missing => "its disk is missing".to_owned(),
        Found::Damaged(error) => error.to_string(),
        Found::Empty | Found::Alone | Found::Half(_) => "it is empty".to_owned(),
    }
}

fn own_reason(record: &HalfRecord) -> Option<String> {
    record.stale.then(|| "it was dropped, and the half that went on is not there".to_owned())
}

/// Which of two halves of one volume may not be used.
fn judge(one: &HalfRecord, other: &HalfRecord) -> [Option<String>; 2] {
    let mut lost = [own_reason(one), own_reason(other)];
    let behind = |own: &HalfRecord, partner: &HalfRecord| {
        if own.epoch < partner.epoch {
            Some("the other half went on without it")
        } else if own.epoch == partner.epoch && !partner.partner_current {
            Some("the other half has left it behind")
        } else if own.epoch == partner.epoch && own.opened + 1 < partner.opened {
            Some("it is an old copy")
        } else {
            None
        }
    };
    for (place, reason) in lost.iter_mut().zip([behind(one, other), behind(other, one)]) {
        if place.is_none() {
            *place = reason.map(str::to_owned);
        }
    }
    lost
}

/// A half on its way to be opened.
struct Candidate {
    at: usize,
    mark: Mark,
}

fn open_mirror(options: &VolumeOptions, directories: [PathBuf; 2]) -> Result<Store, StorageError> {
    let (mut sides, unrecorded) = sides(options, directories)?;
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let mut first_error = None;
    let mut candidates = Vec::new();
    for (at, side) in sides.iter_mut().enumerate().filter(|(_, side)| side.lost.is_none()) {
        let record = &side.record;
        // A volume that was never opened holds nothing that could be lost.
        match Mark::open(&side.directory, record.generation, record.opened == 0) {
            Ok(mark) => candidates.push(Candidate { at, mark }),
            Err(error) => {
                side.lost = Some(error.to_string());
                first_error.get_or_insert(error);
            }
        }
    }
    let mut halves = Vec::new();
    let was_closed = sides[0].record.closed.is_some() && sides[0].record.closed == sides[1].record.closed;
    let is_new = sides.iter().all(|side| side.record.opened == 0);
    if candidates.len() == 2 && !was_closed && !is_new {
        level(options, &cache, &mut sides, &mut candidates, &mut halves)?;
    }
    for Candidate { at, mark } in candidates {
        let side = &mut sides[at];
        if side.lost.is_some() {
            continue;
        }
        match open_half(options, &cache, side, mark) {
            Ok(half) => halves.push((at, half)),
            Err(error) => {
                side.lost = Some(error.to_string());
                first_error.get_or_insert(error);
            }
        }
    }
    let last = halves.iter().map(|(_, half)| half.number()).max().unwrap_or(0);
    halves.retain(|(at, half)| {
        let level = half.number() == last;
        if !level {
            sides[*at].lost = Some(format!("it holds number {} of {last}", half.number()));
        }
        level
    });
    halves.sort_by_key(|(at, _)| *at);
    if let (Some(unrecorded), false) = (&unrecorded, halves.is_empty()) {
        unrecorded.give_way(&sides, last)?;
    }
    note_opening(&mut sides, &mut halves)?;
    if halves.is_empty() {
        let reasons = sides.iter().map(|side| {
            format!("{}: {}", side.directory.display(), side.lost.as_deref().unwrap_or("its record cannot be written"))
        });
        let reason = reasons.collect::<Vec<_>>().join("; ");
        return Err(first_error.unwrap_or(StorageError::Refused(reason)));
    }
    for side in &mut sides {
        side.rebuild = side.lost.is_some();
        if let Some(reason) = &side.lost {
            warn!(half = %side.record.name, directory = %side.directory.display(), reason, "mirror half is not in use");
        }
    }
    let halves: Vec<Arc<Half>> = halves.into_iter().map(|(_, half)| Arc::new(half)).collect();
    for half in &halves {
        if let Err(error) = mark::remove_others(&half.directory, &[half.generation]) {
            warn!(%error, directory = %half.directory.display(), "the rest of a resilver could not be removed");
        }
        half.start()?;
    }
    let first = halves[0].clone();
    let mirror = Mirror::new(halves, sides, options.hang_max);
    mirror.want_rebuild();
    Ok(Store::new(first, Some(mirror)))
}

fn open_half(options: &VolumeOptions, cache: &Cache, side: &Side, mark: Mark) -> Result<Half, StorageError> {
    let HalfRecord { name, generation, offset, .. } = side.record;
    Half::open(options, cache, (name, side.directory.clone(), mark), (generation, offset))
}

/// Writes the records of the halves that are opened: before anything else happens, whoever stays behind is told so by
/// the other one.
fn note_opening(sides: &mut [Side; 2], halves: &mut Vec<(usize, Half)>) -> Result<(), StorageError> {
    let opened = sides.iter().map(|side| side.record.opened).max().unwrap_or(0) + 1;
    let mut at = 0;
    while let Some((place, half)) = halves.get(at) {
        let both = halves.len() == 2;
        let before = &sides[*place].record;
        let leaves = !both && before.partner_current;
        let record = HalfRecord {
            epoch: before.epoch + u64::from(leaves),
            opened,
            partner_current: both,
            closed: None,
            ..before.clone()
        };
        match write_record(half, &record) {
            Ok(()) => {
                sides[*place].record = record;
                at += 1;
            }
            Err(error) if both => {
                sides[*place].lost = Some(error.to_string());
                halves.remove(at);
                at = 0; // the other one must say so
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// After a crash each half may lack an unsynced tail of its own: the shorter one is given the rest from the other's
/// write-ahead log. Neither log is touched before it is known which that is.
fn level(
    options: &VolumeOptions,
    cache: &Cache,
    sides: &mut [Side; 2],
    candidates: &mut Vec<Candidate>,
    halves: &mut Vec<(usize, Half)>,
) -> Result<(), StorageError> {
    let mut peeked = Vec::new();
    for side in sides.iter_mut() {
        let path = mark::database_path(&side.directory, side.record.generation);
        match peek(options, cache, (&path, Tables::Left)) {
            Ok(db) => peeked.push(db),
            Err(error) => side.lost = Some(error.to_string()),
        }
    }
    let [first, second] = &peeked[..] else { return Ok(()) };
    let numbers = [first, second].map(DB::latest_sequence_number);
    let numbers = [numbers[0] + sides[0].record.offset, numbers[1] + sides[1].record.offset];
    if numbers[0] == numbers[1] {
        return Ok(());
    }
    let behind = usize::from(numbers[1] < numbers[0]);
    let ahead = 1 - behind;
    let Some(at) = candidates.iter().position(|candidate| candidate.at == behind) else { return Ok(()) };
    let Candidate { mark, .. } = candidates.remove(at);
    // A database that is open for reading must not see its files go.
    let source = peeked.swap_remove(ahead);
    drop(peeked);
    let caught_up = open_half(options, cache, &sides[behind], mark).and_then(|half| {
        replay(&source, sides[ahead].record.offset, &half, numbers[ahead])?;
        half.sync()?;
        Ok(half)
    });
    match caught_up {
        Ok(half) => {
            info!(half = %half.name, from = numbers[behind], to = numbers[ahead], "mirror half has caught up");
            halves.push((behind, half));
        }
        Err(error) => sides[behind].lost = Some(error.to_string()),
    }
    Ok(())
}

/// Writes to a half what another database has had since, up to a number. Nothing may be missing.
pub(crate) fn replay(source: &DB, offset: u64, half: &Half, to: u64) -> Result<u64, StorageError> {
    let mut bytes = 0;
    let doing = |error: rocksdb::Error| StorageError::io("reading a write-ahead log", error);
    let from = half.number();
    let updates = source.get_updates_since(from.saturating_sub(offset)).map_err(doing)?;
    for update in updates {
        if half.number() >= to {
            break;
        }
        let (sequence, batch) = update.map_err(doing)?;
        if sequence + offset != half.number() + 1 {
            break;
        }
        bytes += batch.size_in_bytes() as u64;
        half.write(batch)?;
    }
    if half.number() != to {
        let reason = format!("it ends at number {} of {to}", half.number());
        return Err(StorageError::io("reading a write-ahead log", reason));
    }
    Ok(bytes)
}
