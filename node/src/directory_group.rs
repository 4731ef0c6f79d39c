//! The directory's group on this node: its state in memory over records on disk, and the watch that streams each
//! change by revision.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use directory::{ChangedRecord, Command, Directory, Request, RequestId};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use proto::ItemStream;
use proto::wire::directory_change::Change as Wire;
use proto::wire::{
    AccountMove, AccountRecord, AliasRecord, ClusterRecord, DirectoryChange, DirectoryEvent, DirectoryWatchRequest,
    DomainRecord, NodeRecord, PlacementRecord, account_move, node_record,
};
use storage::StorageError;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use types::MailError;

use crate::raft::{Applier, Marker, Proposal, Reply};
use crate::shard::unix_ms;
use crate::shard_clock::ShardClock;

/// Revisions kept in memory for watchers that reconnect; older ones get the whole directory.
const RECENT_MAX: usize = 10_000;
/// Records in one event.
const EVENT_RECORDS_MAX: usize = 1_000;
/// Events waiting for a slow watcher.
const EVENTS_QUEUED: usize = 8;

pub struct DirectoryState {
    directory: RwLock<Directory>,
    /// What requests are stamped by.
    clock: ShardClock,
    recent: Mutex<VecDeque<(u64, Vec<DirectoryChange>)>>,
    revision: watch::Sender<u64>,
}

impl DirectoryState {
    pub fn open(storage: &storage::Group) -> Result<Arc<DirectoryState>, StorageError> {
        let directory = load(storage)?;
        note_format(&directory);
        let clock = ShardClock::new(newest_request_ms(&directory), Instant::now());
        let (revision, _) = watch::channel(directory.revision());
        let (directory, recent) = (RwLock::new(directory), Mutex::default());
        Ok(Arc::new(DirectoryState { directory, clock, recent, revision }))
    }

    /// Not to be held over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory.read()
    }

    /// The command as one that is done once, however often it is asked for under this id; 0 is no id.
    pub fn once(&self, id: u128, command: Command) -> Command {
        if id == 0 {
            return command;
        }
        let unix_ms = self.clock.stamp(unix_ms(), Instant::now()).unsigned_abs();
        Command::Once { request: Request { id: RequestId(id), unix_ms }, command: Box::new(command) }
    }

    /// Takes what the disk holds in the place of what was in memory.
    pub fn load_from(&self, storage: &storage::Group) -> Result<(), StorageError> {
        let directory = load(storage)?;
        let revision = directory.revision();
        note_format(&directory);
        self.note_time(&directory);
        let mut current = self.directory.write();
        storage.check()?;
        *current = directory;
        self.recent.lock().clear();
        drop(current);
        self.revision.send_replace(revision);
        Ok(())
    }

    fn note_time(&self, directory: &Directory) {
        if let Some(newest) = newest_request_ms(directory) {
            self.clock.seen(newest, Instant::now());
        }
    }

    /// Changes with each applied command.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// What `directory.proto` says of Watch.
    pub fn watch(self: &Arc<Self>, request: DirectoryWatchRequest) -> ItemStream<DirectoryEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS_QUEUED);
        let state = self.clone();
        tokio::spawn(async move { state.feed(request, sender).await });
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn feed(
        self: Arc<Self>,
        request: DirectoryWatchRequest,
        sender: mpsc::Sender<Result<DirectoryEvent, MailError>>,
    ) {
        let mut revisions = self.revisions();
        let mut known = Some(request.since).filter(|since| *since > 0);
        loop {
            revisions.borrow_and_update();
            let events = match self.recent_since(known) {
                Some(events) => events,
                None => {
                    // All of a large directory: some hundred milliseconds.
                    let state = self.clone();
                    let Ok(events) = tokio::task::spawn_blocking(move || state.whole()).await else { return };
                    events
                }
            };
            for event in events {
                known = Some(event.revision);
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if !request.follow {
                return;
            }
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    }

    /// The events that bring a watcher from a revision to now; none if memory does not reach back so far.
    fn recent_since(&self, known: Option<u64>) -> Option<Vec<DirectoryEvent>> {
        let known = known?;
        let directory = self.directory.read();
        let revision = directory.revision();
        let recent = self.recent.lock();
        if known == revision {
            return Some(vec![DirectoryEvent { revision, reset: false, changes: Vec::new(), complete: true }]);
        }
        let reaches_back = recent.front().is_some_and(|(oldest, _)| *oldest <= known + 1);
        if known > revision || !reaches_back {
            return None;
        }
        let changes = recent.iter().filter(|(at, _)| *at > known).flat_map(|(_, changes)| changes.clone());
        Some(events(revision, false, changes.collect()))
    }

    fn whole(&self) -> Vec<DirectoryEvent> {
        let directory = self.directory.read();
        let changes = directory.records().filter_map(|change| to_wire(&change.record)).collect();
        events(directory.revision(), true, changes)
    }
}

/// Splits changes over events of bounded size.
fn events(revision: u64, reset: bool, changes: Vec<DirectoryChange>) -> Vec<DirectoryEvent> {
    let mut events: Vec<DirectoryEvent> = changes
        .chunks(EVENT_RECORDS_MAX)
        .map(|changes| DirectoryEvent { revision, reset: false, changes: changes.to_vec(), complete: false })
        .collect();
    if events.is_empty() {
        events.push(DirectoryEvent { revision, reset: false, changes: Vec::new(), complete: false });
    }
    if let Some(first) = events.first_mut() {
        first.reset = reset;
    }
    if let Some(last) = events.last_mut() {
        last.complete = true;
    }
    events
}

fn newest_request_ms(directory: &Directory) -> Option<i64> {
    directory.newest_request_ms().map(|unix_ms| i64::try_from(unix_ms).unwrap_or(i64::MAX))
}

/// What this process writes from now on has the forms of the format in force.
fn note_format(directory: &Directory) {
    if let Some(cluster) = directory.cluster() {
        types::format::put_in_force(cluster.format);
    }
}

fn load(storage: &storage::Group) -> Result<Directory, StorageError> {
    let corrupt = |reason: String| StorageError::Corrupt { key: "directory".to_owned(), reason };
    let marker =
        storage.applied()?.map(|bytes| Marker::decode(&bytes)).transpose().map_err(|e| corrupt(e.to_string()))?;
    let revision = marker.and_then(|marker| marker.applied).map_or(0, |id| id.index);
    let records = storage.table().scan()?;
    let directory = Directory::load(records.into_iter().map(|(key, value)| (key, value.to_vec())))
        .map_err(|e| corrupt(e.to_string()))?;
    Ok(directory.at_revision(revision))
}

/// [`DirectoryState`] as openraft's machine drives it.
pub struct DirectoryApplier {
    pub state: Arc<DirectoryState>,
    pub storage: storage::Group,
}

impl Applier for DirectoryApplier {
    fn apply(&self, index: u64, proposal: Proposal, marker: &Marker) -> Result<Reply, StorageError> {
        let state = &self.state;
        let command = Command::decode(&proposal.head)
            .map_err(|e| StorageError::Corrupt { key: format!("directory command {index}"), reason: e.to_string() })?;
        let mut directory = state.directory.write();
        // Of a core that has ended: what is in memory is another one's by now.
        self.storage.check()?;
        let applied = directory.apply(index, &command);
        note_format(&directory);
        state.note_time(&directory);
        let changes: Vec<_> = applied.changes.iter().filter_map(|change| to_wire(&change.record)).collect();
        let mut recent = state.recent.lock();
        recent.push_back((index, changes));
        while recent.len() > RECENT_MAX {
            recent.pop_front();
        }
        drop(recent);
        drop(directory);
        // Behind the lock, which readers on async threads wait for. What they see before this is committed, and a
        // process that ends here applies it again.
        let records = applied.changes.iter().map(|change| (change.key.clone(), change.value.clone().map(Bytes::from)));
        self.storage.table().write(records, marker.encode())?;
        state.revision.send_replace(index);
        Ok(Reply::Directory(applied.reply))
    }

    fn installed(&self) -> Result<(), StorageError> {
        self.state.load_from(&self.storage)
    }
}

fn to_wire(record: &ChangedRecord) -> Option<DirectoryChange> {
    let change = match record {
        ChangedRecord::Cluster(Some(cluster)) => Wire::Cluster(ClusterRecord {
            cluster_id: cluster.cluster_id.to_string(),
            shards: cluster.shards,
            replicas: cluster.replicas,
            postmaster: cluster.postmaster.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
        ChangedRecord::Cluster(None) => return None,
        ChangedRecord::Domain(_, Some(domain)) => Wire::Domain(DomainRecord { name: domain.name.to_string() }),
        ChangedRecord::Domain(name, None) => Wire::DomainRemoved(name.to_string()),
        ChangedRecord::Account(_, Some(account)) => Wire::Account(AccountRecord {
            id: account.id.0,
            name: account.name.to_string(),
            password_hash: account.password_hash.as_str().to_owned(),
            shard: account.shard.0,
            enabled: account.enabled,
            created_unix_s: i64::try_from(account.created_unix_s).unwrap_or(i64::MAX),
            moving: account.moving.map(|moving| AccountMove {
                id: moving.id,
                from: moving.from.0,
                to: moving.to.0,
                stage: match moving.stage {
                    directory::MoveStage::Copying => account_move::Stage::Copying,
                    directory::MoveStage::Switched => account_move::Stage::Switched,
                    directory::MoveStage::Undone => account_move::Stage::Undone,
                }
                .into(),
            }),
        }),
        ChangedRecord::Account(name, None) => Wire::AccountRemoved(name.to_string()),
        ChangedRecord::Alias(_, Some(alias)) => Wire::Alias(AliasRecord {
            name: alias.name.to_string(),
            targets: alias.targets.iter().map(ToString::to_string).collect(),
        }),
        ChangedRecord::Alias(name, None) => Wire::AliasRemoved(name.to_string()),
        ChangedRecord::Node(_, Some(node)) => Wire::Node(NodeRecord {
            id: node.id.0,
            name: node.name.clone(),
            address: node.address.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            state: match node.state {
                directory::NodeState::Active => node_record::State::Active,
                directory::NodeState::Draining => node_record::State::Draining,
                directory::NodeState::Removed => node_record::State::Removed,
            }
            .into(),
            directory_voter: node.directory_voter,
        }),
        ChangedRecord::Node(id, None) => Wire::NodeRemoved(id.0),
        ChangedRecord::Placement(shard, Some(placement)) => Wire::Placement(PlacementRecord {
            shard: shard.0,
            wanted: placement.wanted.iter().map(|node| node.0).collect(),
            planned: placement.planned.iter().map(|node| node.0).collect(),
            previous: placement.previous.iter().map(|node| node.0).collect(),
        }),
        // Of interest to who administers, who asks.
        ChangedRecord::Rebalance(_) | ChangedRecord::Placement(_, None) | ChangedRecord::Request(..) => return None,
    };
    Some(DirectoryChange { change: Some(change) })
}
