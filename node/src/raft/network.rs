//! Raft calls to other nodes, as openraft asks for them: over the streams of [`Peers`]. Snapshots go by themselves.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, EntryPayload};
use proto::wire::raft_answer::Reply as WireReply;
use proto::wire::raft_call::Request as WireRequest;
use proto::wire::raft_client::RaftClient;
use proto::wire::snapshot_part::Part;
use proto::wire::{self, AppendCall, SnapshotHeader, SnapshotPart, TransferCall, VoteCall};
use storage::{Failpoint, GroupId, reach};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::codec::{entry_to_wire, log_id_from_wire, log_id_to_wire, membership_to_wire, vote_from_wire, vote_to_wire};
use super::machine::SnapshotData;
use super::peers::{CallError, Copying, HELD_LOOK, Lane, Peers, Target};
use super::progress::{Sent, progress};
use super::{Entry, Types, Vote};

/// An append call that is to wait longer for its turn fails, and is tried again.
const APPEND_WAIT_MAX: Duration = Duration::from_millis(200);
/// From sending entries to their answer. As long as the peer lives, a narrow link is waited for: what was sent must not be
/// sent again before it has arrived. An entry of 512 KiB takes a minute at 64 kbit/s, and several groups' share the link.
const APPEND_MAX: Duration = Duration::from_secs(300);
/// A snapshot's blocks under way; each is at most 1 MiB.
const SNAPSHOT_BLOCKS_QUEUED: usize = 4;

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
        reply.map_err(|e| e.into_rpc(action, self.peers.own_id(), self.target.node, limit))
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

impl CallError {
    fn into_rpc(self, action: RPCTypes, from: u64, target: u64, limit: Duration) -> RPCError<Types> {
        match self {
            CallError::Unreachable(text) => RPCError::Unreachable(Unreachable::from_string(text)),
            CallError::Failed(text) => RPCError::Network(NetworkError::from_string(text)),
            CallError::Timeout => RPCError::Timeout(Timeout { action, id: from, target, timeout: limit }),
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
        let octets: usize = rpc.entries.iter().map(entry_octets).sum();
        if !rpc.entries.is_empty()
            && let Err(wait) = self.peers.pass_entries(self.target.group, self.target.node, octets)
        {
            tokio::time::sleep(wait.min(APPEND_WAIT_MAX)).await;
            return Err(RPCError::Network(NetworkError::from_string("the copy yields to mail")));
        }
        let call = AppendCall {
            vote: Some(vote_to_wire(&rpc.vote)),
            previous: rpc.prev_log_id.map(log_id_to_wire),
            entries: rpc.entries.into_iter().map(entry_to_wire).collect(),
            committed: rpc.leader_commit.map(log_id_to_wire),
        };
        match self.call(lane, RPCTypes::AppendEntries, WireRequest::Append(call), limit).await? {
            WireReply::Append(answer) => match answer.kind() {
                Kind::Success => {
                    self.peers.count_arrived((self.target.group, self.target.node), octets);
                    Ok(AppendEntriesResponse::Success)
                }
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
        let index = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        let header = SnapshotHeader {
            group: self.target.group.0,
            to: self.target.node,
            vote: Some(vote_to_wire(&vote)),
            last: snapshot.meta.last_log_id.map(log_id_to_wire),
            membership_id: (*snapshot.meta.last_membership.log_id()).map(log_id_to_wire),
            membership: Some(membership_to_wire(snapshot.meta.last_membership.membership())),
        };
        // Before anything else: from here on the entries behind it are kept.
        let copying = Copying::begin(self.peers.clone(), (self.target.group, self.target.node), index);
        let unreachable = |text: String| StreamingError::Unreachable(Unreachable::from_string(text));
        let address = self.peers.address(self.target.node).unwrap_or_else(|| self.target.address.clone());
        let channel = self.peers.channel(self.target.node, &address).map_err(|e| unreachable(e.to_string()))?;
        let mut client = RaftClient::new(channel).max_encoding_message_size(proto::GRPC_MESSAGE_OCTETS_MAX);
        let (sender, parts) = mpsc::channel(SNAPSHOT_BLOCKS_QUEUED);
        let (peers, to) = (self.peers.clone(), (self.target.group, self.target.node));
        let (sent, progress) = progress();
        tokio::task::spawn_blocking(move || send_blocks(header, export, &sender, &sent, &peers, to));
        let sending = progress.watched(client.install_snapshot(ReceiverStream::new(parts)), option.hard_ttl());
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = sending => reply,
        };
        match reply {
            Some(Ok(reply)) => {
                let vote = vote_from_wire(reply.into_inner().vote)
                    .map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
                copying.end();
                Ok(SnapshotResponse::new(vote))
            }
            Some(Err(status)) => Err(unreachable(status.message().to_owned())),
            None => {
                tracing::info!(group = to.0.0, to = to.1, "copy does not get on, and begins anew");
                Err(unreachable("the snapshot does not get on".to_owned()))
            }
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
    sent: &Sent,
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
                    sent.holds();
                    std::thread::sleep(wait.min(HELD_LOOK));
                }
                let octets = block.len();
                peers.count_copied(to, octets);
                if parts.blocking_send(SnapshotPart { part: Some(Part::Block(block)) }).is_err() {
                    return;
                }
                sent.count(octets);
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
