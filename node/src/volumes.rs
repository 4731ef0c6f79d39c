//! The node's volumes: whose their disks are, which of them are open, and where a new replica goes.
//!
//! The first volume also holds the directory's replica, and the record of which replica is on which volume. Without it
//! the node does not run; without another one it runs without that one's replicas.

mod apart;
mod free;
mod room;
mod status;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use parking_lot::RwLock;
use storage::{
    GroupId, HalfName, HalfState, HalfStatus, Identity, StorageError, Volume, VolumeOptions, VolumeStatistics,
};
use types::{MailError, MailResult, NodeId};

use crate::descriptors::files_max;
use crate::settings::{NodeSettings, VolumeSettings};
use crate::space::{BALLAST, Space};

use self::free::DiskRoom;

/// Below a disk's directory.
const DATABASE: &str = "db";

pub struct Volumes {
    list: Vec<Arc<NodeVolume>>,
    pub node: NodeId,
}

pub struct NodeVolume {
    /// Its place in the settings, from 1.
    pub number: u32,
    pub disks: Vec<PathBuf>,
    pub space: Space,
    /// Of each of the disks.
    rooms: Vec<Arc<DiskRoom>>,
    options: VolumeOptions,
    state: RwLock<State>,
}

enum State {
    Open { id: u64, volume: Volume },
    Down { reason: String },
}

/// What the disks of a volume say.
struct Looked {
    number: u32,
    identity: Option<Identity>,
    /// Whether each of them says it.
    is_said_by_all: bool,
    /// Why they say nothing, if not because they are empty.
    error: Option<StorageError>,
}

impl Volumes {
    /// Opens what can be opened; an error if the first volume cannot, or if the disks are not all this node's.
    pub fn open(settings: &NodeSettings) -> Result<Volumes> {
        apart::check(settings.volumes.iter().map(|volume| &volume.disks[..]))?;
        let looked: Vec<Looked> =
            (1..).zip(&settings.volumes).map(|(number, volume)| look(number, volume)).collect::<Result<_>>()?;
        let identities = || looked.iter().filter_map(|one| one.identity.as_ref());
        let node = match identities().next() {
            Some(identity) => identity.node_id,
            None => NodeId(random()?),
        };
        let is_known = identities().any(|identity| identity.cluster_id.is_some());
        for (one, volume) in looked.iter().zip(&settings.volumes) {
            let Some(identity) = &one.identity else { continue };
            ensure!(identity.node_id == node, "volume {} belongs to another node than the others", one.number);
            if let Some(disk) = volume.disks.first() {
                identity.bound(disk, &settings.cluster.id)?;
            }
        }
        let mut list: Vec<Arc<NodeVolume>> = Vec::new();
        for (one, volume) in looked.into_iter().zip(&settings.volumes) {
            let may_be_new = match list.first() {
                None => !is_known,
                Some(first) => !is_known || !first.misses_a_volume(&list, settings)?,
            };
            let is_first = list.is_empty();
            let opened = NodeVolume::open(settings, volume, one, (node, may_be_new))?;
            if let (true, State::Down { reason }) = (is_first, &*opened.state.read()) {
                bail!("volume 1, which holds the directory's replica: {reason}");
            }
            list.push(Arc::new(opened));
        }
        Ok(Volumes { list, node })
    }

    pub fn list(&self) -> &[Arc<NodeVolume>] {
        &self.list
    }

    /// The one with the directory's replica.
    pub fn first(&self) -> MailResult<Volume> {
        self.list.first().and_then(|first| first.volume()).ok_or(MailError::Unavailable)
    }

    /// Refuses disks of which two are one by now, or one is within another.
    pub fn check_apart(&self) -> MailResult<()> {
        let checked = apart::check(self.list.iter().map(|volume| &volume.disks[..]));
        checked.map_err(|error| MailError::CannotDo(error.to_string()))
    }

    pub fn numbered(&self, number: u32) -> MailResult<Arc<NodeVolume>> {
        let found = self.list.iter().find(|volume| volume.number == number).cloned();
        found.ok_or_else(|| MailError::CannotDo(format!("no volume {number}: the node has {}", self.list.len())))
    }

    pub fn with_id(&self, id: u64) -> Option<Arc<NodeVolume>> {
        self.list.iter().find(|volume| volume.id() == Some(id)).cloned()
    }

    /// Where a new replica goes: where most room is left for each, once it is there.
    pub fn roomiest(&self, replicas_on: impl Fn(&NodeVolume) -> u64) -> Option<Arc<NodeVolume>> {
        let open = self.list.iter().filter(|volume| volume.id().is_some());
        open.max_by_key(|volume| {
            let share = volume.space.free_octets() / (replicas_on(volume) + 1);
            (share, std::cmp::Reverse(volume.number))
        })
        .cloned()
    }

    /// Over all volumes that are open.
    pub fn statistics(&self) -> VolumeStatistics {
        let mut sum = VolumeStatistics::default();
        for volume in self.list.iter().filter_map(|volume| volume.volume()) {
            let one = volume.statistics();
            sum.synced_writes += one.synced_writes;
            sum.batches += one.batches;
            sum.appended_entries += one.appended_entries;
            sum.bytes += one.bytes;
            sum.halves_dropped += one.halves_dropped;
            sum.reads_elsewhere += one.reads_elsewhere;
            sum.resilvers += one.resilvers;
        }
        sum
    }

    /// How long a disk of those that are open has owed an answer.
    pub fn unanswered_for(&self) -> Duration {
        let open = self.list.iter().filter_map(|volume| volume.volume());
        open.map(|volume| volume.unanswered_for()).max().unwrap_or_default()
    }

    /// What a write that is synced takes now, in milliseconds, on the slowest of those that are open; 0 where there was none lately.
    pub fn recent_round_ms(&self) -> u32 {
        let open = self.list.iter().filter_map(|volume| volume.volume());
        let slowest = open.filter_map(|volume| volume.recent_round()).max().unwrap_or_default();
        u32::try_from(slowest.as_millis()).unwrap_or(u32::MAX)
    }

    pub fn close(&self) {
        self.list.iter().filter_map(|volume| volume.volume()).for_each(|volume| volume.close());
    }
}

fn look(number: u32, volume: &VolumeSettings) -> Result<Looked> {
    let mut looked = Looked { number, identity: None, is_said_by_all: true, error: None };
    for disk in &volume.disks {
        match (Identity::read(disk), &looked.identity) {
            (Ok(Some(found)), Some(own)) => {
                let same = (found.node_id, found.volume) == (own.node_id, own.volume);
                ensure!(same, "the disks of volume {number} belong to different volumes: {}", shown(&volume.disks));
                let format = own.format.max(found.format);
                let cluster_id = own.cluster_id.clone().or(found.cluster_id);
                looked.identity = Some(Identity { cluster_id, format, ..found });
            }
            (Ok(Some(found)), None) => looked.identity = Some(found),
            (Ok(None), _) => looked.is_said_by_all = false,
            // A newer format is nobody's to open; what is damaged or does not answer may have a mirror.
            (Err(error @ StorageError::Refused(_)), _) => return Err(error.into()),
            (Err(error), _) => {
                tracing::warn!(disk = %disk.display(), %error, "disk does not say whose it is");
                (looked.error, looked.is_said_by_all) = (Some(error), false);
            }
        }
    }
    Ok(looked)
}

fn shown(disks: &[PathBuf]) -> String {
    disks.iter().map(|disk| disk.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Never 0, which means "none" on the wire.
fn random() -> Result<u64> {
    let id = getrandom::u64().map_err(|e| anyhow!("{e}"))?;
    ensure!(id != 0, "the random source gave 0");
    Ok(id)
}

impl NodeVolume {
    fn open(
        settings: &NodeSettings,
        volume: &VolumeSettings,
        looked: Looked,
        (node, may_be_new): (NodeId, bool),
    ) -> Result<NodeVolume> {
        let number = looked.number;
        let disks = volume.disks.clone();
        let share = settings.volumes.len().max(1);
        let mut directories = disks.iter().map(|disk| disk.join(DATABASE));
        let mut options = VolumeOptions::new(directories.next().context("no disk")?);
        options.mirror = directories.next();
        // 0: nobody's.
        let has_number = looked.identity.as_ref().is_some_and(|identity| identity.volume != 0);
        options.is_one_volume = looked.is_said_by_all && has_number;
        options.resilver_bytes_per_s = settings.resilver_octets_per_s;
        options.block_cache_bytes /= share;
        options.memtable_bytes /= share;
        room::within_reserve(&mut options, settings.disk_reserve_octets);
        options.open_files_max = i32::try_from(files_max(settings.databases())).unwrap_or(i32::MAX);
        let identity = match (looked.identity, looked.error) {
            (Some(identity), _) if identity.volume == 0 => Ok(Identity { volume: random()?, ..identity }),
            (Some(identity), _) => Ok(identity),
            (None, Some(error)) => Err(error.to_string()),
            (None, None) if may_be_new => Ok(Identity::new(node, random()?)),
            (None, None) => Err(format!("{}: a volume was expected there", shown(&disks))),
        };
        // A database that is opened makes files.
        let space = Space::new(settings.disk_reserve_octets);
        space.relieve(&disks);
        let state = match identity {
            Err(reason) => State::Down { reason },
            Ok(identity) => match start((number, &disks), &options, &identity, &settings.cluster.id) {
                Ok(volume) => State::Open { id: identity.volume, volume },
                Err(error) => State::Down { reason: error.to_string() },
            },
        };
        if let State::Down { reason } = &state {
            tracing::error!(volume = number, reason, "volume is not open");
        }
        let is_open = matches!(state, State::Open { .. });
        let rooms = disks.iter().map(|_| Arc::default()).collect();
        let volume = NodeVolume { number, disks, space, rooms, options, state: RwLock::new(state) };
        if is_open && let Err(error) = volume.measure() {
            tracing::warn!(volume = number, %error, "room on a disk cannot be told");
        }
        Ok(volume)
    }

    /// Whether this volume, the first, knows of replicas on a volume that is not among those that are open.
    fn misses_a_volume(&self, open: &[Arc<NodeVolume>], settings: &NodeSettings) -> Result<bool> {
        let Some(first) = self.volume() else { return Ok(true) };
        let later = settings.volumes.iter().skip(open.len());
        let elsewhere: Vec<u64> = later
            .flat_map(|volume| &volume.disks)
            .filter_map(|disk| Identity::read(disk).ok().flatten().map(|identity| identity.volume))
            .chain(open.iter().filter_map(|volume| volume.id()))
            .collect();
        Ok(first.homes()?.values().any(|home| !elsewhere.contains(home)))
    }

    /// Its disks' directories, for whoever reads a log.
    pub fn shown(&self) -> String {
        shown(&self.disks)
    }

    /// Says on its disks that they may hold this format. Blocks.
    pub fn mark_format(&self, format: u32) -> Result<(), StorageError> {
        for disk in &self.disks {
            // A disk that is gone, or is not marked at all, is made anew with the mark.
            if let Ok(Some(found)) = Identity::read(disk)
                && found.format < format
            {
                Identity { format, ..found }.write(disk)?;
            }
        }
        Ok(())
    }

    /// Unless it is down.
    pub fn volume(&self) -> Option<Volume> {
        match &*self.state.read() {
            State::Open { volume, .. } => Some(volume.clone()),
            State::Down { .. } => None,
        }
    }

    /// What tells it from a volume that was here before. `None` while it is down.
    pub fn id(&self) -> Option<u64> {
        match &*self.state.read() {
            State::Open { id, .. } => Some(*id),
            State::Down { .. } => None,
        }
    }

    /// Nothing more is read or written here until the process starts again. The handle is to be let go off the async threads.
    pub fn give_up(&self, reason: &str) -> Option<Volume> {
        let down = State::Down { reason: reason.to_owned() };
        match std::mem::replace(&mut *self.state.write(), down) {
            State::Open { volume, .. } => Some(volume),
            State::Down { .. } => None,
        }
    }

    /// Takes an empty directory, on a disk that is there, in the place of a lost half or of a lost volume. Blocks.
    pub fn replace(&self, half: Option<HalfName>, node: NodeId, cluster_id: &str) -> MailResult<()> {
        let cannot = |reason: String| Err(MailError::CannotDo(reason));
        if let Some(volume) = self.volume() {
            let half = self.lost_half(&volume, half, false)?;
            let disk = half.directory.parent().unwrap_or(&half.directory);
            empty_disk(disk)?;
            self.check_room(&volume, disk)?;
            let Some(id) = self.id() else { return Err(MailError::Unavailable) };
            let identity = Identity::new(node, id).bound(disk, cluster_id);
            identity.and_then(|identity| identity.write(disk)).map_err(|error| untaken(&error))?;
            return Ok(volume.resilver(half.name)?);
        }
        if half.is_some() {
            return cannot(format!("volume {} is down as a whole: replace it without --half", self.number));
        }
        // The disks tell, not why the volume went down.
        self.disks.iter().try_for_each(|disk| empty_disk(disk))?;
        let id = random().map_err(|e| MailError::Internal(e.to_string()))?;
        let identity = Identity::new(node, id);
        let started = start((self.number, &self.disks), &self.options, &identity, cluster_id);
        let volume = started.map_err(|error| {
            self.disks.iter().for_each(|disk| leave_empty(disk));
            untaken(&error)
        })?;
        *self.state.write() = State::Open { id, volume };
        tracing::info!(volume = self.number, "volume made anew");
        Ok(())
    }

    /// Makes a half anew from the other one, with whatever its disk holds.
    pub fn resilver(&self, half: Option<HalfName>) -> MailResult<()> {
        let Some(volume) = self.volume() else {
            return Err(MailError::CannotDo(format!("volume {} is down: nothing to copy from", self.number)));
        };
        let half = self.lost_half(&volume, half, true)?;
        if half.directory.is_dir() {
            self.check_room(&volume, half.directory.parent().unwrap_or(&half.directory))?;
        }
        Ok(volume.resilver(half.name)?)
    }

    /// The half that is not in use, or that is damaged: the one that was named, or the only one.
    fn lost_half(&self, volume: &Volume, name: Option<HalfName>, or_damaged: bool) -> MailResult<HalfStatus> {
        let halves = volume.halves();
        if halves.is_empty() {
            return Err(MailError::CannotDo(format!("volume {} is no mirror", self.number)));
        }
        let lost = |half: &HalfStatus| match half.state {
            HalfState::Stale { .. } => true,
            HalfState::Damaged { .. } => or_damaged,
            HalfState::Current | HalfState::Resilvering { .. } => false,
        };
        let found = halves.into_iter().find(|half| name.map_or(lost(half), |name| half.name == name));
        match found {
            Some(half) if lost(&half) => Ok(half),
            Some(half) if matches!(half.state, HalfState::Resilvering { .. }) => {
                Err(MailError::CannotDo(format!("half {} of volume {} is being resilvered", half.name, self.number)))
            }
            Some(half) => Err(MailError::CannotDo(format!("half {} of volume {} is in use", half.name, self.number))),
            None => Err(MailError::CannotDo(format!("both halves of volume {} are in use", self.number))),
        }
    }
}

/// Opens a volume, or makes it where it is new, and then lets each of its disks say whose it is.
fn start(
    (number, disks): (u32, &[PathBuf]),
    options: &VolumeOptions,
    identity: &Identity,
    cluster_id: &str,
) -> Result<Volume, StorageError> {
    // Known to the cluster once the volume is there: from then on an empty one is a loss, and refused.
    let is_new = identity.cluster_id.is_none();
    if is_new {
        disks.iter().try_for_each(|disk| identity.write(disk))?;
    }
    let volume = Volume::open(VolumeOptions { create: is_new, ..options.clone() })?;
    if number == 1 && is_new {
        volume.group(GroupId::DIRECTORY)?;
    } else if number == 1 && !volume.groups()?.contains(&GroupId::DIRECTORY) {
        // It would begin anew there, without its votes.
        let reason = "it has no replica of the directory; is another volume named first?".to_owned();
        return Err(StorageError::Refused(reason));
    }
    for disk in disks.iter().filter(|disk| disk.is_dir()) {
        let bound = identity.bound(disk, cluster_id)?;
        if !is_same(disk, &bound)
            && let Err(error) = bound.write(disk)
        {
            if disks.len() == 1 {
                return Err(error);
            }
            // The other disk says it.
            tracing::warn!(disk = %disk.display(), %error, "disk does not take its identity");
        }
    }
    Ok(volume)
}

fn is_same(disk: &Path, identity: &Identity) -> bool {
    Identity::read(disk).is_ok_and(|found| found.as_ref() == Some(identity))
}

/// An operator's disk that is not taken, and why.
fn untaken(error: &StorageError) -> MailError {
    MailError::CannotDo(error.to_string())
}

/// Takes back what was begun in a directory that was empty, so that it can be taken another time.
fn leave_empty(disk: &Path) {
    for undone in [Identity::remove(disk), std::fs::remove_dir_all(disk.join(DATABASE))] {
        if let Err(error) = undone
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(disk = %disk.display(), %error, "what was begun on a disk cannot be removed");
        }
    }
}

/// Refuses a directory that is not there, or that holds anything.
fn empty_disk(disk: &Path) -> MailResult<()> {
    let entries = std::fs::read_dir(disk)
        .map_err(|e| MailError::CannotDo(format!("{}: {e}; put an empty directory there", disk.display())))?;
    for entry in entries {
        let name = entry.map_err(|e| MailError::CannotDo(format!("{}: {e}", disk.display())))?.file_name();
        if name != "lost+found" && name != BALLAST {
            return Err(MailError::CannotDo(format!(
                "{} is not empty: it holds {}",
                disk.display(),
                name.to_string_lossy()
            )));
        }
    }
    Ok(())
}
