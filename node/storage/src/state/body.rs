//! A body held for reading. FETCH announces a literal's length before it sends the octets, and another session may
//! expunge the message in between (RFC 2180 §4.1): what was announced must still come, from another replica too.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::ShardState;
use super::outcome::BodyId;
use super::read::{body_record, chunks_in};
use crate::error::StorageError;
use crate::group::{Held, Inner};
use crate::keys::{Kind, log_key, printable};
use crate::records::ChunkRecord;
use crate::store::{Changes, Family};

/// A part of a body: the log entry that it came with, and its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyChunk {
    pub index: u64,
    pub octets: u64,
}

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
        hold(&mut pins, &record.chunks);
        drop(pins);
        let (group, is_shared) = (self.group.clone(), record.references > 1);
        Ok(Some(PinnedBody { group, chunks: record.chunks, size: record.size, is_shared }))
    }

    /// A body that no message refers to any more, by the chunks that some replica told while one did
    /// ([`PinnedBody::chunks`]). `None` where not all of it is left here to a later purge. Waits for what is being
    /// written.
    pub fn pin_released(&self, chunks: &[BodyChunk]) -> Result<Option<PinnedBody>, StorageError> {
        self.group.check()?;
        let group = self.group.clone();
        let chunks: Vec<_> = chunks.iter().map(|chunk| ChunkRecord { index: chunk.index, len: chunk.octets }).collect();
        let size = chunks.iter().fold(0u64, |size, chunk| size.saturating_add(chunk.len));
        let pinned = {
            // A purge decides and queues under this lock: one that comes later leaves what is held here, and what one
            // before has decided is in the queue.
            let _order = group.order.lock();
            hold(&mut group.pins.lock(), &chunks);
            PinnedBody { group: group.clone(), chunks, size, is_shared: false }
        };
        group.shared.writer.write_and_wait(Changes::default())?;
        let held = Held::default();
        let view = self.view(&held)?;
        for chunk in &pinned.chunks {
            if view.get(&view.key(Kind::Garbage).u64(chunk.index).done())?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(pinned))
    }
}

fn hold(pins: &mut BTreeMap<u64, u32>, chunks: &[ChunkRecord]) {
    for chunk in chunks {
        *pins.entry(chunk.index).or_default() += 1;
    }
}

impl PinnedBody {
    /// Where its bytes are, in their order: on every replica alike.
    pub fn chunks(&self) -> impl Iterator<Item = BodyChunk> {
        self.chunks.iter().map(|chunk| BodyChunk { index: chunk.index, octets: chunk.len })
    }

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
