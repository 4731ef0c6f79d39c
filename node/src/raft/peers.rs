//! The streams to other nodes: two a peer carry the Raft calls of all groups, one for what must not wait (votes, heartbeats),
//! one for log entries. They say nothing of what the calls mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use parking_lot::{Mutex, RwLock};
use proto::wire::raft_answer::Reply as WireReply;
use proto::wire::raft_call::Request as WireRequest;
use proto::wire::raft_client::RaftClient;
use proto::wire::{RaftAnswer, RaftCall};
use storage::GroupId;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::throttle::Throttle;

/// Calls waiting for the stream to a peer: above it the peer counts as unreachable.
const CALLS_QUEUED_MAX: usize = 4_096;
/// Calls that are sent as soon as the connection takes them.
const CALLS_SENT_MAX: usize = 64;
/// After a failed connection, calls fail at once for this long.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);
/// Between looks whether a copy that waits may go on.
pub(super) const HELD_LOOK: Duration = Duration::from_millis(100);

/// The streams to all peers, shared by all groups of a node.
pub struct Peers {
    own_id: u64,
    tls: Arc<rustls::ClientConfig>,
    /// Newer than what memberships say: nodes may change their addresses.
    addresses: RwLock<HashMap<u64, String>>,
    links: Mutex<HashMap<(u64, Lane), Link>>,
    channels: Mutex<HashMap<u64, (String, Channel)>>,
    next_call: AtomicU64,
    next_copy: AtomicU64,
    pub throttle: Throttle,
    copies: RwLock<Copies>,
}

/// What goes to replicas that are to become voters.
#[derive(Default)]
struct Copies {
    /// Groups and the nodes of their learners.
    to: BTreeSet<(GroupId, u64)>,
    /// Those of them that wait: the rebalance is paused, or a shard lacks a replica.
    held: BTreeSet<(GroupId, u64)>,
    /// Those whose log entries go whatever the throttle says: they do not catch up otherwise.
    let_by: BTreeSet<(GroupId, u64)>,
    /// Those that are near as soon as few entries are missing, however large.
    by_entries: BTreeSet<(GroupId, u64)>,
    /// The snapshots that are under way, and the number of each.
    sent: HashMap<(GroupId, u64), (u64, SentSnapshot)>,
    /// Octets that the others have: of log entries, and of a snapshot before them.
    arrived: HashMap<(GroupId, u64), u64>,
}

/// A snapshot under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SentSnapshot {
    /// Of the last entry in it.
    pub index: u64,
    /// That have gone so far.
    pub octets: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Control,
    Log,
}

#[derive(Clone)]
struct Link {
    address: String,
    calls: mpsc::Sender<PendingCall>,
}

struct PendingCall {
    call: RaftCall,
    answer: oneshot::Sender<RaftAnswer>,
}

/// The replica of a group that is called.
pub(super) struct Target {
    pub node: u64,
    /// Where it listened when the membership was made.
    pub address: String,
    pub group: GroupId,
}

impl Peers {
    /// `copies_octets_per_s`: what goes to learners at most.
    pub fn new(own_id: u64, tls: Arc<rustls::ClientConfig>, copies_octets_per_s: u64) -> Arc<Peers> {
        Arc::new(Peers {
            own_id,
            tls,
            addresses: RwLock::default(),
            links: Mutex::default(),
            channels: Mutex::default(),
            next_call: AtomicU64::new(1),
            next_copy: AtomicU64::new(1),
            throttle: Throttle::new(copies_octets_per_s),
            copies: RwLock::default(),
        })
    }

    pub fn own_id(&self) -> u64 {
        self.own_id
    }

    /// Says which replicas of the groups that this node leads are copied to, and which of these copies wait.
    pub fn set_copying(&self, to: BTreeSet<(GroupId, u64)>, held: BTreeSet<(GroupId, u64)>) {
        let mut copies = self.copies.write();
        copies.arrived.retain(|learner, _| to.contains(learner));
        (copies.to, copies.held) = (to, held);
    }

    /// Says which of them do not catch up otherwise.
    pub fn set_late(&self, let_by: BTreeSet<(GroupId, u64)>, by_entries: BTreeSet<(GroupId, u64)>) {
        let mut copies = self.copies.write();
        (copies.let_by, copies.by_entries) = (let_by, by_entries);
    }

    /// A replica is about to become a learner: what goes to it is a copy from the first octet on.
    pub fn begin_copying(&self, group: GroupId, to: u64) {
        self.copies.write().to.insert((group, to));
    }

    /// Whether anything is copied from here.
    pub fn is_copying(&self) -> bool {
        !self.copies.read().to.is_empty()
    }

    /// How many copies wait.
    pub fn held(&self) -> usize {
        self.copies.read().held.len()
    }

    /// Whether the octets that a learner lacks do not count any more.
    pub fn counts_entries_alone(&self, group: GroupId, learner: u64) -> bool {
        self.copies.read().by_entries.contains(&(group, learner))
    }

    /// The octets that have gone to each replica of a group that is copied to.
    pub fn copied_of(&self, group: GroupId) -> BTreeMap<u64, u64> {
        let copies = self.copies.read();
        let arrived = copies.arrived.iter().map(|(to, octets)| (*to, *octets));
        let sent = copies.sent.iter().map(|(to, (_, snapshot))| (*to, snapshot.octets));
        let mut copied = BTreeMap::new();
        for ((_, to), octets) in arrived.chain(sent).filter(|((of, _), _)| *of == group) {
            *copied.entry(to).or_default() += octets;
        }
        copied
    }

    /// The snapshots of a group that are under way, and to which nodes.
    pub fn copies_of(&self, group: GroupId) -> HashMap<u64, SentSnapshot> {
        let copies = self.copies.read();
        let sent = copies.sent.iter().filter(|((of, _), _)| *of == group);
        sent.map(|((_, to), (_, snapshot))| (*to, *snapshot)).collect()
    }

    /// Counts octets of a snapshot that is under way.
    pub(super) fn count_copied(&self, to: (GroupId, u64), octets: usize) {
        if let Some((_, sent)) = self.copies.write().sent.get_mut(&to) {
            sent.octets += octets as u64;
        }
    }

    /// Counts octets of log entries that a replica has answered for.
    pub(super) fn count_arrived(&self, to: (GroupId, u64), octets: usize) {
        // Most go to voters, which are not counted.
        if self.copies.read().to.contains(&to) {
            *self.copies.write().arrived.entry(to).or_default() += octets as u64;
        }
    }

    /// As [`Peers::pass`], of log entries.
    pub(super) fn pass_entries(&self, group: GroupId, to: u64, octets: usize) -> Result<(), Duration> {
        let copies = self.copies.read();
        let learner = (group, to);
        if copies.to.contains(&learner) && copies.let_by.contains(&learner) && !copies.held.contains(&learner) {
            drop(copies);
            self.throttle.let_by(octets);
            return Ok(());
        }
        drop(copies);
        self.pass(group, to, octets)
    }

    /// Whether octets may go to a replica now; else how long until it is worth asking again.
    pub(super) fn pass(&self, group: GroupId, to: u64, octets: usize) -> Result<(), Duration> {
        let copies = self.copies.read();
        if !copies.to.contains(&(group, to)) {
            return Ok(());
        }
        if copies.held.contains(&(group, to)) {
            return Err(HELD_LOOK);
        }
        drop(copies);
        self.throttle.pass(octets, Instant::now())
    }

    /// Learns where a node listens now.
    pub fn set_address(&self, node: u64, address: &str) {
        self.addresses.write().insert(node, address.to_owned());
    }

    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.tls.clone()
    }

    pub fn address(&self, node: u64) -> Option<String> {
        self.addresses.read().get(&node).cloned()
    }

    /// A connection to a node, shared by everything that this process asks of it.
    pub fn channel(&self, node: u64, address: &str) -> std::io::Result<Channel> {
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(&node)
            && known == address
        {
            return Ok(channel.clone());
        }
        let channel = proto::connect(address, self.tls.clone())?;
        channels.insert(node, (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    fn link(self: &Arc<Self>, node: u64, lane: Lane, fallback: &str) -> std::io::Result<Link> {
        let address = self.address(node).unwrap_or_else(|| fallback.to_owned());
        let mut links = self.links.lock();
        if let Some(link) = links.get(&(node, lane))
            && link.address == address
            && !link.calls.is_closed()
        {
            return Ok(link.clone());
        }
        // Each lane has a connection of its own, so that a full send window of the one does not stop the other.
        let channel = match lane {
            Lane::Control => proto::connect(&address, self.tls.clone())?,
            Lane::Log => proto::connect_for_bulk(&address, self.tls.clone())?,
        };
        let (calls, receiver) = mpsc::channel(CALLS_QUEUED_MAX);
        let told = (lane == Lane::Control).then(|| (node, Arc::downgrade(self)));
        tokio::spawn(run_link(channel, receiver, told));
        let link = Link { address, calls };
        links.insert((node, lane), link.clone());
        Ok(link)
    }

    /// The control lane has lost the peer: what the log lane has under way is not waited for either.
    fn lost(&self, node: u64) {
        self.links.lock().remove(&(node, Lane::Log));
    }

    pub(super) async fn call(
        self: &Arc<Self>,
        target: &Target,
        lane: Lane,
        request: WireRequest,
        limit: Duration,
    ) -> Result<WireReply, CallError> {
        let link = self.link(target.node, lane, &target.address).map_err(|e| CallError::Unreachable(e.to_string()))?;
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let call = RaftCall { call: number, group: target.group.0, to: target.node, request: Some(request) };
        let (answer, answered) = oneshot::channel();
        link.calls
            .try_send(PendingCall { call, answer })
            .map_err(|_| CallError::Unreachable("too many calls are waiting for the peer".to_owned()))?;
        // A link ends when nobody has it any more.
        drop(link);
        let answer = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(CallError::Unreachable("no connection to the peer".to_owned())),
            Err(_) => return Err(CallError::Timeout),
        };
        match answer.reply {
            Some(reply) if answer.failure.is_empty() => Ok(reply),
            _ => Err(CallError::Failed(answer.failure)),
        }
    }
}

pub(super) enum CallError {
    /// Nobody there: openraft backs off.
    Unreachable(String),
    /// There, but it could not do it.
    Failed(String),
    Timeout,
}

/// Keeps a stream to a peer while there are calls; a broken stream fails the calls under way, and the next call makes
/// a new one. `told`: the peer whose going and coming is logged, and made known to its other lane; openraft would tell of
/// each call that fails.
async fn run_link(channel: Channel, mut calls: mpsc::Receiver<PendingCall>, told: Option<(u64, Weak<Peers>)>) {
    let mut answers_calls = true;
    let client = RaftClient::new(channel)
        .max_decoding_message_size(proto::GRPC_MESSAGE_OCTETS_MAX)
        .max_encoding_message_size(proto::GRPC_MESSAGE_OCTETS_MAX);
    while let Some(first) = calls.recv().await {
        if first.answer.is_closed() {
            continue;
        }
        let (sender, outgoing) = mpsc::channel(CALLS_SENT_MAX);
        let stream = client.clone().calls(ReceiverStream::new(outgoing)).await;
        if let Some((node, _)) = told
            && stream.is_ok() != answers_calls
        {
            answers_calls = stream.is_ok();
            match answers_calls {
                true => tracing::info!(node, "peer answers again"),
                false => tracing::info!(node, "peer does not answer"),
            }
        }
        let Ok(response) = stream else {
            drop(first);
            tell_other_lane(&told);
            let pause = tokio::time::sleep(RECONNECT_AFTER);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    // Dropped, and thereby failed at once.
                    call = calls.recv() => if call.is_none() { return },
                }
            }
            continue;
        };
        if !carry(first, &mut calls, sender, response.into_inner()).await {
            return;
        }
        tell_other_lane(&told);
    }
}

fn tell_other_lane(told: &Option<(u64, Weak<Peers>)>) {
    if let Some((node, peers)) = told
        && let Some(peers) = peers.upgrade()
    {
        peers.lost(*node);
    }
}

/// Carries calls over one stream until it breaks; false: nobody has calls any more.
async fn carry(
    first: PendingCall,
    calls: &mut mpsc::Receiver<PendingCall>,
    sender: mpsc::Sender<RaftCall>,
    mut answers: Streaming<RaftAnswer>,
) -> bool {
    let mut pending: HashMap<u64, oneshot::Sender<RaftAnswer>> = HashMap::new();
    let mut next = Some(first);
    loop {
        tokio::select! {
            answer = answers.next() => match answer {
                Some(Ok(answer)) => {
                    if let Some(waiting) = pending.remove(&answer.call) {
                        drop(waiting.send(answer));
                    }
                }
                Some(Err(_)) | None => return true,
            },
            call = calls.recv(), if next.is_none() => match call {
                // Nobody waits for it: it would only keep others waiting on a slow link.
                Some(call) => next = Some(call).filter(|call| !call.answer.is_closed()),
                None => return false,
            },
            room = sender.reserve(), if next.is_some() => {
                let (Ok(room), Some(PendingCall { call, answer })) = (room, next.take()) else { return true };
                if !answer.is_closed() {
                    pending.retain(|_, waiting| !waiting.is_closed());
                    pending.insert(call.call, answer);
                    room.send(call);
                }
            }
        }
    }
}

/// A snapshot that is under way, until it is installed or given up.
pub(super) struct Copying {
    peers: Arc<Peers>,
    to: (GroupId, u64),
    number: u64,
}

impl Copying {
    /// `index`: of the last entry in it.
    pub fn begin(peers: Arc<Peers>, to: (GroupId, u64), index: u64) -> Copying {
        let number = peers.next_copy.fetch_add(1, Ordering::Relaxed);
        let mut copies = peers.copies.write();
        copies.sent.insert(to, (number, SentSnapshot { index, octets: 0 }));
        // What came before is in it.
        copies.arrived.remove(&to);
        drop(copies);
        Copying { peers, to, number }
    }

    /// It is installed: a learner still has its octets when it gets the entries behind it.
    pub fn end(self) {
        let mut copies = self.peers.copies.write();
        let sent = copies.sent.get(&self.to).filter(|(number, _)| *number == self.number).map(|(_, sent)| sent.octets);
        if let Some(octets) = sent.filter(|_| copies.to.contains(&self.to)) {
            *copies.arrived.entry(self.to).or_default() += octets;
            copies.sent.remove(&self.to);
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        let mut copies = self.peers.copies.write();
        // Another may have begun to the same replica.
        if copies.sent.get(&self.to).is_some_and(|(number, _)| *number == self.number) {
            copies.sent.remove(&self.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use storage::GroupId;

    use super::{Copying, Peers};

    const LEARNER: (GroupId, u64) = (GroupId(5), 3);
    const VOTER: (GroupId, u64) = (GroupId(5), 2);
    const RATE: u64 = 1_000;

    fn peers() -> Arc<Peers> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let peers = Peers::new(1, Arc::new(tls), RATE);
        peers.begin_copying(LEARNER.0, LEARNER.1);
        peers
    }

    #[test]
    fn what_goes_to_a_learner_is_counted_however_it_goes() {
        let peers = peers();
        let copied = || peers.copied_of(LEARNER.0);
        peers.count_arrived(LEARNER, 300);
        peers.count_arrived(VOTER, 9_000);
        assert_eq!(copied(), BTreeMap::from([(LEARNER.1, 300)]));
        assert_eq!(peers.copied_of(GroupId(6)), BTreeMap::new());
        // It was too far behind: all comes anew.
        let snapshot = Copying::begin(peers.clone(), LEARNER, 70);
        assert_eq!(copied(), BTreeMap::from([(LEARNER.1, 0)]));
        peers.count_copied(LEARNER, 500);
        drop(snapshot);
        assert_eq!(copied(), BTreeMap::new());
        let snapshot = Copying::begin(peers.clone(), LEARNER, 80);
        peers.count_copied(LEARNER, 700);
        snapshot.end();
        peers.count_arrived(LEARNER, 40);
        assert_eq!(copied(), BTreeMap::from([(LEARNER.1, 740)]));
        assert!(peers.copies_of(LEARNER.0).is_empty());
        // It votes.
        peers.set_copying(BTreeSet::new(), BTreeSet::new());
        assert_eq!(copied(), BTreeMap::new());
    }

    #[test]
    fn a_learner_that_is_let_by_waits_for_no_throttle_but_rests_with_the_others() {
        let peers = peers();
        let (all, none) = (|| BTreeSet::from([LEARNER]), BTreeSet::new);
        let pass = || peers.pass_entries(LEARNER.0, LEARNER.1, 100 * RATE as usize);
        assert_eq!(pass(), Ok(()));
        assert!(pass().is_err_and(|wait| wait > Duration::from_secs(1)));
        assert_eq!(peers.pass_entries(VOTER.0, VOTER.1, 1), Ok(()));
        peers.set_late(all(), none());
        assert_eq!((pass(), pass()), (Ok(()), Ok(())));
        assert_eq!(peers.throttle.figures().octets, 300 * RATE);
        // A snapshot is as large as it ever was.
        assert!(peers.pass(LEARNER.0, LEARNER.1, 1).is_err());
        assert!(!peers.counts_entries_alone(LEARNER.0, LEARNER.1));
        peers.set_copying(all(), all());
        assert!(pass().is_err());
        assert_eq!(peers.held(), 1);
    }
}
