//! Raft calls to other nodes: two gRPC streams a peer carry the calls of all groups, one for what must not wait
//! (votes, heartbeats), one for log entries. Snapshots go by themselves.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, EntryPayload};
use parking_lot::{Mutex, RwLock};
use proto::wire::raft_answer::Reply as WireReply;
use proto::wire::raft_call::Request as WireRequest;
use proto::wire::raft_client::RaftClient;
use proto::wire::snapshot_part::Part;
use proto::wire::{self, AppendCall, RaftAnswer, RaftCall, SnapshotHeader, SnapshotPart, TransferCall, VoteCall};
use storage::{Failpoint, GroupId, reach};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::codec::{entry_to_wire, log_id_from_wire, log_id_to_wire, membership_to_wire, vote_from_wire, vote_to_wire};
use super::machine::SnapshotData;
use super::{Entry, Types, Vote};
use crate::throttle::Throttle;

/// Calls waiting for the stream to a peer: above it the peer counts as unreachable.
const CALLS_QUEUED_MAX: usize = 4_096;
/// Calls that are sent as soon as the connection takes them.
const CALLS_SENT_MAX: usize = 64;
/// After a failed connection, calls fail at once for this long.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);
/// Between looks whether a copy that waits may go on.
const HELD_LOOK: Duration = Duration::from_millis(100);
/// An append call that is to wait longer for its turn fails, and is tried again.
const APPEND_WAIT_MAX: Duration = Duration::from_millis(200);
/// From sending entries to their answer. As long as the peer lives, a narrow link is waited for: what was sent must not be
/// sent again before it has arrived. An entry of 512 KiB takes a minute at 64 kbit/s, and several groups' share the link.
const APPEND_MAX: Duration = Duration::from_secs(300);
/// A snapshot's blocks under way; each is at most 1 MiB.
const SNAPSHOT_BLOCKS_QUEUED: usize = 4;

/// The streams to all peers, shared by all groups of a node.
pub struct Peers {
    own_id: u64,
    tls: Arc<rustls::ClientConfig>,
    /// Newer than what memberships say: nodes may change their addresses.
    addresses: RwLock<HashMap<u64, String>>,
    links: Mutex<HashMap<(u64, Lane), Link>>,
    channels: Mutex<HashMap<u64, (String, Channel)>>,
    next_call: AtomicU64,
    pub throttle: Throttle,
    copies: RwLock<Copies>,
}

/// What goes to replicas that are to become voters.
#[derive(Default)]
struct Copies {
    /// Groups and the nodes of their learners.
    to: BTreeSet<(GroupId, u64)>,
    /// Groups whose copies wait: the rebalance is paused.
    held: BTreeSet<GroupId>,
    /// Octets of the snapshot that is under way.
    sent: HashMap<(GroupId, u64), u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
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
            throttle: Throttle::new(copies_octets_per_s),
            copies: RwLock::default(),
        })
    }

    pub fn own_id(&self) -> u64 {
        self.own_id
    }

    /// Says which replicas of the groups that this node leads are copied to, and which groups' copies wait.
    pub fn set_copying(&self, to: BTreeSet<(GroupId, u64)>, held: BTreeSet<GroupId>) {
        let mut copies = self.copies.write();
        (copies.to, copies.held) = (to, held);
    }

    /// The snapshots of a group that are under way: to which node, and how many octets have gone.
    pub fn copies_of(&self, group: GroupId) -> Vec<(u64, u64)> {
        let copies = self.copies.read();
        copies.sent.iter().filter(|((of, _), _)| *of == group).map(|((_, to), octets)| (*to, *octets)).collect()
    }

    /// Whether octets may go to a replica now; else how long until it is worth asking again.
    fn pass(&self, group: GroupId, to: u64, octets: usize) -> Result<(), Duration> {
        let copies = self.copies.read();
        if !copies.to.contains(&(group, to)) {
            return Ok(());
        }
        if copies.held.contains(&group) {
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

    async fn call(
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

enum CallError {
    /// Nobody there: openraft backs off.
    Unreachable(String),
    /// There, but it could not do it.
    Failed(String),
    Timeout,
}

impl CallError {
    fn into_rpc(self, action: RPCTypes, from: u64, target: u64, limit: Duration) -> RPCError<Types> {
        match self {
            CallError::Unreachable(text) => RPCError::Unreachable(Unreachable::from_string(text)),
            CallError::Failed(text) => RPCError::Network(NetworkError::from_string(text)),
            CallError::Timeout => RPCError::Timeout(Timeout { action, id: from, target, timeout: limit }),
        }
    }
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

/// Makes a group's network clients.
pub struct PeersFactory {
    pub peers: Arc<Peers>,
    pub group: GroupId,
}

impl RaftNetworkFactory<Types> for PeersFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> PeerNetwork {
        self.network(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> PeerNetwork {
        self.network(target, node, Lane::Control)
    }
}

impl PeersFactory {
    fn network(&self, target: u64, node: &BasicNode, append_lane: Lane) -> PeerNetwork {
        let target = Target { node: target, address: node.addr.clone(), group: self.group };
        PeerNetwork { peers: self.peers.clone(), target, append_lane }
    }
}

struct Target {
    node: u64,
    address: String,
    group: GroupId,
}

/// One group's calls to one peer.
pub struct PeerNetwork {
    peers: Arc<Peers>,
    target: Target,
    append_lane: Lane,
}

impl PeerNetwork {
    async fn call(
        &self,
        lane: Lane,
        action: RPCTypes,
        request: WireRequest,
        limit: Duration,
    ) -> Result<WireReply, RPCError<Types>> {
        let reply = self.peers.call(&self.target, lane, request, limit).await;
        reply.map_err(|e| e.into_rpc(action, self.peers.own_id, self.target.node, limit))
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<Types>,
        option: &RPCOption,
        request: fn(VoteCall) -> WireRequest,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let call = VoteCall {
            vote: Some(vote_to_wire(&rpc.vote)),
            last: rpc.last_log_id.map(log_id_to_wire),
            leadership_transfer: rpc.leadership_transfer,
        };
        match self.call(Lane::Control, RPCTypes::Vote, request(call), option.hard_ttl()).await? {
            WireReply::Vote(answer) | WireReply::PreVote(answer) => {
                let vote = vote_from_wire(answer.vote).map_err(|e| NetworkError::new(&e))?;
                Ok(VoteResponse::new(vote, answer.last.map(log_id_from_wire), answer.granted))
            }
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string("the peer answered something else"))
}

impl RaftNetworkV2<Types> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        use wire::append_answer::Kind;
        let (lane, limit) = match rpc.entries.is_empty() {
            true => (Lane::Control, option.hard_ttl()),
            false => (self.append_lane, APPEND_MAX),
        };
        if !rpc.entries.is_empty() {
            let octets = rpc.entries.iter().map(entry_octets).sum();
            if let Err(wait) = self.peers.pass(self.target.group, self.target.node, octets) {
                tokio::time::sleep(wait.min(APPEND_WAIT_MAX)).await;
                return Err(RPCError::Network(NetworkError::from_string("the copy yields to mail")));
            }
        }
        let call = AppendCall {
            vote: Some(vote_to_wire(&rpc.vote)),
            previous: rpc.prev_log_id.map(log_id_to_wire),
            entries: rpc.entries.into_iter().map(entry_to_wire).collect(),
            committed: rpc.leader_commit.map(log_id_to_wire),
        };
        match self.call(lane, RPCTypes::AppendEntries, WireRequest::Append(call), limit).await? {
            WireReply::Append(answer) => match answer.kind() {
                Kind::Success => Ok(AppendEntriesResponse::Success),
                Kind::Partial => Ok(AppendEntriesResponse::PartialSuccess(answer.matched.map(log_id_from_wire))),
                Kind::Conflict => Ok(AppendEntriesResponse::Conflict),
                Kind::HigherVote => {
                    let vote = vote_from_wire(answer.vote).map_err(|e| NetworkError::new(&e))?;
                    Ok(AppendEntriesResponse::HigherVote(vote))
                }
            },
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(rpc, &option, WireRequest::Vote).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(rpc, &option, WireRequest::PreVote).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotData::Export(export) = snapshot.snapshot else {
            return Err(StreamingError::Network(NetworkError::from_string("only an export can be sent")));
        };
        let header = SnapshotHeader {
            group: self.target.group.0,
            to: self.target.node,
            vote: Some(vote_to_wire(&vote)),
            last: snapshot.meta.last_log_id.map(log_id_to_wire),
            membership_id: (*snapshot.meta.last_membership.log_id()).map(log_id_to_wire),
            membership: Some(membership_to_wire(snapshot.meta.last_membership.membership())),
        };
        let unreachable = |text: String| StreamingError::Unreachable(Unreachable::from_string(text));
        let address = self.peers.address(self.target.node).unwrap_or_else(|| self.target.address.clone());
        let channel = self.peers.channel(self.target.node, &address).map_err(|e| unreachable(e.to_string()))?;
        let mut client = RaftClient::new(channel).max_encoding_message_size(proto::GRPC_MESSAGE_OCTETS_MAX);
        let (sender, parts) = mpsc::channel(SNAPSHOT_BLOCKS_QUEUED);
        let (peers, to) = (self.peers.clone(), (self.target.group, self.target.node));
        tokio::task::spawn_blocking(move || {
            send_blocks(header, export, &sender, &peers, to);
            peers.copies.write().sent.remove(&to);
        });
        let sending = tokio::time::timeout(option.hard_ttl(), client.install_snapshot(ReceiverStream::new(parts)));
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = sending => reply,
        };
        match reply {
            Ok(Ok(reply)) => {
                let vote = vote_from_wire(reply.into_inner().vote)
                    .map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
                Ok(SnapshotResponse::new(vote))
            }
            Ok(Err(status)) => Err(unreachable(status.message().to_owned())),
            Err(_) => Err(unreachable("snapshot took too long".to_owned())),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let call = TransferCall {
            from: Some(vote_to_wire(req.from_leader())),
            to_node: *req.to_node_id(),
            last: req.last_log_id().copied().map(log_id_to_wire),
        };
        match self.call(Lane::Control, RPCTypes::TransferLeader, WireRequest::Transfer(call), option.hard_ttl()).await?
        {
            WireReply::Transfer(answer) if answer.refused.is_empty() => Ok(Ok(())),
            WireReply::Transfer(answer) => Err(RPCError::Network(NetworkError::from_string(answer.refused))),
            _ => Err(unexpected()),
        }
    }
}

fn entry_octets(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.head.len() + proposal.body.as_ref().map_or(0, Bytes::len),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Reads the export and hands it over block by block. An unreadable record ends the stream early: the receiver
/// misses the closing totals and installs nothing.
fn send_blocks(
    header: SnapshotHeader,
    export: storage::Export,
    parts: &mpsc::Sender<SnapshotPart>,
    peers: &Peers,
    to: (GroupId, u64),
) {
    reach(Failpoint::SnapshotOpened, to.0);
    if parts.blocking_send(SnapshotPart { part: Some(Part::Header(header)) }).is_err() {
        return;
    }
    for (number, block) in export.blocks.enumerate() {
        match block {
            Ok(block) => {
                while let Err(wait) = peers.pass(to.0, to.1, block.len()) {
                    if parts.is_closed() {
                        return;
                    }
                    std::thread::sleep(wait.min(HELD_LOOK));
                }
                *peers.copies.write().sent.entry(to).or_default() += block.len() as u64;
                if parts.blocking_send(SnapshotPart { part: Some(Part::Block(block)) }).is_err() {
                    return;
                }
                if number == 0 {
                    reach(Failpoint::SnapshotSent, to.0);
                }
            }
            Err(error) => {
                tracing::error!(%error, "snapshot cannot be read");
                return;
            }
        }
    }
}
