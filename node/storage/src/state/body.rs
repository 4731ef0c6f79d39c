//! A body held for reading. FETCH announces a literal's length before it sends the octets, and another session may
//! expunge the message in between (RFC 2180 §4.1): what was announced must still come.

use std::sync::Arc;

use bytes::Bytes;

use super::ShardState;
use super::outcome::BodyId;
use super::read::{body_record, chunks_in};
use crate::error::StorageError;
use crate::group::{Held, Inner};
use crate::keys::{log_key, printable};
use crate::records::ChunkRecord;
use crate::store::Family;

/// While it lives, the body's bytes are not deleted on this replica, though no message may refer to them any more. Only
/// the deletion waits: state, and what other replicas do, is as without it.
pub struct PinnedBody {
    group: Arc<Inner>,
    chunks: Vec<ChunkRecord>,
    size: u64,
    is_shared: bool,
}

impl ShardState {
    /// `None` when no message refers to the body any more.
    pub fn pin_body(&self, body: BodyId) -> Result<Option<PinnedBody>, StorageError> {
        self.group.check()?;
        // A purge looks at the pins and deletes under the same lock: either it sees these, or this does not see the
        // record.
        let mut pins = self.group.pins.lock();
        let Some(record) = body_record(&self.group.view(&Held::default()), body)? else { return Ok(None) };
        for chunk in &record.chunks {
            *pins.entry(chunk.index).or_default() += 1;
        }
        drop(pins);
        let (group, is_shared) = (self.group.clone(), record.references > 1);
        Ok(Some(PinnedBody { group, chunks: record.chunks, size: record.size, is_shared }))
    }
}

impl PinnedBody {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Several messages have it.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// The bytes from `offset`, at most `len` of them, read from the chunks that hold them.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<Bytes>, StorageError> {
        self.group.check()?;
        chunks_in(&self.chunks, self.size, offset, len, |index| {
            let key = log_key(self.group.id, index);
            let bytes = self.group.shared.store.get(Family::Blob, &key)?;
            bytes.ok_or_else(|| StorageError::corrupt(printable(Family::Blob, &key), "missing"))
        })
    }
}

impl Drop for PinnedBody {
    fn drop(&mut self) {
        let mut pins = self.group.pins.lock();
        for chunk in &self.chunks {
            if let Some(count) = pins.get_mut(&chunk.index) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(&chunk.index);
                }
            }
        }
    }
}
