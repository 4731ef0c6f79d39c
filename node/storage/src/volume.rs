//! A volume: one database, the groups in it, and its writer thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use crate::assemble;
use crate::error::StorageError;
use crate::failpoint;
use crate::faults::HalfName;
use crate::group::{self, Group, SpaceRecord};
use crate::half_status::HalfStatus;
use crate::keys::{
    GroupId, META_HOME, META_INSTALL, META_SPACE, META_STARTS, META_VOLUME_STARTS, meta_key, printable, u32_at, u64_at,
};
use crate::losses::Lost;
use crate::mirror::Mirror;
use crate::options::VolumeOptions;
use crate::planted;
use crate::records;
use crate::resilver;
use crate::scrub::{self, ScrubHistory, ScrubOptions, ScrubProgress, ScrubReport};
use crate::snapshot;
use crate::store::{Changes, Family, Store};
use crate::stray;
use crate::unread::Unread;
use crate::watch;
use crate::writer::Writer;

/// Cheap to clone. The groups of a volume are of use only while a handle of it lives: dropping the last one closes it.
/// The database is let go when the last [`Group`] and export are gone too.
#[derive(Clone)]
pub struct Volume {
    inner: Arc<Inner>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeStatistics {
    /// Rounds of the writer: one fsync each.
    pub synced_writes: u64,
    /// Write batches, synced and unsynced.
    pub batches: u64,
    /// Log entries that are durable.
    pub appended_entries: u64,
    /// Bytes of all batches.
    pub bytes: u64,
    /// Halves of a mirror that were dropped since the volume was opened.
    pub halves_dropped: u64,
    /// Reads that the other half answered.
    pub reads_elsewhere: u64,
    /// Halves that were made anew.
    pub resilvers: u64,
    /// Bodies that a resilver found only in the database that a half had before it was dropped.
    pub bodies_salvaged: u64,
    /// Bodies that a resilver found nowhere: reading them is an error, until they come from another node.
    pub bodies_left_out: u64,
    /// Other records that a resilver has from that database, and from the log of the half that went on.
    pub records_recalled: u64,
}

/// What the groups of a volume share.
pub(crate) struct Shared {
    pub store: Arc<Store>,
    pub writer: Writer,
    pub tail_bytes_per_group: usize,
    pub tail_bytes_max: usize,
    /// Bytes of recent entries over all groups.
    pub tail_bytes: AtomicUsize,
    space_next: AtomicU32,
    /// Log entries, bodies and groups that have gone.
    pub removed: AtomicU64,
    /// As on the disk.
    pub scrubs: Mutex<ScrubHistory>,
    /// Held while they are changed.
    pub noting: Mutex<()>,
    pub unread: Unread,
}

impl Shared {
    /// Where snapshots on their way in are spooled: on a disk that works.
    pub(crate) fn spool(&self) -> PathBuf {
        spool(&self.store)
    }

    /// A space id that was never used since the volume was opened, nor is in use.
    pub(crate) fn fresh_space(&self) -> u32 {
        self.space_next.fetch_add(1, Ordering::Relaxed)
    }
}

struct Inner {
    shared: Arc<Shared>,
    groups: Mutex<BTreeMap<GroupId, Group>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// While it lives the halves are looked after.
    watching: Mutex<Option<mpsc::Sender<()>>>,
}

impl Volume {
    /// Opens or makes a volume. Refuses one that lacks acknowledged writes, that is in use or that is damaged.
    pub fn open(options: VolumeOptions) -> Result<Volume, StorageError> {
        planted::check()?;
        failpoint::check()?;
        let store = Arc::new(assemble::open(&options)?);
        snapshot::clear_spool(&spool(&store))?;
        let shared = Arc::new(Shared {
            writer: Writer::new(store.clone(), options.queue_bytes_max, options.round_bytes_max),
            tail_bytes_per_group: options.tail_bytes_per_group,
            tail_bytes_max: options.tail_bytes_max,
            tail_bytes: AtomicUsize::new(0),
            space_next: AtomicU32::new(space_next(&store)?),
            removed: AtomicU64::new(0),
            scrubs: Mutex::new(scrub::history(&store)),
            noting: Mutex::default(),
            unread: Unread::default(),
            store,
        });
        remove_unfinished(&shared)?;
        let thread = thread::Builder::new().name("volume-writer".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.writer.run()
        });
        let mut threads = vec![thread.map_err(|error| StorageError::io("starting the writer", error))?];
        if shared.store.mirror.is_some() {
            let thread = thread::Builder::new().name("mirror-resilver".to_owned()).spawn({
                let shared = shared.clone();
                move || resilver::run(&shared, &options)
            });
            threads.push(thread.map_err(|error| StorageError::io("starting the resilver", error))?);
        }
        let (watching, closing) = mpsc::channel();
        let thread = thread::Builder::new().name("volume-watch".to_owned()).spawn({
            let store = shared.store.clone();
            move || watch::run(&store, &closing)
        });
        threads.push(thread.map_err(|error| StorageError::io("starting to watch", error))?);
        let watching = Mutex::new(Some(watching));
        // So that there is something to show while a disk takes its time.
        shared.store.halves();
        let inner = Inner { shared, groups: Mutex::default(), threads: Mutex::new(threads), watching };
        Ok(Volume { inner: Arc::new(inner) })
    }

    /// Opens a group, or makes an empty one. The same group for the same id.
    pub fn group(&self, id: GroupId) -> Result<Group, StorageError> {
        let mut groups = self.inner.groups.lock();
        if let Some(group) = groups.get(&id) {
            return Ok(group.clone());
        }
        let group = Group::open(self.inner.shared.clone(), id)?;
        groups.insert(id, group.clone());
        Ok(group)
    }

    /// The groups that are on the disk.
    pub fn groups(&self) -> Result<Vec<GroupId>, StorageError> {
        let mut found = Vec::new();
        each_meta(&self.inner.shared.store, META_SPACE, |group, _| {
            found.push(group);
            Ok(())
        })?;
        Ok(found)
    }

    /// Removes a group: log, votes, state and bodies, even where its log cannot be read. Durable on return. Handles of it
    /// answer `Dropped` from now on.
    pub fn drop_group(&self, id: GroupId) -> Result<(), StorageError> {
        match self.group(id) {
            Ok(group) => group.remove()?,
            Err(error) if error.is_unread() => group::remove_unread(&self.inner.shared, id)?,
            Err(error) => return Err(error),
        }
        self.inner.groups.lock().remove(&id);
        self.inner.shared.removed.fetch_add(1, Ordering::Relaxed);
        self.inner.shared.unread.forget(id);
        if self.scrub_history().losses.has(id) {
            scrub::note(&self.inner.shared, |history| {
                let losses = history.losses.clone().without(id);
                Ok(ScrubHistory { losses, ..history })
            })?;
        }
        Ok(())
    }

    /// Ends the handles of a group, which answer `Dropped` from now on, and leaves all that it has: for whoever cannot
    /// know what still works with them. The next [`Volume::group`] opens it anew. Returns when all that was asked for
    /// before is durable.
    pub fn let_go(&self, id: GroupId) -> Result<(), StorageError> {
        let Some(group) = self.inner.groups.lock().get(&id).cloned() else { return Ok(()) };
        group.retire()?;
        self.inner.groups.lock().remove(&id);
        Ok(())
    }

    /// On which of the node's volumes each replica is, as [`Volume::set_home`] has recorded it here.
    pub fn homes(&self) -> Result<BTreeMap<GroupId, u64>, StorageError> {
        let mut found = BTreeMap::new();
        each_meta(&self.inner.shared.store, META_HOME, |group, value| {
            let key = meta_key(META_HOME, group);
            let volume = u64_at(records::payload(Family::Meta, &key, value)?, 0);
            let volume = volume.ok_or_else(|| StorageError::corrupt(printable(Family::Meta, &key), "short record"))?;
            found.insert(group, volume);
            Ok(())
        })?;
        Ok(found)
    }

    /// Records on which volume a replica is, before it says anything in its group: one whose volume is lost has lost
    /// its votes too, and must not begin anew by itself. Durable on return.
    pub fn set_home(&self, group: GroupId, volume: u64) -> Result<(), StorageError> {
        let mut changes = Changes::default();
        changes.put(Family::Meta, meta_key(META_HOME, group), records::encode_bytes(&volume.to_be_bytes()));
        self.inner.shared.writer.write_and_wait(changes)
    }

    /// A replica that has left its group for good is on no volume: another may begin. Durable on return.
    pub fn forget_home(&self, group: GroupId) -> Result<(), StorageError> {
        let mut changes = Changes::default();
        changes.delete(Family::Meta, meta_key(META_HOME, group));
        self.inner.shared.writer.write_and_wait(changes)
    }

    /// How often the node had started when the volume was last open, and what that process drew, as recorded here.
    pub fn starts(&self) -> Result<(u64, u64), StorageError> {
        let key = meta_key(META_STARTS, GroupId::DIRECTORY);
        let Some(value) = self.inner.shared.store.get(Family::Meta, &key)? else { return Ok((0, 0)) };
        let record = records::payload(Family::Meta, &key, &value)?;
        match (u64_at(record, 0), u64_at(record, 8)) {
            (Some(starts), Some(run)) => Ok((starts, run)),
            _ => Err(StorageError::corrupt(printable(Family::Meta, &key), "short record")),
        }
    }

    /// Durable on return.
    pub fn set_starts(&self, starts: u64, run: u64) -> Result<(), StorageError> {
        let mut changes = Changes::default();
        let record = [starts.to_be_bytes(), run.to_be_bytes()].concat();
        changes.put(Family::Meta, meta_key(META_STARTS, GroupId::DIRECTORY), records::encode_bytes(&record));
        self.inner.shared.writer.write_and_wait(changes)
    }

    /// The same of the node's other volumes, by their ids, as recorded in this one, the first.
    pub fn volume_starts(&self) -> Result<BTreeMap<u64, (u64, u64)>, StorageError> {
        let key = meta_key(META_VOLUME_STARTS, GroupId::DIRECTORY);
        let Some(value) = self.inner.shared.store.get(Family::Meta, &key)? else { return Ok(BTreeMap::new()) };
        let record = records::payload(Family::Meta, &key, &value)?;
        let one = |record: &[u8]| Some((u64_at(record, 0)?, (u64_at(record, 8)?, u64_at(record, 16)?)));
        let starts: Option<BTreeMap<u64, (u64, u64)>> = record.chunks(24).map(one).collect();
        starts.ok_or_else(|| StorageError::corrupt(printable(Family::Meta, &key), "short record"))
    }

    /// Durable on return.
    pub fn set_volume_starts(&self, starts: &BTreeMap<u64, (u64, u64)>) -> Result<(), StorageError> {
        let record: Vec<u8> = starts
            .iter()
            .flat_map(|(id, (starts, run))| [id, starts, run])
            .flat_map(|part| part.to_be_bytes())
            .collect();
        let mut changes = Changes::default();
        changes.put(Family::Meta, meta_key(META_VOLUME_STARTS, GroupId::DIRECTORY), records::encode_bytes(&record));
        self.inner.shared.writer.write_and_wait(changes)
    }

    /// The records that belong to no group, unfinished installs, and bodies that nothing refers to, by their keys; for
    /// tests that nothing is left behind. Nobody may write meanwhile.
    #[doc(hidden)]
    pub fn strays(&self) -> Result<Vec<String>, StorageError> {
        stray::find(&self.inner.shared.store)
    }

    pub fn statistics(&self) -> VolumeStatistics {
        let shared = &self.inner.shared;
        let (batches, bytes) = shared.store.written();
        let of_mirror = |count: fn(&Mirror) -> &AtomicU64| {
            shared.store.mirror.as_ref().map_or(0, |mirror| count(mirror).load(Ordering::Relaxed))
        };
        VolumeStatistics {
            synced_writes: shared.writer.syncs.load(Ordering::Relaxed),
            batches,
            appended_entries: shared.writer.entries.load(Ordering::Relaxed),
            bytes,
            halves_dropped: of_mirror(|mirror| &mirror.dropped),
            reads_elsewhere: of_mirror(|mirror| &mirror.served_elsewhere),
            resilvers: of_mirror(|mirror| &mirror.resilvers),
            bodies_salvaged: of_mirror(|mirror| &mirror.salvaged),
            bodies_left_out: of_mirror(|mirror| &mirror.left_out),
            records_recalled: of_mirror(|mirror| &mirror.recalled),
        }
    }

    /// What a write that is synced takes now, on average; `None` where there was none lately.
    pub fn recent_round(&self) -> Option<Duration> {
        self.inner.shared.store.round_times.recent()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    pub(crate) fn opened(&self) -> Vec<Group> {
        self.inner.groups.lock().values().cloned().collect()
    }

    /// The halves of a mirror; none for a volume of one disk.
    pub fn halves(&self) -> Vec<HalfStatus> {
        self.inner.shared.store.halves()
    }

    /// Makes a half anew that is not in use: on an empty disk in its place, or on the same. Returns at once;
    /// [`Volume::halves`] tells how far it is. Begins by itself when the volume is opened without a half, and after
    /// damage was read; and again once there is room where there was none.
    pub fn resilver(&self, name: HalfName) -> Result<(), StorageError> {
        match &self.inner.shared.store.mirror {
            Some(mirror) => {
                self.inner.shared.store.look_for(mirror, name);
                mirror.resilver(name)
            }
            None => Err(StorageError::Misuse("the volume is no mirror".to_owned())),
        }
    }

    /// Takes a half out of use whose disk has no room for more, and says so for this reason. Only where the other one is whole
    /// and its disk answers: whether the half is out of use when this returns. Recorded then as every drop is. Blocks.
    pub fn drop_full(&self, name: HalfName, reason: &str) -> Result<bool, StorageError> {
        match &self.inner.shared.store.mirror {
            Some(mirror) => self.inner.shared.store.drop_full(mirror, name, reason),
            None => Err(StorageError::Misuse("the volume is no mirror".to_owned())),
        }
    }

    /// Reads everything that the volume holds, or one group's part of it, compares the halves of a mirror, and repairs
    /// what a good copy can repair. Blocks its caller for as long as that takes; the volume serves meanwhile. An error
    /// means that it could not go on; damage is no error, but in the report.
    pub fn scrub(&self, options: &ScrubOptions, progress: &ScrubProgress) -> Result<ScrubReport, StorageError> {
        let (losses_before, unread_before) = (self.scrub_history().losses, self.inner.shared.unread.so_far());
        let report = scrub::run(&self.inner.shared, self.opened(), options, progress)?;
        Ok(ScrubReport { losses_before, unread_before, ..report })
    }

    /// When the volume was last scrubbed, what was found, and which records have no good copy on it. Never waits for the
    /// disk.
    pub fn scrub_history(&self) -> ScrubHistory {
        self.inner.shared.scrubs.lock().clone()
    }

    /// What reads have met damage in, with no good copy here, as [`Group::note_unread`] was told, and exports: until a scrub or a
    /// resilver has read it again, or all of the group was read otherwise. What [`Volume::scrub_history`] names as lost is not among them.
    pub fn unread(&self) -> BTreeMap<GroupId, Lost> {
        self.inner.shared.unread.by_group()
    }

    /// Records that all of the volume has been scrubbed, or one group's part of it. Durable on return.
    pub fn note_scrubbed(&self, group: Option<GroupId>, report: &ScrubReport, unix_s: i64) -> Result<(), StorageError> {
        let shared = &self.inner.shared;
        scrub::note(shared, |history| {
            let found = report.losses.clone().current(&shared.store)?;
            Ok(history.after(group, &ScrubReport { losses: found, ..report.clone() }, unix_s))
        })?;
        // What is lost is told as that from now on.
        shared.unread.was_read(group, report.unread_before, |group| report.cannot_read(group));
        Ok(())
    }

    /// Records from when on the time to the first scrub counts. Durable on return.
    pub fn note_unscrubbed(&self, since_unix_s: i64) -> Result<(), StorageError> {
        scrub::note(&self.inner.shared, |history| Ok(ScrubHistory { since_unix_s: Some(since_unix_s), ..history }))
    }

    /// Whether a write or sync has failed: then the volume only reads.
    pub fn check(&self) -> Result<(), StorageError> {
        self.inner.shared.store.check()
    }

    /// How long the oldest write or sync under way has been waiting for the disk; or the oldest read that no other half will
    /// answer, from the first call on that has seen it. Never waits itself.
    pub fn unanswered_for(&self) -> Duration {
        self.inner.shared.store.unanswered_for()
    }

    /// Writes and syncs what waits, then refuses further writes.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        if let Some(mirror) = &self.shared.store.mirror {
            mirror.end_rebuilding();
        }
        drop(self.watching.lock().take());
        self.shared.writer.close();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The last handle may be dropped in a completion callback: the thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn spool(store: &Store) -> PathBuf {
    store.reader().directory.join("spool")
}

fn each_meta(
    store: &Store,
    name: u8,
    mut visit: impl FnMut(GroupId, &[u8]) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    store.scan(Family::Meta, (vec![name], vec![name + 1]), |key, value| {
        let group = u32_at(key, 1).ok_or_else(|| StorageError::corrupt(format!("meta/{key:?}"), "short key"))?;
        visit(GroupId(group), value)?;
        Ok(true)
    })
}

fn space_next(store: &Store) -> Result<u32, StorageError> {
    let mut greatest = 0;
    for name in [META_SPACE, META_INSTALL] {
        each_meta(store, name, |group, value| {
            let record: SpaceRecord = records::decode(Family::Meta, &meta_key(name, group), value)?;
            greatest = greatest.max(record.space);
            Ok(())
        })?;
    }
    Ok(greatest + 1)
}

/// Removes what snapshots left that were on their way in when the process ended.
fn remove_unfinished(shared: &Shared) -> Result<(), StorageError> {
    let mut unfinished = Vec::new();
    each_meta(&shared.store, META_INSTALL, |group, value| {
        unfinished.push((group, records::decode(Family::Meta, &meta_key(META_INSTALL, group), value)?));
        Ok(())
    })?;
    let mut changes = Changes::default();
    for (group, install) in unfinished {
        group::discard_install(&shared.store, group, &install, &mut changes)?;
    }
    if changes.is_empty() { Ok(()) } else { shared.store.write_changes(&changes).and_then(|()| shared.store.sync()) }
}
