//! Plain keys and values in place of mailboxes: the directory's state.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::StorageError;
use crate::group::{Held, Inner, put_marker};
use crate::keys::Kind;
use crate::records::{encode_bytes, payload};
use crate::store::{Changes, Family};

#[derive(Clone)]
pub struct Table {
    group: Arc<Inner>,
}

impl Table {
    pub(crate) fn new(group: Arc<Inner>) -> Table {
        Table { group }
    }

    /// Puts (`Some`) and deletes (`None`) and the marker of the entry that asked for them, all or nothing. Not synced:
    /// the log is replayed.
    pub fn write(
        &self,
        changes: impl IntoIterator<Item = (Vec<u8>, Option<Bytes>)>,
        marker: Bytes,
    ) -> Result<(), StorageError> {
        let _apply = self.group.apply.lock();
        self.group.check()?;
        let held = Held::default();
        let view = self.group.latest(&held);
        let mut batch = Changes::default();
        for (key, value) in changes {
            let key = view.key(Kind::Table).bytes(&key).done();
            match value {
                Some(value) => batch.put(Family::State, key, encode_bytes(&value)),
                None => batch.delete(Family::State, key),
            }
        }
        put_marker(&mut batch, view.space, &marker);
        self.group.shared.store.write_changes(&batch)
    }

    pub fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.group.check()?;
        let held = Held::default();
        let view = self.group.view(&held);
        let key = view.key(Kind::Table).bytes(key).done();
        view.get(&key)?.map(|value| Ok(Bytes::copy_from_slice(payload(Family::State, &key, &value)?))).transpose()
    }

    /// Every record in the order of the keys, as of one moment.
    pub fn scan(&self) -> Result<Vec<(Vec<u8>, Bytes)>, StorageError> {
        self.group.check()?;
        let held = Held::default();
        let view = self.group.view(&held);
        let mut all = Vec::new();
        view.scan(view.key(Kind::Table), |key, value| {
            let value = Bytes::copy_from_slice(payload(Family::State, key, value)?);
            all.push((key.get(5..).unwrap_or_default().to_vec(), value));
            Ok(true)
        })?;
        Ok(all)
    }
}
