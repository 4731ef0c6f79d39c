//! The Raft groups of this node, by number.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::RwLock;
use storage::{GroupId, StorageError, Volume};
use types::{MailError, MailResult, NodeId, ShardId};

use crate::directory_group::{DirectoryApplier, DirectoryState};
use crate::group::{Group, GroupContext};
use crate::raft::{Peers, Raft, RaftGroups};
use crate::shard::Shard;
use crate::space::Space;
use crate::step_aside::Stall;

pub struct Groups {
    pub own: NodeId,
    pub peers: Arc<Peers>,
    pub context: GroupContext,
    pub volume: Volume,
    pub space: Space,
    pub stall: Stall,
    pub directory_state: Arc<DirectoryState>,
    pub directory: Group,
    shards: RwLock<HashMap<ShardId, Arc<Shard>>>,
}

impl Groups {
    /// Starts the directory's replica and every shard replica that is on disk.
    pub async fn start(volume: Volume, space: Space, context: GroupContext) -> io::Result<Arc<Groups>> {
        let opened = volume.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let storage = opened.group(GroupId::DIRECTORY)?;
            let directory_state = DirectoryState::open(storage.clone())?;
            Ok::<_, StorageError>((storage, directory_state, opened.groups()?))
        });
        let (storage, directory_state, on_disk) = opening.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let applier = Arc::new(DirectoryApplier(directory_state.clone()));
        let directory = Group::start(storage, applier, &context).await?;
        let (own, peers, stall) = (context.own, context.peers.clone(), context.stall.clone());
        let shards = RwLock::default();
        let groups = Groups { own, peers, context, volume, space, stall, directory_state, directory, shards };
        let groups = Arc::new(groups);
        for group in on_disk.into_iter().filter(|group| *group != GroupId::DIRECTORY) {
            groups.start_shard(ShardId(group.0)).await?;
        }
        Ok(groups)
    }

    /// Starts this node's replica of a shard unless it runs. One caller at a time: the reconciler.
    pub async fn start_shard(&self, id: ShardId) -> io::Result<Arc<Shard>> {
        if let Some(shard) = self.shards.read().get(&id) {
            return Ok(shard.clone());
        }
        let volume = self.volume.clone();
        // A new group's space is synced to disk.
        let storage =
            tokio::task::spawn_blocking(move || volume.group(GroupId(id.0))).await.map_err(io::Error::other)?;
        let storage = storage.map_err(io::Error::other)?;
        let shard = Shard::start(id, storage, &self.context).await?;
        self.shards.write().insert(id, shard.clone());
        Ok(shard)
    }

    /// This node's replica of a shard, whether it leads or not.
    pub fn shard(&self, id: ShardId) -> MailResult<Arc<Shard>> {
        self.shards.read().get(&id).cloned().ok_or(MailError::NotLeader { hint: None })
    }

    pub fn shards(&self) -> Vec<Arc<Shard>> {
        let mut shards: Vec<_> = self.shards.read().values().cloned().collect();
        shards.sort_by_key(|shard| shard.id);
        shards
    }

    /// The directory's group and those of the shards.
    pub fn all(&self) -> Vec<Group> {
        let shards = self.shards();
        std::iter::once(self.directory.clone()).chain(shards.iter().map(|shard| shard.group.clone())).collect()
    }

    pub async fn stop(&self) {
        for shard in self.shards() {
            drop(shard.group.raft.shutdown().await);
        }
        drop(self.directory.raft.shutdown().await);
    }
}

impl RaftGroups for Groups {
    fn own_id(&self) -> u64 {
        self.own.0
    }

    fn takes_entries(&self) -> bool {
        self.space.takes_entries()
    }

    fn raft(&self, group: GroupId) -> Option<Raft> {
        if group == GroupId::DIRECTORY {
            return Some(self.directory.raft.clone());
        }
        self.shards.read().get(&ShardId(group.0)).map(|shard| shard.group.raft.clone())
    }

    fn storage(&self, group: GroupId) -> Option<storage::Group> {
        if group == GroupId::DIRECTORY {
            return Some(self.directory.storage.clone());
        }
        self.shards.read().get(&ShardId(group.0)).map(|shard| shard.group.storage.clone())
    }
}
