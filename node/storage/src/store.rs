//! The one door to RocksDB: reads, and every write of the crate.
//!
//! Each write, of the log, the state, a purge or an install, goes through [`Store::write`] as one WriteBatch: this is
//! where the second half of a mirror will be written beside the first.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rocksdb::{BoundColumnFamily, Cache, DB, DBRawIterator, ReadOptions, WriteBatch};

use crate::error::StorageError;
use crate::keys::printable;
use crate::options::{self, VolumeOptions};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Family {
    Log,
    Blob,
    State,
    Meta,
}

impl Family {
    pub(crate) const EVERY: [Family; 4] = [Family::Log, Family::Blob, Family::State, Family::Meta];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Log => "log",
            Family::Blob => "blob",
            Family::State => "state",
            Family::Meta => "meta",
        }
    }
}

#[derive(Debug)]
pub(crate) enum Change {
    Put {
        family: Family,
        key: Vec<u8>,
        value: Bytes,
    },
    Delete {
        family: Family,
        key: Vec<u8>,
    },
    /// `to` is not included.
    DeleteRange {
        family: Family,
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

/// Changes that happen together, in order.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    list: Vec<Change>,
    bytes: usize,
}

impl Changes {
    pub(crate) fn put(&mut self, family: Family, key: Vec<u8>, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += key.len() + value.len() + 16;
        self.list.push(Change::Put { family, key, value });
    }

    pub(crate) fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.bytes += key.len() + 16;
        self.list.push(Change::Delete { family, key });
    }

    pub(crate) fn delete_range(&mut self, family: Family, (from, to): (Vec<u8>, Vec<u8>)) {
        if from < to {
            self.bytes += from.len() + to.len() + 16;
            self.list.push(Change::DeleteRange { family, from, to });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// About what the changes take in memory and in the write-ahead log.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn append(&mut self, mut other: Changes) {
        self.bytes += other.bytes;
        self.list.append(&mut other.list);
    }
}

pub(crate) struct Store {
    db: DB,
    failed: OnceLock<String>,
    written_batches: AtomicU64,
    written_bytes: AtomicU64,
}

impl Store {
    /// Opens the database below the volume's directory.
    pub(crate) fn open(volume: &VolumeOptions) -> Result<Store, StorageError> {
        let cache = Cache::new_lru_cache(volume.block_cache_bytes);
        let path = volume.directory.join("db");
        let db_options = options::database(volume, &cache);
        let db = DB::open_cf_descriptors(&db_options, &path, options::families(volume, &cache)).map_err(|error| {
            let text = error.to_string();
            match error.kind() {
                rocksdb::ErrorKind::Corruption => StorageError::corrupt(path.display().to_string(), error),
                rocksdb::ErrorKind::IOError if text.contains("lock") => {
                    StorageError::Refused(format!("{} is in use by another process: {text}", path.display()))
                }
                _ => StorageError::io(format!("opening {}", path.display()), error),
            }
        })?;
        Ok(Store { db, failed: OnceLock::new(), written_batches: AtomicU64::new(0), written_bytes: AtomicU64::new(0) })
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn family(&self, family: Family) -> Result<Arc<BoundColumnFamily<'_>>, StorageError> {
        self.db.cf_handle(family.name()).ok_or_else(|| StorageError::corrupt(family.name(), "no such column family"))
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.db.get_cf(&self.family(family)?, key);
        Ok(value.map_err(|error| StorageError::read(|| printable(family, key), &error))?.map(Bytes::from))
    }

    /// Visits every key and value from `from` up to, not including, `to`, until the visitor answers false.
    pub(crate) fn scan(
        &self,
        family: Family,
        (from, to): (Vec<u8>, Vec<u8>),
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let iterator = self.db.raw_iterator_cf_opt(&self.family(family)?, options);
        walk(iterator, family, &from, visit)
    }

    pub(crate) fn batch(&self, changes: &[&Changes]) -> Result<WriteBatch, StorageError> {
        let bytes: usize = changes.iter().map(|one| one.bytes).sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 64);
        let families = [
            self.family(Family::Log)?,
            self.family(Family::Blob)?,
            self.family(Family::State)?,
            self.family(Family::Meta)?,
        ];
        let [log, blob, state, meta] = &families;
        let handle = |family: Family| match family {
            Family::Log => log,
            Family::Blob => blob,
            Family::State => state,
            Family::Meta => meta,
        };
        for change in changes.iter().flat_map(|one| &one.list) {
            match change {
                Change::Put { family, key, value } => batch.put_cf(handle(*family), key, value),
                Change::Delete { family, key } => batch.delete_cf(handle(*family), key),
                Change::DeleteRange { family, from, to } => batch.delete_range_cf(handle(*family), from, to),
            }
        }
        Ok(batch)
    }

    /// Writes changes to the write-ahead log and the memtables, without a sync: they survive this process, and a
    /// power cut only if a later [`Store::sync`] came before it. What survives is always a prefix of the writes.
    pub(crate) fn write_changes(&self, changes: &Changes) -> Result<(), StorageError> {
        self.write(self.batch(&[changes])?)
    }

    /// The only place that writes to the database. An error fails the volume for good.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        self.check()?;
        self.written_batches.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(batch.size_in_bytes() as u64, Ordering::Relaxed);
        self.db.write(batch).map_err(|error| self.fail(format!("write: {error}")))
    }

    /// Makes every earlier write durable. Writes may go on meanwhile. An error fails the volume for good: after a
    /// failed fsync the kernel may have dropped the pages, so a second fsync that succeeds proves nothing.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.check()?;
        self.db.flush_wal(true).map_err(|error| self.fail(format!("sync: {error}")))
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.failed.get() {
            Some(reason) => Err(StorageError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn fail(&self, reason: String) -> StorageError {
        let reason = self.failed.get_or_init(|| reason);
        StorageError::Failed(reason.clone())
    }

    /// The sequence number of the last write.
    pub(crate) fn sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    pub(crate) fn written(&self) -> (u64, u64) {
        (self.written_batches.load(Ordering::Relaxed), self.written_bytes.load(Ordering::Relaxed))
    }
}

/// Runs an iterator, whose upper bound is set, from a key on.
pub(crate) fn walk(
    mut iterator: DBRawIterator<'_>,
    family: Family,
    from: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
) -> Result<(), StorageError> {
    iterator.seek(from);
    let mut last = from.to_vec();
    while let Some((key, value)) = iterator.item() {
        if !visit(key, value)? {
            return Ok(());
        }
        last.clear();
        last.extend_from_slice(key);
        iterator.next();
    }
    iterator.status().map_err(|error| StorageError::read(|| format!("{} and after", printable(family, &last)), &error))
}
