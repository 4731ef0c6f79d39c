//! A shard's group on this node: its commands applied to [`storage::ShardState`], and what only the leader keeps in
//! memory: who watches, who holds a maildrop, which messages are still \Recent.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::wire::{DigestShardReply, WatchEvent};
use storage::{Command, Export, MoveStep, Outcome, ShardEvent, ShardEventKind, ShardState, Stamp, StorageError};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use types::{AccountId, MailError, MailResult, MailboxId, ShardId, UidSet, format};

use crate::group::{Group, GroupContext, Patience};
use crate::mail::{blocking, storage_error};
use crate::raft::{Applier, Marker, Proposal, Reply};
use crate::shard_clock::ShardClock;
use crate::volumes::NodeVolume;

/// Events that a slow watcher may lag behind before it is told to look for itself: as many as the largest command has,
/// and 64 KiB of memory in each shard that is watched.
const EVENTS_QUEUED: usize = 1_024;
/// A replica that has not applied a marked entry within this is behind; a state that nobody has asked for until then is
/// let go.
const MARK_MAX: Duration = Duration::from_secs(60);
/// Mailboxes whose \Recent mark is remembered; the oldest knowledge is dropped, and RFC 3501 §2.3.2 allows to call a
/// message recent when in doubt.
const RECENT_MARKS_MAX: usize = 100_000;

pub struct Shard {
    pub id: ShardId,
    pub group: Group,
    /// Where its replica is.
    pub volume: Arc<NodeVolume>,
    /// A comparison of its replicas is under way here.
    pub is_compared: AtomicBool,
    /// Another replica's leader compares them, since this one cannot be read.
    pub seen_to: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    /// Held by whoever changes its group's membership step by step, as its leader.
    pub membership: tokio::sync::Mutex<()>,
    /// Mail operations asked of it since it started.
    pub operations: AtomicU64,
    clock: Arc<ShardClock>,
    events: Arc<Events>,
    marks: Arc<Marks>,
    /// Changes when an account is frozen.
    moves: Arc<watch::Sender<()>>,
    maildrops: Arc<Mutex<HashSet<AccountId>>>,
    recent: Mutex<HashMap<(AccountId, MailboxId), u32>>,
}

impl Shard {
    pub async fn start(
        id: ShardId,
        storage: storage::Group,
        volume: Arc<NodeVolume>,
        context: &GroupContext,
    ) -> io::Result<Arc<Shard>> {
        let events = Arc::new(Events::default());
        let state = storage.shard();
        let applied = storage.clone();
        let newest = tokio::task::spawn_blocking(move || {
            // What is wrong with the marker is told where it is needed.
            let marker = applied.applied().ok().flatten().and_then(|marker| Marker::decode(&marker).ok());
            state.set_alone(marker.is_some_and(|marker| marker.is_alone()));
            state.newest_remembered().map_err(io::Error::other)
        });
        let newest = newest.await.map_err(io::Error::other)??;
        let clock = Arc::new(ShardClock::new(newest, Instant::now()));
        let marks = Arc::new(Marks { kept: Mutex::default(), applied: watch::Sender::new(()) });
        let moves = Arc::new(watch::Sender::new(()));
        let applier = Arc::new(ShardApplier {
            state: storage.shard(),
            clock: clock.clone(),
            events: events.clone(),
            marks: marks.clone(),
            moves: moves.clone(),
            storage: storage.clone(),
        });
        let group = Group::start(storage, applier, context).await?;
        let (maildrops, recent, is_compared) = (Arc::default(), Mutex::default(), AtomicBool::new(false));
        let (seen_to, membership) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let operations = AtomicU64::new(0);
        Ok(Arc::new(Shard {
            id,
            group,
            volume,
            is_compared,
            seen_to,
            membership,
            operations,
            clock,
            events,
            marks,
            moves,
            maildrops,
            recent,
        }))
    }

    pub fn state(&self) -> ShardState {
        self.group.storage.shard()
    }

    /// The state, once a read of it is sure to see every acknowledged write.
    pub async fn read(&self) -> MailResult<ShardState> {
        self.group.read_barrier().await?;
        Ok(self.state())
    }

    /// The state as it was when the marked entry was applied. Waits for that.
    pub async fn marked(&self, mark: u128) -> MailResult<Export> {
        let mut marks = self.marks.applied.subscribe();
        let found = async {
            loop {
                if let Some(export) = self.marks.take(mark) {
                    return export;
                }
                if marks.changed().await.is_err() {
                    return Err(MailError::Unavailable);
                }
            }
        };
        tokio::time::timeout(MARK_MAX, found).await.unwrap_or(Err(MailError::Deadline))
    }

    /// Lets go of a marked state that nobody has asked for: the disk keeps what it needs.
    pub fn forget_old_mark(&self) {
        let mut kept = self.marks.kept.lock();
        if kept.as_ref().is_some_and(|kept| kept.at.elapsed() > MARK_MAX) {
            *kept = None;
        }
    }

    /// What this replica holds, now or as exported, summed up; a record or body that cannot be read is an error. Reads
    /// it all, at a pace that yields to mail: to be called off the async threads.
    pub fn digest(&self, export: Option<Export>, octets_per_s_max: u64) -> MailResult<DigestShardReply> {
        let unread = self.group.storage.unread_so_far();
        let export = match export {
            Some(export) => export,
            None => self.group.storage.export()?,
        };
        let marker = Marker::decode(&export.marker).map_err(|e| MailError::Internal(e.to_string()))?;
        let (mut hash, mut octets) = (blake3::Hasher::new(), 0);
        let mut pace = self.group.storage.read_pace(octets_per_s_max);
        for block in export.blocks {
            let block = block?;
            hash.update(&block);
            octets += block.len() as u64;
            pace.read(block.len() as u64);
        }
        self.group.storage.note_read(unread);
        let digest = Bytes::copy_from_slice(hash.finalize().as_bytes());
        Ok(DigestShardReply { applied_index: marker.applied.map_or(0, |id| id.index), digest, octets })
    }

    /// Returns the outcome once a majority has synced the command and this node has applied it.
    pub async fn propose(&self, command: &Command, body: Option<Bytes>) -> MailResult<Outcome> {
        self.propose_request(0, command, body).await
    }

    /// The same under a request id: a command that was done under it before is answered as it was then.
    pub async fn propose_request(&self, request: u128, command: &Command, body: Option<Bytes>) -> MailResult<Outcome> {
        self.propose_with((request, Patience::Asked), command, body).await
    }

    /// The same, with as much patience as is given. Refused as `Corrupt` where this replica cannot read what it would change.
    pub async fn propose_with(
        &self,
        (request, patience): (u128, Patience),
        command: &Command,
        body: Option<Bytes>,
    ) -> MailResult<Outcome> {
        let stamp = self.stamp()?;
        self.rehearse((stamp, request), command, body.as_ref().map(|body| body.len() as u64)).await?;
        match self.group.propose_with(patience, command.encode(stamp, request), body).await? {
            (Reply::Shard(outcome), _) => outcome,
            (Reply::None | Reply::Directory(_), _) => Err(MailError::Internal("another group's reply".to_owned())),
        }
    }

    /// Before a command is in the log, for then every replica has to apply it or end: one that has the only copy would begin anew
    /// with it at each start.
    async fn rehearse(&self, entry: (Stamp, u128), command: &Command, body_octets: Option<u64>) -> MailResult<()> {
        // Also where it does not lead: it may by the time that the command is taken.
        let (state, command) = (self.state(), command.clone());
        blocking(move || state.rehearse(entry, &command, body_octets).map_err(storage_error)).await
    }

    /// Time and randomness of a command, chosen once by the proposer.
    fn stamp(&self) -> MailResult<Stamp> {
        let seed = getrandom::u64().map_err(|e| MailError::Internal(e.to_string()))?;
        Ok(Stamp { unix_ms: self.clock.stamp(unix_ms(), Instant::now()), seed, format: format::in_force() })
    }

    pub fn watch(&self) -> broadcast::Receiver<WatchEvent> {
        self.events.0.get_or_init(|| broadcast::channel(EVENTS_QUEUED).0).subscribe()
    }

    /// The lock of RFC 1939 §3; held until the guard is dropped.
    pub fn hold_maildrop(&self, account: AccountId) -> MailResult<MaildropGuard> {
        if !self.maildrops.lock().insert(account) {
            return Err(MailError::InUse);
        }
        Ok(MaildropGuard { account, maildrops: self.maildrops.clone() })
    }

    /// Returns once the account is not served here any more.
    pub async fn leaves(&self, account: AccountId) {
        let mut moves = self.moves.subscribe();
        loop {
            let state = self.state();
            if blocking(move || state.check_here(account)).await == Err(MailError::NotHere) {
                return;
            }
            if moves.changed().await.is_err() {
                return;
            }
        }
    }

    /// Which of a mailbox's messages no session has been told of as \Recent; `take` makes the caller that session
    /// (RFC 3501 §2.3.2).
    pub fn recent(&self, account: AccountId, mailbox: MailboxId, uids: &UidSet, uid_next: u32, take: bool) -> UidSet {
        let mut marks = self.recent.lock();
        let from = marks.get(&(account, mailbox)).copied().unwrap_or(1);
        if take {
            if marks.len() >= RECENT_MARKS_MAX {
                marks.clear();
            }
            marks.insert((account, mailbox), uid_next);
        }
        if from >= uid_next {
            return UidSet::new();
        }
        uids.intersection(&UidSet::from_range(from, uid_next - 1))
    }
}

/// Where watchers are told. Made for the first of them: most replicas never lead, and nobody watches them.
#[derive(Default)]
struct Events(OnceLock<broadcast::Sender<WatchEvent>>);

pub struct MaildropGuard {
    account: AccountId,
    maildrops: Arc<Mutex<HashSet<AccountId>>>,
}

impl Drop for MaildropGuard {
    fn drop(&mut self) {
        self.maildrops.lock().remove(&self.account);
    }
}

/// Milliseconds since 1970; 0 on a clock before that.
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The state at the last marked entry, until it is asked for or another mark comes.
struct Marks {
    kept: Mutex<Option<KeptMark>>,
    applied: watch::Sender<()>,
}

struct KeptMark {
    mark: u128,
    at: Instant,
    export: Result<Export, StorageError>,
}

impl Marks {
    fn take(&self, mark: u128) -> Option<MailResult<Export>> {
        let mut kept = self.kept.lock();
        let found = kept.take_if(|kept| kept.mark == mark)?;
        Some(found.export.map_err(MailError::from))
    }
}

struct ShardApplier {
    state: ShardState,
    clock: Arc<ShardClock>,
    events: Arc<Events>,
    marks: Arc<Marks>,
    moves: Arc<watch::Sender<()>>,
    storage: storage::Group,
}

impl Applier for ShardApplier {
    fn apply(&self, index: u64, proposal: Proposal, marker: &Marker) -> Result<Reply, StorageError> {
        let (stamp, request, command) = Command::decode(&proposal.head)?;
        self.clock.seen(stamp.unix_ms, Instant::now());
        let body_octets = proposal.body.as_ref().map(|body| body.len() as u64);
        let mark = if let Command::Mark { mark } = command { Some(mark) } else { None };
        let freezes = matches!(command, Command::MoveAccount { step: MoveStep::Freeze, .. });
        self.state.set_alone(marker.is_alone());
        let marker = marker.encode();
        let (outcome, events) = self.state.apply_request(index, (stamp, request), command, body_octets, marker)?;
        if let Some(mark) = mark {
            *self.marks.kept.lock() = Some(KeptMark { mark, at: Instant::now(), export: self.storage.export() });
            self.marks.applied.send_replace(());
        }
        if freezes {
            self.moves.send_replace(());
        }
        // Without watchers there is nobody to tell.
        let Some(watchers) = self.events.0.get() else { return Ok(Reply::Shard(outcome)) };
        for ShardEvent { account, kind } in events {
            let (mailbox, mod_seq) = match kind {
                ShardEventKind::Mailbox { id, mod_seq } => (id.0, mod_seq.0),
                ShardEventKind::MailboxList => (0, index),
            };
            drop(watchers.send(WatchEvent { account: account.0, mailbox, mod_seq }));
        }
        Ok(Reply::Shard(outcome))
    }

    fn installed(&self) -> Result<(), StorageError> {
        // A replica that takes a snapshot does not lead, so nobody watches it; it may lead next.
        if let Some(newest) = self.state.newest_remembered()? {
            self.clock.seen(newest, Instant::now());
        }
        Ok(())
    }
}
