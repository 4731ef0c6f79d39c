//! A half of the volume as of one moment, read without the cache's memory of it.

use bytes::Bytes;
use rocksdb::{ReadOptions, Snapshot};

use super::merge::{Item, Records};
use crate::error::StorageError;
use crate::half::Half;
use crate::keys::printable;
use crate::reading::Iter;
use crate::store::Family;

#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub half: &'a Half,
    pub snapshot: &'a Snapshot<'a>,
    /// Whether it is damage where its disk gives no answer.
    pub as_damage: bool,
}

pub(crate) struct Cursor<'a> {
    view: View<'a>,
    family: Family,
    iterator: Iter<'a>,
}

/// Values are checked when they are read, those in blob files too; and what is read once is not cached.
fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options
}

impl<'a> View<'a> {
    /// Not yet positioned; ends before `to`.
    pub(crate) fn cursor(self, family: Family, to: Vec<u8>) -> Result<Cursor<'a>, StorageError> {
        let iterator = self.half.iterator_with(Some(self.snapshot), family, to, read_options())?;
        Ok(Cursor { view: self, family, iterator })
    }

    fn error(&self, key: impl FnOnce() -> String, error: &rocksdb::Error) -> StorageError {
        match StorageError::read(key, error) {
            error if error.is_want() => error,
            StorageError::Io { doing, reason } if self.as_damage => StorageError::Corrupt { key: doing, reason },
            error => error,
        }
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.half.get_with(self.snapshot, family, key, read_options())?;
        value.map_err(|error| self.error(|| printable(family, key), &error))
    }
}

impl Records for Cursor<'_> {
    fn seek(&mut self, key: &[u8]) {
        self.iterator.seek(key);
    }

    fn advance(&mut self) {
        // One that has ended or is broken stays so.
        if self.iterator.valid() {
            self.iterator.next();
        }
    }

    fn item(&self) -> Result<Option<Item<'_>>, StorageError> {
        if let Some(item) = self.iterator.item() {
            return Ok(Some(item));
        }
        match self.iterator.status() {
            Ok(()) => Ok(None),
            Err(error) => Err(self.view.error(|| format!("a block of {}", self.family.name()), &error)),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.view.get(self.family, key)
    }
}
