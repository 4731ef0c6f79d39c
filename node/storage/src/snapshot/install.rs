//! Receiving a group's state. Blocks are spooled to a file; the end writes them into a space of their own, and one
//! small synced batch makes that the group's. Until then, and if anything fails, the old state stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::block::{self, ITEM_BLOB, ITEM_HEADER_BYTES, ITEM_STATE, Totals};
use crate::error::StorageError;
use crate::failpoint::{Failpoint, reach};
use crate::group::{Group, Held, Inner, Installing, SpaceRecord, clear_space, put_marker};
use crate::keys::{Key, Kind, META_INSTALL, META_SPACE, log_key, meta_key, space_range, u32_at, u64_at};
use crate::log::BodyCheck;
use crate::records::{BodyRecord, ChunkRecord, UploadRecord, decode, encode, encode_bytes};
use crate::state::Hints;
use crate::store::{Changes, Family};

/// Records written in one batch on the way in.
const BATCH_BYTES: usize = 1 << 20;

/// One snapshot on its way in. Dropping it undoes what it wrote.
pub struct Installer {
    group: Arc<Inner>,
    /// The space that is being filled, and the last log index that the snapshot stands for.
    install: SpaceRecord,
    path: PathBuf,
    spool: Option<BufWriter<File>>,
    number: u32,
    bytes: u64,
    crc: u32,
    totals: Option<Totals>,
    done: bool,
}

impl Group {
    /// Begins an install of a snapshot that stands for the log up to `last_index`. One at a time.
    pub fn installer(&self, last_index: u64) -> Result<Installer, StorageError> {
        let inner = &self.inner;
        inner.check()?;
        {
            let mut installing = inner.installing.lock();
            if installing.is_some() {
                return Err(StorageError::Misuse("an install is under way already".to_owned()));
            }
            *installing = Some(Installing { last_index, spared: BTreeSet::new() });
        }
        let space = inner.shared.fresh_space();
        let install = SpaceRecord { space, installed: Some(last_index) };
        let spool = inner.shared.spool();
        let path = spool.join(format!("{}-{space}", inner.id.0));
        let mut installer = Installer {
            group: Arc::clone(inner),
            install,
            path,
            spool: None,
            number: 0,
            bytes: 0,
            crc: 0,
            totals: None,
            done: false,
        };
        // Noted before anything is written, so that an open after a crash finds what to remove.
        let mut changes = Changes::default();
        clear_space(&mut changes, &install);
        changes.put(Family::Meta, meta_key(META_INSTALL, inner.id), encode(&install));
        inner.shared.store.write_changes(&changes)?;
        // The half of a mirror that is read may be another than at the start.
        std::fs::create_dir_all(&spool).map_err(|error| installer.spool_error(&error))?;
        let file = File::options().read(true).write(true).create_new(true).open(&installer.path);
        installer.spool = Some(BufWriter::new(file.map_err(|error| installer.spool_error(&error))?));
        reach(Failpoint::SnapshotAnnounced, inner.id);
        Ok(installer)
    }
}

impl Installer {
    /// Takes the next block. A block that is cut, damaged, of another group or not the next one is refused and changes
    /// nothing: the right one may follow.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.group.check()?;
        let refuse = |reason: String| Err(StorageError::Block(reason));
        let block = block::decode(self.group.id, bytes)?;
        if self.totals.is_some() {
            return refuse("block after the last one".to_owned());
        }
        if block.number != self.number {
            return refuse(format!("block {} came where {} was expected", block.number, self.number));
        }
        if block.last {
            let totals = Totals::decode(block.payload).map_err(|error| StorageError::Block(error.to_string()))?;
            if totals.bytes != self.bytes || totals.crc != self.crc {
                return refuse("the blocks do not amount to the totals".to_owned());
            }
            self.totals = Some(totals);
            return Ok(());
        }
        let Some(spool) = self.spool.as_mut() else { return Err(StorageError::Closed) };
        if let Err(error) = spool.write_all(block.payload) {
            // Part of the block may be in the file: no block can follow.
            self.spool = None;
            return Err(self.spool_error(&error));
        }
        if self.number == 0 {
            reach(Failpoint::SnapshotSpooled, self.group.id);
        }
        self.number += 1;
        self.bytes += block.payload.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, block.payload);
        Ok(())
    }

    /// An error where the last block has not come, or says that the blocks are another snapshot's than this marker's.
    pub fn check(&self, marker: &[u8]) -> Result<(), StorageError> {
        match &self.totals {
            None => Err(StorageError::Block("the last block has not come".to_owned())),
            Some(totals) if totals.marker != marker => {
                Err(StorageError::Block("the snapshot has another marker than the one expected".to_owned()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Makes the snapshot the group's state, durable on return. After an error or a crash at any point the state is
    /// wholly the old one or wholly the new one.
    pub fn finish(mut self, marker: Bytes) -> Result<(), StorageError> {
        self.group.check()?;
        self.check(&marker)?;
        let Some(totals) = self.totals.take() else { return Err(StorageError::Closed) };
        let Some(spool) = self.spool.take() else { return Err(StorageError::Closed) };
        let file = spool.into_inner().map_err(|error| self.spool_error(error.error()))?;
        let mut filling = Filling::new(&self.group, &self.install);
        filling.read(&self.path, file, &totals)?;
        filling.note_garbage()?;
        filling.flip(&marker)?;
        self.done = true;
        Ok(())
    }

    fn spool_error(&self, error: &io::Error) -> StorageError {
        StorageError::io(format!("spooling {}", self.path.display()), error)
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let inner = &self.group;
        let order = inner.order.lock();
        let installing = inner.installing.lock().take();
        if self.done {
            return;
        }
        let mut changes = Changes::default();
        let undone = if inner.check().is_ok() {
            undo(inner, &self.install, installing, &mut changes)
        } else {
            // All else went with the group, or is another one's by now.
            clear_space(&mut changes, &self.install);
            Ok(())
        };
        // What cannot be undone now, because the disk fails, is undone at the next open.
        if undone.is_ok() {
            let _ = inner.shared.store.write_changes(&changes);
        }
        drop(order);
    }
}

/// Removes the space; and blobs in reach of the snapshot that belong to no log entry and to no state.
fn undo(
    inner: &Inner,
    install: &SpaceRecord,
    installing: Option<Installing>,
    changes: &mut Changes,
) -> Result<(), StorageError> {
    changes.delete_range(Family::State, space_range(install.space));
    changes.delete(Family::Meta, meta_key(META_INSTALL, inner.id));
    let owned = inner.log.lock().greatest().max(inner.space.read().installed);
    let from = owned.map_or(0, |index| index.saturating_add(1));
    let to = install.installed.unwrap_or(0).saturating_add(1);
    changes.delete_range(Family::Blob, (log_key(inner.id, from), log_key(inner.id, to)));
    for index in installing.map(|one| one.spared).unwrap_or_default() {
        // Truncated, and not written anew.
        if index < from && !matches!(inner.body_check(index)?, Some(Some(_))) {
            changes.delete(Family::Blob, log_key(inner.id, index));
        }
    }
    Ok(())
}

/// The new space while it is written.
struct Filling<'a> {
    inner: &'a Inner,
    install: &'a SpaceRecord,
    batch: Changes,
    /// Blobs that records have announced and that have not come yet, with their lengths.
    expected: BTreeMap<u64, u64>,
    /// Log indices of blobs that the new state refers to.
    owned: IndexSet,
    /// Blobs that differ from what the local log has in their place, to be written with the flip.
    contradicting: Changes,
    /// The first log entry that contradicts the snapshot: it and what follows was never committed.
    contradicts_from: Option<u64>,
    records: u64,
    blobs: u64,
}

impl<'a> Filling<'a> {
    fn new(inner: &'a Inner, install: &'a SpaceRecord) -> Filling<'a> {
        Filling {
            inner,
            install,
            batch: Changes::default(),
            expected: BTreeMap::new(),
            owned: IndexSet::default(),
            contradicting: Changes::default(),
            contradicts_from: None,
            records: 0,
            blobs: 0,
        }
    }

    fn read(&mut self, path: &std::path::Path, mut file: File, totals: &Totals) -> Result<(), StorageError> {
        let doing = |error: io::Error| StorageError::io(format!("reading {}", path.display()), error);
        file.rewind().map_err(doing)?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let (mut left, mut crc) = (totals.bytes, 0);
        let mut take = |bytes: u64, left: &mut u64| {
            // Lengths come from the stream: nothing larger than what is left of it is ever allocated.
            *left = left.checked_sub(bytes).ok_or_else(|| StorageError::Block("an item is cut".to_owned()))?;
            let mut buffer = vec![0; bytes as usize];
            reader.read_exact(&mut buffer).map_err(doing)?;
            crc = crc32c::crc32c_append(crc, &buffer);
            Ok::<_, StorageError>(buffer)
        };
        while left > 0 {
            let header = take(ITEM_HEADER_BYTES as u64, &mut left)?;
            let key = take(u64::from(u32_at(&header, 1).unwrap_or(0)), &mut left)?;
            let value = take(u64::from(u32_at(&header, 5).unwrap_or(0)), &mut left)?;
            match header.first() {
                Some(&ITEM_STATE) => self.state(&key, value)?,
                Some(&ITEM_BLOB) => self.blob(&key, value)?,
                _ => return Err(StorageError::Block("an item of unknown kind".to_owned())),
            }
            if self.batch.bytes() >= BATCH_BYTES {
                self.flush()?;
            }
        }
        if crc != totals.crc || self.records != totals.records || self.blobs != totals.blobs {
            return Err(StorageError::Block("the spool does not hold what was received".to_owned()));
        }
        if let Some(index) = self.expected.keys().next() {
            return Err(StorageError::Block(format!("the body at log index {index} did not come")));
        }
        Ok(())
    }

    fn state(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        let kind = key.first().copied().and_then(Kind::from_byte);
        let chunks: Vec<ChunkRecord> = match kind {
            Some(Kind::Body) => decode::<BodyRecord>(Family::State, key, &value)?.chunks,
            Some(Kind::Upload) => decode::<UploadRecord>(Family::State, key, &value)?.chunks,
            Some(Kind::Applied | Kind::Garbage) | None => {
                return Err(StorageError::Block("a record of unknown kind".to_owned()));
            }
            Some(_) => Vec::new(),
        };
        for chunk in chunks {
            if Some(chunk.index) > self.install.installed {
                return Err(StorageError::Block(format!("a body at log index {} is not in reach", chunk.index)));
            }
            self.expected.insert(chunk.index, chunk.len);
            self.owned.insert(chunk.index);
        }
        let mut full = self.install.space.to_be_bytes().to_vec();
        full.extend_from_slice(key);
        self.batch.put(Family::State, full, value);
        self.records += 1;
        Ok(())
    }

    fn blob(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        let index = u64_at(key, 0).filter(|_| key.len() == 8);
        let index = index.ok_or_else(|| StorageError::Block("a body without an index".to_owned()))?;
        if self.expected.remove(&index) != Some(value.len() as u64) {
            return Err(StorageError::Block(format!("the body at log index {index} is not the one announced")));
        }
        self.blobs += 1;
        let own = BodyCheck::of(&value);
        let key = log_key(self.inner.id, index);
        match self.inner.body_check(index)? {
            // The log has it already.
            Some(Some(check)) if check == own => {}
            None => self.batch.put(Family::Blob, key, value),
            Some(_) => {
                self.contradicting.put(Family::Blob, key, value);
                self.contradicts_from = Some(self.contradicts_from.map_or(index, |from| from.min(index)));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let batch = std::mem::take(&mut self.batch);
        let _apply = self.inner.apply.lock();
        self.inner.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        self.inner.shared.store.write_changes(&batch)?;
        reach(Failpoint::SnapshotWritten, self.inner.id);
        Ok(())
    }

    /// Blobs that the old state or the log owns and the new state does not go to the next purge.
    fn note_garbage(&mut self) -> Result<(), StorageError> {
        let mut garbage = Vec::new();
        let held = Held::default();
        let view = self.inner.view(&held);
        for kind in [Kind::Body, Kind::Upload, Kind::Garbage] {
            view.scan(view.key(kind), |key, value| {
                match kind {
                    Kind::Body => {
                        let record: BodyRecord = decode(Family::State, key, value)?;
                        garbage.extend(record.chunks.iter().map(|chunk| chunk.index));
                    }
                    Kind::Upload => {
                        let record: UploadRecord = decode(Family::State, key, value)?;
                        garbage.extend(record.chunks.iter().map(|chunk| chunk.index));
                    }
                    _ => garbage.extend(u64_at(key, 5)),
                }
                self.discard(&mut garbage)?;
                Ok(true)
            })?;
        }
        garbage.extend(self.inner.bodies_in(0, self.install.installed.unwrap_or(0))?);
        if let Some(installing) = self.inner.installing.lock().as_ref() {
            garbage.extend(&installing.spared);
        }
        self.discard(&mut garbage)?;
        self.flush()
    }

    fn discard(&mut self, indices: &mut Vec<u64>) -> Result<(), StorageError> {
        for index in indices.drain(..) {
            if !self.owned.contains(index) {
                let key = Key::state(self.install.space, Kind::Garbage).u64(index).done();
                self.batch.put(Family::State, key, encode_bytes(b""));
            }
        }
        if self.batch.bytes() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flip(self, marker: &[u8]) -> Result<(), StorageError> {
        let Filling { inner, install, contradicting, contradicts_from, .. } = self;
        let _order = inner.order.lock();
        let mut hints = inner.apply.lock();
        let mut space = inner.space.write();
        inner.check()?;
        let mut changes = Changes::default();
        put_marker(&mut changes, install.space, marker);
        if let Some(from) = contradicts_from {
            // The body at this index is another one than the committed one: by the log matching property this entry
            // and all after it were never committed.
            let end = log_key(inner.id, u64::MAX);
            changes.delete_range(Family::Log, (log_key(inner.id, from), end.clone()));
            let beyond = install.installed.unwrap_or(0).saturating_add(1);
            changes.delete_range(Family::Blob, (log_key(inner.id, beyond), end));
        }
        changes.append(contradicting);
        changes.put(Family::Meta, meta_key(META_SPACE, inner.id), encode(install));
        changes.delete(Family::Meta, meta_key(META_INSTALL, inner.id));
        changes.delete_range(Family::State, space_range(space.space));
        if let Some(from) = contradicts_from {
            inner.truncated(from.checked_sub(1));
        }
        reach(Failpoint::SnapshotFlipping, inner.id);
        inner.shared.writer.write_and_wait(changes)?;
        reach(Failpoint::SnapshotInstalled, inner.id);
        *space = *install;
        *hints = Hints { applied: install.installed, ..Hints::default() };
        *inner.totals.lock() = Default::default();
        inner.shared.unread.forget(inner.id);
        Ok(())
    }
}

/// Log indices, a bit each.
#[derive(Default)]
pub(crate) struct IndexSet {
    words: BTreeMap<u64, [u64; 16]>,
}

impl IndexSet {
    fn place(index: u64) -> (u64, usize, u64) {
        (index >> 10, (index >> 6 & 15) as usize, 1 << (index & 63))
    }

    pub(crate) fn insert(&mut self, index: u64) {
        let (page, word, bit) = Self::place(index);
        self.words.entry(page).or_default()[word] |= bit;
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        let (page, word, bit) = Self::place(index);
        self.words.get(&page).is_some_and(|words| words[word] & bit != 0)
    }
}
