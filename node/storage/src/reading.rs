//! Reading from one half. Every step that may wait for its disk is noted while it does.

use bytes::Bytes;
use rocksdb::{DBRawIterator, ReadOptions, Snapshot};

use crate::error::StorageError;
use crate::faults::Operation;
use crate::half::Half;
use crate::keys::printable;
use crate::store::Family;

/// Records in the order of their keys. As RocksDB's own, but for the note.
pub(crate) struct Iter<'a> {
    half: &'a Half,
    raw: DBRawIterator<'a>,
}

impl Half {
    pub(crate) fn get(
        &self,
        snapshot: Option<&Snapshot<'_>>,
        family: Family,
        key: &[u8],
    ) -> Result<Option<Bytes>, StorageError> {
        let _read = self.reads.begin();
        self.before(Operation::Read)?;
        let handle = self.family(family)?;
        let value = match snapshot {
            Some(snapshot) => snapshot.get_cf(&handle, key),
            None => self.db.get_cf(&handle, key),
        };
        Ok(value.map_err(|error| StorageError::read(|| printable(family, key), &error))?.map(Bytes::from))
    }

    /// The inner error is the disk's.
    pub(crate) fn get_with(
        &self,
        snapshot: &Snapshot<'_>,
        family: Family,
        key: &[u8],
        options: ReadOptions,
    ) -> Result<Result<Option<Bytes>, rocksdb::Error>, StorageError> {
        let _read = self.reads.begin();
        self.before(Operation::Read)?;
        let value = snapshot.get_cf_opt(&self.family(family)?, key, options);
        Ok(value.map(|value| value.map(Bytes::from)))
    }

    /// An iterator that ends before `to`. Not yet positioned.
    pub(crate) fn iterator<'a>(
        &'a self,
        snapshot: Option<&'a Snapshot<'_>>,
        family: Family,
        to: Vec<u8>,
    ) -> Result<Iter<'a>, StorageError> {
        self.iterator_with(snapshot, family, to, ReadOptions::default())
    }

    pub(crate) fn iterator_with<'a>(
        &'a self,
        snapshot: Option<&'a Snapshot<'_>>,
        family: Family,
        to: Vec<u8>,
        mut options: ReadOptions,
    ) -> Result<Iter<'a>, StorageError> {
        let _read = self.reads.begin();
        self.before(Operation::Read)?;
        options.set_iterate_upper_bound(to);
        let handle = self.family(family)?;
        let raw = match snapshot {
            Some(snapshot) => snapshot.raw_iterator_cf_opt(&handle, options),
            None => self.db.raw_iterator_cf_opt(&handle, options),
        };
        Ok(Iter { half: self, raw })
    }
}

impl Iter<'_> {
    pub(crate) fn seek(&mut self, key: impl AsRef<[u8]>) {
        let _read = self.half.reads.begin();
        self.raw.seek(key);
    }

    pub(crate) fn seek_to_last(&mut self) {
        let _read = self.half.reads.begin();
        self.raw.seek_to_last();
    }

    pub(crate) fn next(&mut self) {
        let _read = self.half.reads.begin();
        self.raw.next();
    }

    pub(crate) fn valid(&self) -> bool {
        self.raw.valid()
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.raw.key()
    }

    pub(crate) fn item(&self) -> Option<(&[u8], &[u8])> {
        self.raw.item()
    }

    pub(crate) fn status(&self) -> Result<(), rocksdb::Error> {
        self.raw.status()
    }
}
