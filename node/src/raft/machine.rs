//! A group's state for openraft: committed entries go to an [`Applier`] in order, off the async threads; snapshots
//! are [`storage::Export`]s, which cost nothing until they are sent.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use parking_lot::Mutex;
use storage::reach;

use super::{Damage, LogId, Marker, Proposal, Reply, SnapshotMeta, StoredMembership, Synced, Types, membership_steps};

/// Entries applied in one visit to the blocking threads.
const APPLY_BATCH_MAX: usize = 256;

/// What a group's commands mean.
pub trait Applier: Send + Sync + 'static {
    /// Applies one command, and keeps `marker` with it atomically. An error is the disk's and stops the group.
    fn apply(&self, index: u64, proposal: Proposal, marker: &Marker) -> Result<Reply, storage::StorageError>;

    /// A snapshot took the place of the state.
    fn installed(&self) -> Result<(), storage::StorageError>;
}

/// A snapshot on its way: out of this replica, or received whole and not yet installed.
pub enum SnapshotData {
    Export(storage::Export),
    Received(Received),
}

/// A snapshot that comes in. Dropped before it is installed, it undoes what it wrote, off the async threads.
pub struct Received(Option<storage::Installer>);

impl Received {
    /// Writes to the disk, as everything else here does.
    pub fn new(group: &storage::Group, last_index: u64) -> Result<Received, storage::StorageError> {
        group.installer(last_index).map(|installer| Received(Some(installer)))
    }

    pub fn push(&mut self, block: &[u8]) -> Result<(), storage::StorageError> {
        self.0.as_mut().map_or(Err(storage::StorageError::Closed), |installer| installer.push(block))
    }

    /// An error where it is not all there: a sender that was stopped ends its stream as one that is done does.
    pub fn check(&self, meta: &SnapshotMeta) -> Result<(), storage::StorageError> {
        let marker = marker_of(meta).encode();
        self.0.as_ref().map_or(Err(storage::StorageError::Closed), |installer| installer.check(&marker))
    }

    fn finish(mut self, marker: Bytes) -> Result<(), storage::StorageError> {
        self.0.take().map_or(Err(storage::StorageError::Closed), |installer| installer.finish(marker))
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(installer) = self.0.take() else { return };
        // Without a runtime there are no async threads to spare.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(installer));
        }
    }
}

fn marker_of(meta: &SnapshotMeta) -> Marker {
    Marker { applied: meta.last_log_id, membership: meta.last_membership.clone() }
}

#[derive(Clone)]
pub struct Machine {
    group: storage::Group,
    applier: Arc<dyn Applier>,
    synced: Synced,
    damage: Damage,
    /// Shared by the clones that openraft makes to build snapshots.
    marker: Arc<Mutex<Marker>>,
}

impl Machine {
    /// Reads the disk.
    pub fn new(
        group: storage::Group,
        applier: Arc<dyn Applier>,
        synced: Synced,
        damage: Damage,
    ) -> io::Result<Machine> {
        let marker = group.applied().map_err(|e| damage.note(e))?;
        let marker = marker.map(|bytes| Marker::decode(&bytes)).transpose();
        let marker = marker.map_err(|e| damage.undecodable("marker", e))?.unwrap_or_default();
        Ok(Machine { group, applier, synced, damage, marker: Arc::new(Mutex::new(marker)) })
    }

    /// A snapshot of the state as it is now. None before anything was applied.
    async fn snapshot(&self) -> io::Result<Option<openraft::type_config::alias::SnapshotOf<Types, SnapshotData>>> {
        if self.marker.lock().applied.is_none() {
            return Ok(None);
        }
        let group = self.group.clone();
        let export = tokio::task::spawn_blocking(move || group.export()).await.map_err(io::Error::other)?;
        let export = export.map_err(|e| self.damage.note(e))?;
        let marker = Marker::decode(&export.marker).map_err(|e| self.damage.undecodable("marker", e))?;
        let meta = SnapshotMeta { last_log_id: marker.applied, last_membership: marker.membership };
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Export(export) }))
    }

    fn apply_one(&self, id: LogId, payload: EntryPayload<Proposal, u64, openraft::BasicNode>) -> io::Result<Reply> {
        let mut next = self.marker.lock().clone();
        next.applied = Some(id);
        let reply = match payload {
            EntryPayload::Normal(proposal) => {
                self.applier.apply(id.index, proposal, &next).map_err(|e| self.damage.note(e))?
            }
            EntryPayload::Blank => {
                self.group.set_applied(next.encode()).map_err(|e| self.damage.note(e))?;
                Reply::None
            }
            EntryPayload::Membership(membership) => {
                let (_, applied) = membership_steps(&membership);
                next.membership = StoredMembership::new(Some(id), membership);
                self.group.set_applied(next.encode()).map_err(|e| self.damage.note(e))?;
                reach(applied, self.group.id());
                Reply::None
            }
        };
        *self.marker.lock() = next;
        Ok(reply)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let marker = self.marker.lock().clone();
        Ok((marker.applied, marker.membership))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            let last = batch.iter().filter_map(|item| item.as_ref().ok()).map(|(entry, _)| entry.log_id.index).max();
            self.synced.wait_for(last.unwrap_or(0)).await?;
            let machine = self.clone();
            let applied = tokio::task::spawn_blocking(move || {
                for item in batch {
                    let (entry, responder) = item?;
                    let reply = machine.apply_one(entry.log_id, entry.payload)?;
                    if let Some(responder) = responder {
                        responder.send(reply);
                    }
                }
                io::Result::Ok(())
            });
            applied.await.map_err(io::Error::other)??;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let SnapshotData::Received(received) = snapshot else {
            return Err(io::Error::other("a snapshot that was not received cannot be installed"));
        };
        let marker = marker_of(meta);
        let machine = self.clone();
        let installed = tokio::task::spawn_blocking(move || {
            received.finish(marker.encode()).map_err(io::Error::other)?;
            machine.applier.installed().map_err(io::Error::other)?;
            let index = marker.applied.map_or(0, |id| id.index);
            *machine.marker.lock() = marker;
            tracing::info!(group = machine.group.id().0, index, "snapshot installed");
            io::Result::Ok(())
        });
        installed.await.map_err(io::Error::other)?
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::type_config::alias::SnapshotOf<Types, SnapshotData>>, io::Error> {
        self.snapshot().await
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> Result<openraft::type_config::alias::SnapshotOf<Types, SnapshotData>, io::Error> {
        self.snapshot().await?.ok_or_else(|| io::Error::other("no state to take a snapshot of"))
    }
}
