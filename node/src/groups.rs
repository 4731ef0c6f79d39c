//! The Raft groups of this node, by number.

mod ended;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use directory::Start;
use parking_lot::{Mutex, RwLock};
use storage::{Failpoint, GroupId, StorageError, reach};
use types::{MailError, MailResult, NodeId, ShardId};

use crate::directory_group::{DirectoryApplier, DirectoryState};
use crate::group::{Group, GroupContext};
use crate::homes::{self, NOWHERE};
use crate::raft::{Peers, Raft, RaftGroups, Vote, damage_in, encode_vote};
use crate::shard::Shard;
use crate::step_aside::Stall;
use crate::volumes::{NodeVolume, Volumes};

use self::ended::Ends;

/// Of so many replicas a damaged one is made anew: without it the others still are more than one, and go on.
const REPLICAS_TO_MEND: usize = 3;

pub struct Groups {
    pub own: NodeId,
    pub peers: Arc<Peers>,
    pub context: GroupContext,
    pub stall: Stall,
    pub volumes: Arc<Volumes>,
    /// On which volume each replica is, or was before that was lost: as recorded in the first one.
    homes: Mutex<BTreeMap<GroupId, u64>>,
    pub directory_state: Arc<DirectoryState>,
    /// Another one once its core has ended and it has begun anew.
    directory: RwLock<Group>,
    shards: RwLock<HashMap<ShardId, Arc<Shard>>>,
    /// Replicas that cannot be read, and why. What they hold stays on disk until their group has gone on without them and
    /// its leader has them begun anew; the next start tries again, with all that they have promised.
    damaged: Mutex<BTreeMap<ShardId, String>>,
    /// The last starts of other nodes, as they have said to this one.
    pub starts: Mutex<BTreeMap<u64, Start>>,
    /// Held while a replica is started.
    starting: tokio::sync::Mutex<()>,
    ends: Mutex<Ends>,
    /// What ends from now on is to.
    stopping: AtomicBool,
}

impl Groups {
    /// Starts the directory's replica and every shard replica that is on disk.
    pub async fn start(volumes: Arc<Volumes>, context: GroupContext) -> io::Result<Arc<Groups>> {
        let first = volumes.first().map_err(io::Error::other)?;
        let disk = volumes.list().first().map(|volume| volume.shown()).unwrap_or_default();
        let opening = tokio::task::spawn_blocking(move || {
            let storage = first.group(GroupId::DIRECTORY)?;
            let directory_state = DirectoryState::open(&storage)?;
            Ok::<_, StorageError>((storage, directory_state, first.homes()?))
        });
        let (storage, directory_state, homes) =
            opening.await.map_err(io::Error::other)?.map_err(|e| unreadable(&disk, e))?;
        let applier = Arc::new(DirectoryApplier { state: directory_state.clone(), storage: storage.clone() });
        let directory = Group::start(storage, applier, &context).await;
        let directory = directory.map_err(|e| damage_in(&e).map_or(e, |damage| unreadable(&disk, damage)))?;
        let (own, peers, stall) = (context.own, context.peers.clone(), context.stall.clone());
        let (homes, shards) = (Mutex::new(homes), RwLock::default());
        let starting = tokio::sync::Mutex::default();
        let (damaged, starts) = (Mutex::default(), Mutex::default());
        let groups = Groups {
            own,
            peers,
            context,
            stall,
            volumes,
            homes,
            directory_state,
            directory: RwLock::new(directory),
            shards,
            damaged,
            starts,
            starting,
            ends: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        let groups = Arc::new(groups);
        for volume in groups.volumes.list() {
            groups.start_all_on(volume).await?;
        }
        Ok(groups)
    }

    /// Starts the replicas that are on a volume. One whose home is another volume by now is a leftover: it goes.
    async fn start_all_on(&self, volume: &Arc<NodeVolume>) -> io::Result<()> {
        let (Some(id), Some(opened)) = (volume.id(), volume.volume()) else { return Ok(()) };
        let listing = opened.clone();
        let on_disk = match tokio::task::spawn_blocking(move || listing.groups()).await.map_err(io::Error::other)? {
            Ok(on_disk) => on_disk,
            Err(error) if volume.number == 1 => return Err(io::Error::other(error)),
            Err(error) => {
                tracing::error!(volume = volume.number, %error, "volume cannot be read, its replicas are gone");
                self.give_up_volume(volume, &error.to_string());
                return Ok(());
            }
        };
        for group in on_disk.into_iter().filter(|group| *group != GroupId::DIRECTORY) {
            let home = self.homes.lock().get(&group).copied();
            match home {
                Some(home) if home != id => {
                    tracing::warn!(
                        shard = group.0,
                        volume = volume.number,
                        "replica that was made anew elsewhere dropped"
                    );
                    self.drop_leftover(group, volume).await;
                    continue;
                }
                Some(_) => {}
                None => self.settle(group, id).await?,
            }
            self.start_unless_damaged(ShardId(group.0), volume).await?;
        }
        Ok(())
    }

    /// The directory's group as it runs now.
    pub fn directory(&self) -> Group {
        self.directory.read().clone()
    }

    /// More is known of this node's disks: replicas that may vote now stand for election.
    pub fn stand(&self) {
        self.directory().stand_if_due();
        self.shards().iter().for_each(|shard| shard.group.stand_if_due());
    }

    /// What nobody counts on any more. It is never started, whether it goes or not.
    async fn drop_leftover(&self, group: GroupId, volume: &NodeVolume) {
        let Some(opened) = volume.volume() else { return };
        if let Err(error) = blocking(move || opened.drop_group(group)).await {
            tracing::error!(shard = group.0, volume = volume.number, %error, "leftover of a replica cannot be dropped");
        }
    }

    /// `None`: it cannot be read, and is noted as damaged.
    async fn start_unless_damaged(&self, id: ShardId, volume: &Arc<NodeVolume>) -> io::Result<Option<Arc<Shard>>> {
        match self.start_on(id, volume).await {
            Ok(shard) => Ok(Some(shard)),
            Err(error) => match damage_in(&error) {
                Some(damage) => {
                    self.note_damage(id, volume, &damage);
                    Ok(None)
                }
                None => Err(error),
            },
        }
    }

    fn note_damage(&self, id: ShardId, volume: &NodeVolume, damage: &StorageError) {
        let disk = volume.shown();
        tracing::error!(shard = id.0, volume = volume.number, disk, error = %damage, "replica is damaged");
        self.damaged.lock().insert(id, format!("on {disk}: {damage}"));
    }

    /// Takes out of service what has stopped since it cannot be read.
    pub async fn stop_damaged(&self) {
        for shard in self.shards() {
            let Some(damage) = shard.group.stopped_by_damage() else { continue };
            let _starting = self.starting.lock().await;
            self.shards.write().remove(&shard.id);
            drop(shard.group.raft.shutdown().await);
            self.note_damage(shard.id, &shard.volume, &damage);
        }
    }

    /// The shards whose replica here cannot be read and is not made anew from others, since too few would be left, and why.
    pub fn damaged(&self) -> Vec<(ShardId, String)> {
        let (directory, damaged) = (self.directory_state.read(), self.damaged.lock());
        let kept = directory.placements_on(self.own).filter(|placement| placement.wanted.len() < REPLICAS_TO_MEND);
        kept.filter_map(|placement| Some((placement.shard, damaged.get(&placement.shard)?.clone()))).collect()
    }

    /// Starts this node's replica of a shard unless it runs. `None` where its volume is lost, and where there is none yet:
    /// only that of a group that is being `founded` begins by itself.
    pub async fn start_shard(&self, id: ShardId, founded: bool) -> io::Result<Option<Arc<Shard>>> {
        let _starting = self.starting.lock().await;
        if let Some(shard) = self.shards.read().get(&id) {
            return Ok(Some(shard.clone()));
        }
        if self.damaged.lock().contains_key(&id) {
            return Ok(None);
        }
        let home = self.homes.lock().get(&GroupId(id.0)).copied();
        let volume = match home {
            Some(home) => self.volumes.with_id(home),
            None if !founded => None,
            None => {
                let volume = self.volumes.roomiest(|volume| self.replicas_on(volume));
                if let Some(home) = volume.as_ref().and_then(|volume| volume.id()) {
                    self.settle(GroupId(id.0), home).await?;
                }
                volume
            }
        };
        let Some(volume) = volume else { return Ok(None) };
        self.start_unless_damaged(id, &volume).await
    }

    /// Starts an empty replica where there is none, in the place of a lost one, or of one that is to be discarded, does not
    /// lead, and knows of no membership behind the one at the index `discard`; the number of the volume that it is on now.
    /// `None` where none is to begin, or no volume is left.
    ///
    /// `vote` and `votes_from` are those of its leader: see [`storage::Group::begin`].
    pub async fn begin_replica(
        &self,
        id: ShardId,
        discard: Option<u64>,
        vote: Vote,
        votes_from: u64,
    ) -> io::Result<Option<u32>> {
        let _starting = self.starting.lock().await;
        if let Some(membership) = discard {
            self.discard(id, membership, &vote).await?;
        }
        if !self.lost().contains(&id) && !self.absent().contains(&id) {
            return Ok(None);
        }
        let Some(volume) = self.volumes.roomiest(|volume| self.replicas_on(volume)) else { return Ok(None) };
        let (Some(home), Some(opened)) = (volume.id(), volume.volume()) else { return Ok(None) };
        let group = GroupId(id.0);
        reach(Failpoint::BeginReceived, group);
        let before = self.homes.lock().get(&group).copied().filter(|before| *before != home);
        let first = self.volumes.first().map_err(io::Error::other)?;
        self.homes.lock().insert(group, NOWHERE);
        blocking(move || homes::begin(&first, (home, &opened), group, (encode_vote(&vote), votes_from))).await?;
        self.homes.lock().insert(group, home);
        self.damaged.lock().remove(&id);
        self.start_on(id, &volume).await?;
        reach(Failpoint::BegunStarted, group);
        if let Some(before) = before.and_then(|before| self.volumes.with_id(before)) {
            self.drop_leftover(group, &before).await;
        }
        Ok(Some(volume.number))
    }

    /// Drops a replica with its votes. From then on it is lost: nothing of it comes back by itself.
    async fn discard(&self, id: ShardId, membership: u64, vote: &Vote) -> io::Result<()> {
        // It may be a member again by now, or follow another leader, and the call late.
        let is_discarded = |shard: &Arc<Shard>| {
            let group = &shard.group;
            !group.leads() && group.membership_index() <= membership && group.term() <= vote.leader_id.term
        };
        let Some(shard) = self.shards.read().get(&id).cloned().filter(is_discarded) else { return Ok(()) };
        self.settle(GroupId(id.0), NOWHERE).await?;
        self.shards.write().remove(&id);
        drop(shard.group.raft.shutdown().await);
        match shard.volume.volume() {
            Some(opened) => blocking(move || opened.drop_group(GroupId(id.0))).await,
            None => Ok(()),
        }
    }

    /// Stops a replica, and drops it if its node is no member of its group, which is asked once it says nothing any more.
    pub async fn leave<F: Future<Output = Option<bool>>>(
        &self,
        id: ShardId,
        is_member: impl FnOnce() -> F,
    ) -> io::Result<bool> {
        let _starting = self.starting.lock().await;
        let Some(shard) = self.shards.write().remove(&id) else { return Ok(false) };
        drop(shard.group.raft.shutdown().await);
        let volume = shard.volume.clone();
        drop(shard);
        reach(Failpoint::DropStopped, GroupId(id.0));
        if is_member().await != Some(false) {
            // Entries may still be applied to it: what begins now must not be a second one to do so.
            if let Some(opened) = volume.volume() {
                blocking(move || opened.let_go(GroupId(id.0))).await?;
            }
            return self.start_unless_damaged(id, &volume).await.map(|_| false);
        }
        reach(Failpoint::DropConfirmed, GroupId(id.0));
        let Some(opened) = volume.volume() else { return Ok(false) };
        let first = self.volumes.first().map_err(io::Error::other)?;
        blocking(move || homes::end(&first, &opened, GroupId(id.0))).await?;
        self.homes.lock().remove(&GroupId(id.0));
        Ok(true)
    }

    /// The shards whose replica should be here and never began, of groups that exist: their leaders will say when.
    pub fn absent(&self) -> Vec<ShardId> {
        let directory = self.directory_state.read();
        let (homes, shards) = (self.homes.lock(), self.shards.read());
        let placed = directory.placements_on(self.own).filter(|placement| placement.initialised);
        let none = |shard: &ShardId| !shards.contains_key(shard) && !homes.contains_key(&GroupId(shard.0));
        placed.map(|placement| placement.shard).filter(none).collect()
    }

    /// The shards whose replica should be here and was on a volume that is lost, or is damaged where enough others are.
    pub fn lost(&self) -> Vec<ShardId> {
        let wanted: Vec<(ShardId, usize)> = {
            let directory = self.directory_state.read();
            directory.placements_on(self.own).map(|placement| (placement.shard, placement.wanted.len())).collect()
        };
        let (homes, shards, damaged) = (self.homes.lock(), self.shards.read(), self.damaged.lock());
        let is_lost = |(shard, replicas): &(ShardId, usize)| {
            let home = homes.get(&GroupId(shard.0));
            let has_none = home.is_some_and(|home| self.volumes.with_id(*home).is_none());
            let is_mended = *replicas >= REPLICAS_TO_MEND && damaged.contains_key(shard);
            !shards.contains_key(shard) && (has_none || is_mended)
        };
        wanted.into_iter().filter(is_lost).map(|(shard, _)| shard).collect()
    }

    async fn start_on(&self, id: ShardId, volume: &Arc<NodeVolume>) -> io::Result<Arc<Shard>> {
        let opened = volume.volume().ok_or_else(|| io::Error::other("the volume is down"))?;
        // A new group's space is synced to disk.
        let storage = blocking(move || opened.group(GroupId(id.0))).await?;
        let shard = Shard::start(id, storage, volume.clone(), &self.context).await?;
        self.shards.write().insert(id, shard.clone());
        Ok(shard)
    }

    async fn settle(&self, group: GroupId, home: u64) -> io::Result<()> {
        let first = self.volumes.first().map_err(io::Error::other)?;
        blocking(move || first.set_home(group, home)).await?;
        self.homes.lock().insert(group, home);
        Ok(())
    }

    pub fn replicas_on(&self, volume: &NodeVolume) -> u64 {
        self.shards.read().values().filter(|shard| shard.volume.number == volume.number).count() as u64
    }

    /// The node goes on without a volume whose disks have failed, and without its replicas. They stop in the background: a disk
    /// that fails may answer some calls never.
    pub fn give_up_volume(&self, volume: &NodeVolume, reason: &str) {
        let opened = volume.give_up(reason);
        let lost: Vec<Arc<Shard>> = {
            let mut shards = self.shards.write();
            let ids: Vec<ShardId> =
                shards.values().filter(|shard| shard.volume.number == volume.number).map(|shard| shard.id).collect();
            ids.iter().filter_map(|id| shards.remove(id)).collect()
        };
        tokio::spawn(async move {
            for shard in lost {
                drop(shard.group.raft.shutdown().await);
            }
            drop(tokio::task::spawn_blocking(move || drop(opened)).await);
        });
    }

    /// Whether a volume that is open has too little room for new mail.
    pub fn is_full(&self) -> bool {
        self.volumes.list().iter().any(|volume| volume.id().is_some() && volume.space.is_full())
    }

    /// On the open volume that has least.
    pub fn free_octets(&self) -> u64 {
        let open = self.volumes.list().iter().filter(|volume| volume.id().is_some());
        open.map(|volume| volume.space.free_octets()).min().unwrap_or(0)
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
        std::iter::once(self.directory()).chain(shards.iter().map(|shard| shard.group.clone())).collect()
    }

    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        for shard in self.shards() {
            drop(shard.group.raft.shutdown().await);
        }
        drop(self.directory().raft.shutdown().await);
    }
}

impl RaftGroups for Groups {
    fn own_id(&self) -> u64 {
        self.own.0
    }

    fn takes_entries(&self, group: GroupId) -> bool {
        if group == GroupId::DIRECTORY {
            return self.volumes.list().first().is_none_or(|volume| volume.space.takes_entries());
        }
        self.shards.read().get(&ShardId(group.0)).is_none_or(|shard| shard.volume.space.takes_entries())
    }

    fn takes_part(&self, group: GroupId) -> bool {
        if group == GroupId::DIRECTORY {
            return self.directory.read().takes_part();
        }
        self.shards.read().get(&ShardId(group.0)).is_none_or(|shard| shard.group.takes_part())
    }

    fn raft(&self, group: GroupId) -> Option<Raft> {
        if group == GroupId::DIRECTORY {
            return Some(self.directory.read().raft.clone());
        }
        self.shards.read().get(&ShardId(group.0)).map(|shard| shard.group.raft.clone())
    }

    fn storage(&self, group: GroupId) -> Option<storage::Group> {
        if group == GroupId::DIRECTORY {
            return Some(self.directory.read().storage.clone());
        }
        self.shards.read().get(&ShardId(group.0)).map(|shard| shard.group.storage.clone())
    }
}

/// The node cannot run without its replica of the directory: says what to do.
pub fn unreadable(disk: &str, error: StorageError) -> io::Error {
    if !error.is_unread() {
        return io::Error::other(error);
    }
    io::Error::other(format!(
        "the directory's replica on {disk} cannot be read: {error}; if other nodes have the directory, remove \
         this node with `mailring node remove`, and let it join again with empty disks"
    ))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StorageError> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?.map_err(io::Error::other)
}
