//! What a database has been written since a number, by its write-ahead log. With it an older copy of the same database
//! tells what a record is now: what it was then, if nothing was written to it since, and else what that was.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use rocksdb::{DB, WriteBatch};

use crate::error::StorageError;
use crate::half::Half;
use crate::store::Family;

/// Keys and values that are kept of a log.
const BYTES_MAX: usize = 128 << 20;
/// A batch begins with its number (8 octets) and how many changes it has (4).
const HEADER: usize = 12;

/// Changes of one column family: the last of each key, and the ranges that were deleted.
#[derive(Default)]
struct Changed {
    records: BTreeMap<Vec<u8>, Option<Bytes>>,
    deleted: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct Since {
    /// The volume's number from which on it is known.
    pub from: u64,
    families: BTreeMap<u32, (Family, Changed)>,
    bytes: usize,
}

impl Since {
    /// All that came behind number `from`, up to and with `to`. An error where the log does not go back so far.
    pub(crate) fn read(source: &Half, from: u64, to: u64) -> Result<Since, StorageError> {
        let mut since = Since { from, families: BTreeMap::new(), bytes: 0 };
        for family in Family::EVERY {
            since.families.insert(family_number(source, family)?, (family, Changed::default()));
        }
        since.follow(&source.db, source.offset, to)?;
        Ok(since)
    }

    fn follow(&mut self, db: &DB, offset: u64, to: u64) -> Result<(), StorageError> {
        let mut at = self.from;
        if at >= to {
            return if at == to { Ok(()) } else { Err(incomplete(at, to)) };
        }
        let doing = |error: rocksdb::Error| StorageError::io("reading a write-ahead log", error);
        let Some(own) = at.checked_sub(offset) else { return Err(incomplete(at, to)) };
        for update in db.get_updates_since(own).map_err(doing)? {
            let (sequence, batch) = update.map_err(doing)?;
            if sequence + offset != at + 1 {
                break;
            }
            self.take(batch.data())?;
            at += batch.len() as u64;
            if at >= to {
                break;
            }
        }
        if at == to { Ok(()) } else { Err(incomplete(at, to)) }
    }

    /// Takes one batch in. Its format is RocksDB's own (`write_batch.cc`), which it keeps in its logs.
    fn take(&mut self, batch: &[u8]) -> Result<(), StorageError> {
        let mut rest = batch.get(HEADER..).ok_or_else(|| unknown("a short batch"))?;
        while let Some((tag, behind)) = rest.split_first() {
            rest = behind;
            let short = || unknown("a short record");
            match tag {
                // A put, a deletion and a deletion of a range, each in a column family.
                0x05 => {
                    let (family, key, value) = (number(&mut rest), slice(&mut rest), slice(&mut rest));
                    let (Some(key), Some(value)) = (key, value) else { return Err(short()) };
                    self.change(family, key, Some(value))?;
                }
                0x04 => {
                    let (family, key) = (number(&mut rest), slice(&mut rest));
                    self.change(family, key.ok_or_else(short)?, None)?;
                }
                0x0e => {
                    let (family, from, to) = (number(&mut rest), slice(&mut rest), slice(&mut rest));
                    let (Some(from), Some(to)) = (from, to) else { return Err(short()) };
                    self.delete_range(family, from, to)?;
                }
                // A remark, and nothing.
                0x03 => drop(slice(&mut rest).ok_or_else(short)?),
                0x0d => {}
                _ => return Err(unknown(&format!("a record of type {tag}"))),
            }
        }
        Ok(())
    }

    fn family(&mut self, number: Option<u32>) -> Result<&mut (Family, Changed), StorageError> {
        number.and_then(|number| self.families.get_mut(&number)).ok_or_else(|| unknown("another column family"))
    }

    fn change(&mut self, family: Option<u32>, key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        let (family, changed) = self.family(family)?;
        // Bodies are vouched for otherwise, and are most of a log.
        if *family == Family::Blob {
            return Ok(());
        }
        let bytes = key.len() + value.map_or(0, <[u8]>::len);
        changed.records.insert(key.to_vec(), value.map(Bytes::copy_from_slice));
        self.bytes += bytes;
        if self.bytes > BYTES_MAX {
            return Err(StorageError::io("reading a write-ahead log", "it holds more than is kept in memory"));
        }
        Ok(())
    }

    fn delete_range(&mut self, family: Option<u32>, from: &[u8], to: &[u8]) -> Result<(), StorageError> {
        let (family, changed) = self.family(family)?;
        if *family != Family::Blob && from < to {
            changed.records.retain(|key, _| &key[..] < from || &key[..] >= to);
            changed.deleted.push((from.to_vec(), to.to_vec()));
        }
        Ok(())
    }

    fn of(&self, family: Family) -> Option<&Changed> {
        self.families.values().find(|(own, _)| *own == family).map(|(_, changed)| changed)
    }

    /// Whether a record is no longer, or perhaps not, what it was.
    pub(crate) fn touches(&self, family: Family, key: &[u8]) -> bool {
        self.of(family).is_none_or(|changed| {
            let deleted = changed.deleted.iter().any(|(from, to)| from[..] <= *key && *key < to[..]);
            deleted || changed.records.contains_key(key)
        })
    }

    /// What was written from `from` on and before `to`, and is still there.
    pub(crate) fn records<'a>(
        &'a self,
        family: Family,
        (from, to): (&'a [u8], &'a [u8]),
    ) -> impl Iterator<Item = (&'a [u8], &'a Bytes)> {
        let changed = self.of(family).into_iter();
        let within = changed.flat_map(move |changed| {
            changed.records.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to.max(from))))
        });
        within.filter_map(|(key, value)| Some((&key[..], value.as_ref()?)))
    }
}

/// The number by which batches know a column family.
fn family_number(half: &Half, family: Family) -> Result<u32, StorageError> {
    let mut probe = WriteBatch::default();
    probe.put_cf(&half.family(family)?, b"", b"");
    let mut rest = probe.data().get(HEADER + 1..).unwrap_or_default();
    number(&mut rest).ok_or_else(|| unknown("a batch"))
}

/// Seven bits an octet, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0u64;
    for shift in (0..35).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return u32::try_from(number).ok();
        }
    }
    None
}

fn slice<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = number(bytes)? as usize;
    let (own, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(own)
}

fn unknown(what: &str) -> StorageError {
    StorageError::corrupt("write-ahead log", format!("it holds {what}"))
}

fn incomplete(at: u64, to: u64) -> StorageError {
    StorageError::io("reading a write-ahead log", format!("it tells nothing from number {at} on, up to {to}"))
}

#[cfg(test)]
mod tests {
    use rocksdb::{DB, Options, WriteBatch};

    use super::{BTreeMap, Bytes, Changed, Family, HEADER, Since, number, slice};

    fn empty() -> Since {
        let families = [(1, Family::Log), (2, Family::Blob), (300, Family::State)];
        let families = families.map(|(number, family)| (number, (family, Changed::default())));
        Since { from: 7, families: BTreeMap::from(families), bytes: 0 }
    }

    fn records(since: &Since) -> Vec<(&[u8], &[u8])> {
        let all = since.records(Family::Log, (b"", b"\xff"));
        all.map(|(key, value)| (key, &value[..])).collect()
    }

    #[test]
    fn what_rocksdb_writes_is_read_back_in_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let db = DB::open_cf(&options, directory.path(), ["log", "blob"]).unwrap();
        let (log, blob) = (db.cf_handle("log").unwrap(), db.cf_handle("blob").unwrap());
        let mut batch = WriteBatch::default();
        batch.put_cf(&log, b"b", b"gone");
        batch.put_cf(&log, b"x", [7; 300]);
        batch.put_cf(&blob, b"b", b"body");
        batch.delete_range_cf(&log, b"a", b"d");
        batch.put_cf(&log, b"c", b"new");
        batch.delete_cf(&log, b"y");
        let mut since = empty();
        since.take(batch.data()).unwrap();
        assert_eq!(records(&since), [(&b"c"[..], &b"new"[..]), (b"x", &[7; 300])]);
        for touched in [&b"a"[..], b"b", b"c", b"x", b"y"] {
            assert!(since.touches(Family::Log, touched), "{touched:?}");
        }
        for not in [&b"d"[..], b"e", b"z"] {
            assert!(!since.touches(Family::Log, not), "{not:?}");
        }
        assert!(since.touches(Family::Meta, b"e"), "nothing is known of it");
        let mut batch = WriteBatch::default();
        batch.merge_cf(&log, b"b", b"merged");
        assert!(since.take(batch.data()).is_err(), "what is not understood vouches for nothing");
    }

    #[test]
    fn a_batch_that_is_cut_anywhere_is_an_error_or_a_shorter_batch() {
        let mut batch = vec![0; HEADER];
        for key in [b"one", b"two"] {
            batch.extend([0x05, 1, 3]);
            batch.extend(key);
            batch.extend([2, b'v', b'v']);
        }
        for len in 0..batch.len() {
            let mut since = empty();
            let whole = (len.saturating_sub(HEADER)) % 9 == 0 && len >= HEADER;
            assert_eq!(since.take(&batch[..len]).is_ok(), whole, "{len} octets");
        }
        let mut since = empty();
        since.take(&batch).unwrap();
        assert_eq!(since.records(Family::Log, (b"p", b"z")).count(), 1);
        assert_eq!(records(&since)[0].1, &Bytes::from_static(b"vv")[..]);
        let (mut long, mut beyond) = (&[0xff; 9][..], &[5, 1, 2][..]);
        assert_eq!((number(&mut long), slice(&mut beyond)), (None, None));
        assert_eq!(number(&mut &[0xac, 0x02][..]), Some(300));
    }
}
