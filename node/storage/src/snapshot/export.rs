//! Sending a group's state: a RocksDB snapshot, walked by a thread of its own that stays one block ahead.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;

use super::block::{self, ITEM_BLOB, ITEM_STATE, PAYLOAD_BYTES_MAX, Totals};
use crate::error::StorageError;
use crate::group::{Group, Held, Inner, View};
use crate::keys::{Kind, log_key, printable, space_range};
use crate::pace::ReadPace;
use crate::records::{BodyRecord, ChunkRecord, UploadRecord, decode};
use crate::store::Family;

/// The state of a group at one moment. The database keeps what the export still needs; drop it to let go.
pub struct Export {
    /// The applied marker of that moment.
    pub marker: Bytes,
    pub blocks: Blocks,
}

/// Blocks of at most 1 MiB, in order; the last one carries the totals. An error ends it.
pub struct Blocks {
    receiver: Receiver<Result<Bytes, StorageError>>,
}

impl Iterator for Blocks {
    type Item = Result<Bytes, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}

impl Group {
    /// Begins an export. Costs nothing until it is read. An error if nothing was ever applied.
    pub fn export(&self) -> Result<Export, StorageError> {
        self.inner.check()?;
        let group = Arc::clone(&self.inner);
        let (marker_sender, marker_receiver) = sync_channel(1);
        let (sender, receiver) = sync_channel(1);
        // A RocksDB snapshot borrows its database: it lives on the stack of this thread.
        let spawned = thread::Builder::new().name("snapshot-export".to_owned()).spawn(move || {
            let held = Held::default();
            let view = group.view(&held).exact();
            match view.marker() {
                Ok(Some(marker)) => {
                    let _ = marker_sender.send(Ok(marker.clone()));
                    Sender::new(&group, sender).run(&view, marker);
                }
                Ok(None) => {
                    let _ =
                        marker_sender.send(Err(StorageError::Misuse("nothing to export: nothing is applied".into())));
                }
                Err(error) => {
                    let _ = marker_sender.send(Err(error));
                }
            }
        });
        spawned.map_err(|error| StorageError::io("starting an export", error))?;
        let marker = marker_receiver.recv().unwrap_or(Err(StorageError::Closed))?;
        Ok(Export { marker, blocks: Blocks { receiver } })
    }

    /// For whoever reads an export that nobody waits for: slows it down while writes to the volume take longer than they
    /// did before, between an eighth of `bytes_per_s_max` and all of it.
    pub fn read_pace(&self, bytes_per_s_max: u64) -> ReadPace {
        ReadPace::new(&self.inner.shared.store.round_times, bytes_per_s_max)
    }
}

/// The receiver was dropped, or reading failed.
enum Stop {
    Abandoned,
    Failed(StorageError),
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Stop {
        Stop::Failed(error)
    }
}

struct Sender<'a> {
    group: &'a Inner,
    blocks: SyncSender<Result<Bytes, StorageError>>,
    pending: Vec<u8>,
    number: u32,
    totals: Totals,
}

impl<'a> Sender<'a> {
    fn new(group: &'a Inner, blocks: SyncSender<Result<Bytes, StorageError>>) -> Sender<'a> {
        Sender { group, blocks, pending: Vec::new(), number: 0, totals: Totals::default() }
    }

    fn run(mut self, view: &View<'_>, marker: Bytes) {
        if let Err(Stop::Failed(error)) = self.stream(view, marker) {
            self.note(&error);
            let _ = self.blocks.send(Err(error));
        }
    }

    /// Of a mirror the other half is read the next time. Of a group that has lost records nothing more needs to be told.
    fn note(&self, error: &StorageError) {
        let shared = &self.group.shared;
        let is_told = shared.store.mirror.is_some() || shared.scrubs.lock().losses.has(self.group.id);
        if let (Some(key), false) = (error.unread(), is_told) {
            self.group.note_unread(key);
        }
    }

    fn stream(&mut self, view: &View<'_>, marker: Bytes) -> Result<(), Stop> {
        let mut stop = None;
        let walked = view.scan_range(space_range(view.space), |key, value| match self.record(view, key, value) {
            Ok(()) => Ok(true),
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Abandoned) => {
                stop = Some(Stop::Abandoned);
                Ok(false)
            }
        });
        walked?;
        stop.map_or(Ok(()), Err)?;
        if !self.pending.is_empty() {
            self.flush(PAYLOAD_BYTES_MAX)?;
        }
        self.totals.marker = marker;
        let totals = prost::Message::encode_to_vec(&self.totals);
        self.send(block::encode(self.group.id, self.number, true, &totals))
    }

    fn record(&mut self, view: &View<'_>, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let own = key.get(4..).unwrap_or_default();
        let kind = own.first().copied().and_then(Kind::from_byte);
        let chunks: Vec<ChunkRecord> = match kind {
            Some(Kind::Applied | Kind::Garbage) => return Ok(()),
            Some(Kind::Body) => decode::<BodyRecord>(Family::State, key, value)?.chunks,
            Some(Kind::Upload) => decode::<UploadRecord>(Family::State, key, value)?.chunks,
            Some(_) => Vec::new(),
            None => return Err(StorageError::corrupt(printable(Family::State, key), "unknown kind of record").into()),
        };
        self.totals.records += 1;
        self.item(ITEM_STATE, own, value)?;
        for chunk in chunks {
            let key = log_key(self.group.id, chunk.index);
            let Some(blob) = view.get_in(Family::Blob, &key)? else {
                return Err(StorageError::corrupt(printable(Family::Blob, &key), "missing").into());
            };
            self.totals.blobs += 1;
            self.item(ITEM_BLOB, &chunk.index.to_be_bytes(), &blob)?;
        }
        Ok(())
    }

    fn item(&mut self, kind: u8, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let header = block::item_header(kind, key, value);
        for piece in [&header[..], key, value] {
            self.totals.bytes += piece.len() as u64;
            self.totals.crc = crc32c::crc32c_append(self.totals.crc, piece);
            self.pending.extend_from_slice(piece);
        }
        while self.pending.len() >= PAYLOAD_BYTES_MAX {
            self.flush(PAYLOAD_BYTES_MAX)?;
        }
        Ok(())
    }

    fn flush(&mut self, bytes: usize) -> Result<(), Stop> {
        let end = bytes.min(self.pending.len());
        let block = block::encode(self.group.id, self.number, false, &self.pending[..end]);
        self.pending.drain(..end);
        self.number += 1;
        self.send(block)
    }

    fn send(&self, block: Bytes) -> Result<(), Stop> {
        self.group.check()?;
        self.blocks.send(Ok(block)).map_err(|_| Stop::Abandoned)
    }
}
