//! A Raft group on a volume: its log, its state, its bodies. What is common to them: which space is current, removal,
//! and purges, where bodies end.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use rocksdb::Snapshot;

use crate::error::StorageError;
use crate::half::Half;
use crate::keys::{
    GroupId, Key, Kind, META_BEGUN, META_INSTALL, META_PURGED, META_SPACE, META_VOTE, log_key, meta_key, prefix_range,
    printable, space_range, u64_at,
};
use crate::reader::Reading;
use crate::reading::Iter;
use crate::records::{decode, encode, encode_bytes, payload};
use crate::state::{Hints, ShardState, Totals};
use crate::store::{Changes, Family, Store};
use crate::table::Table;
use crate::tail::{self, LogState};
use crate::volume::Shared;

/// Blobs that one purge deletes at most; the rest waits for the next.
const PURGED_BLOBS_MAX: usize = 4096;

/// Cheap to clone. Writes are safe from any thread; the Raft log has one writer in any case, and so has the state.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

/// Locks are taken in this order: `order`, `counting`, `apply`, `pins`, `space`, `log`; `installing` and `totals` are
/// innermost.
pub(crate) struct Inner {
    pub id: GroupId,
    pub shared: Arc<Shared>,
    /// Held while a job's effect on `log` is made and the job is queued, so that both happen in one order. Not needed
    /// by readers or by completion callbacks, which may run while a full queue blocks its holder.
    pub order: Mutex<()>,
    pub log: Mutex<LogState>,
    /// Held by whoever writes state, and looks first whether the group was dropped.
    pub apply: Mutex<Hints>,
    /// No other replica has this one's state.
    pub alone: AtomicBool,
    /// Read-locked until a reader has its snapshot; write-locked by the flip of an install.
    pub space: RwLock<SpaceRecord>,
    pub installing: Mutex<Option<Installing>>,
    /// Blobs that somebody is reading, with how many do: what nothing refers to any more is not deleted under them.
    pub pins: Mutex<BTreeMap<u64, u32>>,
    /// What the shard holds in all, kept by apply once somebody has asked.
    pub totals: Mutex<Totals>,
    /// Held by whoever counts them for the first time.
    pub counting: Mutex<()>,
    pub dropped: AtomicBool,
}

/// A group's space, or one that a snapshot is being written to.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct SpaceRecord {
    #[prost(uint32, tag = "1")]
    pub space: u32,
    /// The last log index of the snapshot that made the space: bodies up to it belong to the state, not to the log.
    #[prost(uint64, optional, tag = "2")]
    pub installed: Option<u64>,
}

/// An install under way.
pub(crate) struct Installing {
    pub last_index: u64,
    /// Bodies that a truncation would have deleted, had they not been in reach of the snapshot.
    pub spared: BTreeSet<u64>,
}

impl Group {
    pub(crate) fn open(shared: Arc<Shared>, id: GroupId) -> Result<Group, StorageError> {
        let store = &shared.store;
        let key = meta_key(META_SPACE, id);
        let space = match store.get(Family::Meta, &key)? {
            Some(value) => decode(Family::Meta, &key, &value)?,
            None => {
                let space = SpaceRecord { space: shared.fresh_space(), installed: None };
                let mut changes = Changes::default();
                clear_space(&mut changes, &space);
                changes.put(Family::Meta, key, encode(&space));
                shared.writer.write_and_wait(changes)?;
                space
            }
        };
        let log = LogState::load(store, id)?;
        let inner = Inner {
            id,
            order: Mutex::new(()),
            log: Mutex::new(log),
            apply: Mutex::default(),
            alone: AtomicBool::new(false),
            space: RwLock::new(space),
            installing: Mutex::new(None),
            pins: Mutex::default(),
            totals: Mutex::default(),
            counting: Mutex::default(),
            dropped: AtomicBool::new(false),
            shared,
        };
        Ok(Group { inner: Arc::new(inner) })
    }

    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// An error once the group was dropped or let go. Reads no disk.
    pub fn check(&self) -> Result<(), StorageError> {
        self.inner.check()
    }

    /// Somebody's read has met damage in a record of the group, and no copy on the volume was good.
    pub fn note_unread(&self, key: &str) {
        self.inner.note_unread(key);
    }

    /// What reads have met damage in until now, for [`Group::note_read`].
    pub fn unread_so_far(&self) -> u64 {
        self.inner.shared.unread.so_far()
    }

    /// All of the group's state was read since then, with its bodies, and no damage met.
    pub fn note_read(&self, so_far: u64) {
        self.inner.shared.unread.was_read(Some(self.inner.id), so_far, |_| false);
    }

    /// The mailboxes of a shard.
    pub fn shard(&self) -> ShardState {
        ShardState::new(self.inner.clone())
    }

    /// Plain records, for the directory.
    pub fn table(&self) -> Table {
        Table::new(self.inner.clone())
    }

    /// The marker that the last apply wrote, `None` before the first.
    pub fn applied(&self) -> Result<Option<Bytes>, StorageError> {
        self.inner.check()?;
        self.inner.view(&Held::default()).marker()
    }

    /// Notes an entry that changes no state as applied. Not synced: the log is replayed.
    pub fn set_applied(&self, marker: Bytes) -> Result<(), StorageError> {
        let _apply = self.inner.apply.lock();
        self.inner.check()?;
        let mut changes = Changes::default();
        put_marker(&mut changes, self.inner.space.read().space, &marker);
        self.inner.shared.store.write_changes(&changes)
    }

    /// How many bodies and chunks of bodies the disk holds; for tests that nothing is left behind.
    #[doc(hidden)]
    pub fn blob_count(&self) -> Result<usize, StorageError> {
        let mut count = 0;
        let range = (log_key(self.inner.id, 0), log_key(self.inner.id, u64::MAX));
        self.inner.shared.store.scan(Family::Blob, range, |_, _| {
            count += 1;
            Ok(true)
        })?;
        Ok(count)
    }

    pub(crate) fn remove(&self) -> Result<(), StorageError> {
        let inner = &self.inner;
        let _order = inner.order.lock();
        let _apply = inner.apply.lock();
        inner.dropped.store(true, Ordering::Release);
        let space = inner.space.write();
        let changes = removal(&inner.shared.store, inner.id, Some(space.space))?;
        inner.shared.writer.write_and_wait(changes)?;
        inner.log.lock().clear(&inner.shared);
        Ok(())
    }

    /// Ends its handles, and leaves on the disk all that they were asked to write.
    pub(crate) fn retire(&self) -> Result<(), StorageError> {
        let inner = &self.inner;
        let _order = inner.order.lock();
        let _apply = inner.apply.lock();
        inner.dropped.store(true, Ordering::Release);
        // Behind whatever is queued.
        inner.shared.writer.write_and_wait(Changes::default())?;
        inner.log.lock().clear(&inner.shared);
        Ok(())
    }
}

/// Removes a group that cannot be opened.
pub(crate) fn remove_unread(shared: &Shared, id: GroupId) -> Result<(), StorageError> {
    let key = meta_key(META_SPACE, id);
    let space = shared.store.get(Family::Meta, &key)?.map(|value| decode::<SpaceRecord>(Family::Meta, &key, &value));
    let changes = removal(&shared.store, id, space.transpose()?.map(|record| record.space))?;
    shared.writer.write_and_wait(changes)
}

/// All that a group has.
fn removal(store: &Store, id: GroupId, space: Option<u32>) -> Result<Changes, StorageError> {
    let mut changes = Changes::default();
    let whole = (log_key(id, 0), log_key(id, u64::MAX));
    changes.delete_range(Family::Log, whole.clone());
    changes.delete_range(Family::Blob, whole);
    if let Some(space) = space {
        changes.delete_range(Family::State, space_range(space));
    }
    for name in [META_VOTE, META_PURGED, META_SPACE, META_BEGUN] {
        changes.delete(Family::Meta, meta_key(name, id));
    }
    let key = meta_key(META_INSTALL, id);
    if let Some(value) = store.get(Family::Meta, &key)? {
        let install: SpaceRecord = decode(Family::Meta, &key, &value)?;
        changes.delete_range(Family::State, space_range(install.space));
        changes.delete(Family::Meta, key);
    }
    Ok(changes)
}

impl Inner {
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        if self.dropped.load(Ordering::Acquire) { Err(StorageError::Dropped) } else { Ok(()) }
    }

    /// Unless it is known as lost.
    pub(crate) fn note_unread(&self, key: &str) {
        if !self.shared.scrubs.lock().losses.names(self.id, key) {
            self.shared.unread.add(self.id, key, || self.check().is_ok());
        }
    }

    /// As `check`, before a write that changes what is in memory first: a failed volume keeps that as it is on disk.
    pub(crate) fn check_write(&self) -> Result<(), StorageError> {
        self.check()?;
        self.shared.store.check()
    }

    /// A consistent view of the current state. `held` is to be empty, and keeps the half open.
    pub(crate) fn view<'a>(&'a self, held: &'a Held) -> View<'a> {
        // The snapshot is taken under the lock, so that no install comes between it and the space's number.
        let space = self.space.read();
        let half = held.get_or_init(|| self.shared.store.reader());
        View { store: &self.shared.store, half, snapshot: Some(half.db.snapshot()), space: space.space, exact: false }
    }

    /// The newest state, for the one who writes it. It can be had again with the same `held` while nothing was written.
    pub(crate) fn latest<'a>(&'a self, held: &'a Held) -> View<'a> {
        let store = &self.shared.store;
        let half = held.get_or_init(|| store.reader());
        View { store, half, snapshot: None, space: self.space.read().space, exact: false }
    }

    /// Deletes blobs that nothing refers to and whose log entries are purged. Those that somebody is reading stay noted
    /// as garbage until a later purge: which replica deletes when is each replica's own affair. Answers how many go.
    pub(crate) fn collect_garbage(&self, index: u64, changes: &mut Changes) -> Result<usize, StorageError> {
        if self.id == GroupId::DIRECTORY {
            // Its state refers to no bodies.
            changes.delete_range(Family::Blob, (log_key(self.id, 0), log_key(self.id, index.saturating_add(1))));
            return Ok(0);
        }
        // Over the whole scan: a reader that comes later finds no body record of what is deleted here.
        let pins = self.pins.lock();
        let held = Held::default();
        let view = self.latest(&held);
        let prefix = view.key(Kind::Garbage);
        let range = (prefix.clone().done(), prefix.u64(index.saturating_add(1)).done());
        let mut blobs = 0;
        view.scan_range(range, |key, _| {
            let blob =
                u64_at(key, 5).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "short key"))?;
            if pins.contains_key(&blob) {
                return Ok(true);
            }
            changes.delete(Family::State, key.to_vec());
            changes.delete(Family::Blob, log_key(self.id, blob));
            blobs += 1;
            Ok(blobs < PURGED_BLOBS_MAX)
        })?;
        Ok(blobs)
    }

    /// Bodies up to this index stay when the log is truncated: they belong to a snapshot.
    pub(crate) fn body_floor(&self) -> Option<u64> {
        let installing = self.installing.lock().as_ref().map(|install| install.last_index);
        self.space.read().installed.max(installing)
    }
}

/// Space ids count on from those that are in use: one that was given up may hold what was written to it late.
pub(crate) fn clear_space(changes: &mut Changes, fresh: &SpaceRecord) {
    changes.delete_range(Family::State, space_range(fresh.space));
}

pub(crate) fn put_marker(changes: &mut Changes, space: u32, marker: &[u8]) {
    changes.put(Family::State, Key::state(space, Kind::Applied).done(), encode_bytes(marker));
}

/// Removes what an unfinished install wrote: its space, and bodies that no log entry and no state can own.
pub(crate) fn discard_install(
    store: &Store,
    group: GroupId,
    install: &SpaceRecord,
    changes: &mut Changes,
) -> Result<(), StorageError> {
    changes.delete_range(Family::State, space_range(install.space));
    changes.delete(Family::Meta, meta_key(META_INSTALL, group));
    let key = meta_key(META_SPACE, group);
    let Some(value) = store.get(Family::Meta, &key)? else { return Ok(()) };
    let current: SpaceRecord = decode(Family::Meta, &key, &value)?;
    let owned = tail::greatest_index(store, group)?.max(current.installed);
    let from = owned.map_or(0, |index| index.saturating_add(1));
    let to = install.installed.unwrap_or(0).saturating_add(1);
    changes.delete_range(Family::Blob, (log_key(group, from), log_key(group, to)));
    Ok(())
}

/// The half that a [`View`] is of, which is open for as long as this lives: a snapshot borrows its database.
pub(crate) type Held = OnceCell<Reading>;

/// State records of one space, as of one moment if it has a snapshot.
pub(crate) struct View<'a> {
    pub store: &'a Store,
    half: &'a Half,
    snapshot: Option<Snapshot<'a>>,
    pub space: u32,
    exact: bool,
}

impl<'a> View<'a> {
    /// Reads nothing but the one moment: where its half cannot be read, the other one, which has moved on, will not do.
    pub(crate) fn exact(self) -> View<'a> {
        View { exact: true, ..self }
    }

    pub(crate) fn key(&self, kind: Kind) -> Key {
        Key::state(self.space, kind)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.get_in(Family::State, key)
    }

    /// Of another column family, as of the same moment.
    pub(crate) fn get_in(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if self.exact {
            let value = self.half.get(self.snapshot.as_ref(), family, key);
            return value.inspect_err(|error| drop(self.store.elsewhere(self.half, error)));
        }
        self.store.get_in(self.half, self.snapshot.as_ref(), family, key)
    }

    pub(crate) fn record<R: Message + Default>(&self, key: &[u8]) -> Result<Option<R>, StorageError> {
        self.get(key)?.map(|value| decode(Family::State, key, &value)).transpose()
    }

    pub(crate) fn marker(&self) -> Result<Option<Bytes>, StorageError> {
        let key = self.key(Kind::Applied).done();
        self.get(&key)?.map(|value| Ok(Bytes::copy_from_slice(payload(Family::State, &key, &value)?))).transpose()
    }

    /// An iterator over state records that ends before `to`. Not yet positioned.
    pub(crate) fn iterator(&self, to: Vec<u8>) -> Result<Iter<'_>, StorageError> {
        self.half.iterator(self.snapshot.as_ref(), Family::State, to)
    }

    /// The half to read from where this view's, or the one that was read from instead, cannot be read.
    pub(crate) fn elsewhere_than(&self, half: Option<&Half>, error: &StorageError) -> Option<Arc<Half>> {
        self.store.elsewhere(half.unwrap_or(self.half), error)
    }

    pub(crate) fn scan_range(
        &self,
        range: (Vec<u8>, Vec<u8>),
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let Self { store, half, snapshot, exact, .. } = self;
        let snapshot = snapshot.as_ref();
        if *exact {
            return store.scan_exact(half, snapshot, Family::State, range, visit);
        }
        store.scan_in(half, snapshot, Family::State, range, visit)
    }

    pub(crate) fn scan(
        &self,
        prefix: Key,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        self.scan_range(prefix_range(&prefix.done()), visit)
    }
}
