//! Raft calls from other nodes: each goes to the group it names, and its answer back on the same stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;
use proto::wire::raft_answer::Reply;
use proto::wire::raft_call::Request as WireRequest;
use proto::wire::raft_server;
use proto::wire::snapshot_part::Part;
use proto::wire::{
    AppendAnswer, AppendCall, RaftAnswer, RaftCall, SnapshotHeader, SnapshotPart, SnapshotReply, TransferAnswer,
    TransferCall, VoteAnswer, VoteCall,
};
use proto::{Peer, PeerRole};
use storage::{Failpoint, GroupId, reach};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::codec::{
    entry_from_wire, log_id_from_wire, log_id_to_wire, membership_from_wire, vote_from_wire, vote_to_wire,
};
use super::machine::{Received, SnapshotData};
use super::{Raft, SnapshotMeta, StoredMembership, Types, Vote};

/// Calls of one peer in work at once.
const CALLS_MAX: usize = 1_024;
/// Snapshots being received at once: each spools to disk.
const SNAPSHOTS_MAX: usize = 2;

/// Where the service finds the groups of this node.
pub trait RaftGroups: Send + Sync + 'static {
    fn own_id(&self) -> u64;
    /// False: the disk is full, and what a leader sends is refused until there is room.
    fn takes_entries(&self, group: GroupId) -> bool;
    /// False: the replica was begun empty, and is still without what others acknowledged before.
    fn takes_part(&self, group: GroupId) -> bool;
    fn raft(&self, group: GroupId) -> Option<Raft>;
    fn storage(&self, group: GroupId) -> Option<storage::Group>;
}

pub struct RaftService<G> {
    groups: Arc<G>,
    snapshots: Arc<Semaphore>,
}

impl<G: RaftGroups> RaftService<G> {
    pub fn new(groups: Arc<G>) -> RaftService<G> {
        RaftService { groups, snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)) }
    }

    fn allow<T>(request: &Request<T>) -> Result<(), Status> {
        match request.extensions().get::<Peer>() {
            Some(peer) if peer.role == PeerRole::Node => Ok(()),
            _ => Err(Status::permission_denied("raft is for nodes")),
        }
    }
}

#[tonic::async_trait]
impl<G: RaftGroups> raft_server::Raft for RaftService<G> {
    type CallsStream = Pin<Box<dyn Stream<Item = Result<RaftAnswer, Status>> + Send>>;

    async fn calls(&self, request: Request<Streaming<RaftCall>>) -> Result<Response<Self::CallsStream>, Status> {
        Self::allow(&request)?;
        let mut calls = request.into_inner();
        let groups = self.groups.clone();
        let (answers, receiver) = mpsc::channel(CALLS_MAX);
        tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(CALLS_MAX));
            while let Ok(Some(call)) = calls.message().await {
                let Ok(permit) = room.clone().acquire_owned().await else { return };
                let (groups, answers) = (groups.clone(), answers.clone());
                tokio::spawn(async move {
                    let number = call.call;
                    let answer = match answer(&*groups, call).await {
                        Ok(reply) => RaftAnswer { call: number, failure: String::new(), reply: Some(reply) },
                        Err(error) => RaftAnswer { call: number, failure: error.to_string(), reply: None },
                    };
                    drop(answers.send(Ok(answer)).await);
                    drop(permit);
                });
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        Self::allow(&request)?;
        let _room = self.snapshots.acquire().await.map_err(|_| Status::unavailable("shutting down"))?;
        let mut parts = request.into_inner();
        let Some(SnapshotPart { part: Some(Part::Header(header)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("snapshot without a header"));
        };
        let group = GroupId(header.group);
        if header.to != self.groups.own_id() {
            return Err(Status::failed_precondition("this is another node"));
        }
        let (Some(raft), Some(storage)) = (self.groups.raft(group), self.groups.storage(group)) else {
            return Err(Status::failed_precondition("no such group on this node"));
        };
        if !self.groups.takes_entries(group) {
            return Err(Status::resource_exhausted("the disk is full"));
        }
        let (vote, meta) = snapshot_meta(header).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let last_index = meta.last_log_id.map_or(0, |id| id.index);
        let mut received = blocking(move || Received::new(&storage, last_index))
            .await?
            .map_err(|e| Status::unavailable(e.to_string()))?;
        while let Some(part) = parts.message().await? {
            let Some(Part::Block(block)) = part.part else {
                return Err(Status::invalid_argument("a second header in a snapshot"));
            };
            received = blocking(move || received.push(&block).map(|()| received))
                .await?
                .map_err(|e| Status::data_loss(e.to_string()))?;
        }
        // Not openraft's to find out: an install that fails ends its group here.
        received.check(&meta).map_err(|e| Status::data_loss(e.to_string()))?;
        reach(Failpoint::SnapshotReceived, group);
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(received) };
        let reply = raft.install_full_snapshot(vote, snapshot).await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(SnapshotReply { vote: Some(vote_to_wire(&reply.vote)) }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
}

fn snapshot_meta(header: SnapshotHeader) -> io::Result<(Vote, SnapshotMeta)> {
    let membership = membership_from_wire(header.membership.unwrap_or_default())?;
    let meta = SnapshotMeta {
        last_log_id: header.last.map(log_id_from_wire),
        last_membership: StoredMembership::new(header.membership_id.map(log_id_from_wire), membership),
    };
    Ok((vote_from_wire(header.vote)?, meta))
}

async fn answer(groups: &impl RaftGroups, call: RaftCall) -> io::Result<Reply> {
    if call.to != groups.own_id() {
        return Err(io::Error::other("this is another node"));
    }
    let group = GroupId(call.group);
    let raft = groups.raft(group).ok_or_else(|| io::Error::other("no such group on this node"))?;
    match call.request {
        Some(WireRequest::Append(call)) if !call.entries.is_empty() && !groups.takes_entries(group) => {
            Err(io::Error::other("the disk is full"))
        }
        Some(WireRequest::Append(call)) => append(&raft, call).await.map(Reply::Append),
        Some(WireRequest::Vote(_) | WireRequest::PreVote(_)) if !groups.takes_part(group) => {
            Err(io::Error::other("this replica has begun and may not vote yet"))
        }
        Some(WireRequest::Vote(call)) => {
            let answer = raft.vote(vote_request(call)?).await.map_err(io::Error::other)?;
            Ok(Reply::Vote(vote_answer(answer)))
        }
        Some(WireRequest::PreVote(call)) => {
            let answer = raft.pre_vote(vote_request(call)?).await.map_err(io::Error::other)?;
            Ok(Reply::PreVote(vote_answer(answer)))
        }
        Some(WireRequest::Transfer(call)) => transfer(&raft, call).await.map(Reply::Transfer),
        None => Err(io::Error::other("a call without a request")),
    }
}

async fn append(raft: &Raft, call: AppendCall) -> io::Result<AppendAnswer> {
    use proto::wire::append_answer::Kind;
    let request = AppendEntriesRequest::<Types> {
        vote: vote_from_wire(call.vote)?,
        prev_log_id: call.previous.map(log_id_from_wire),
        entries: call.entries.into_iter().map(entry_from_wire).collect::<io::Result<_>>()?,
        leader_commit: call.committed.map(log_id_from_wire),
    };
    let (kind, matched, vote) = match raft.append_entries(request).await.map_err(io::Error::other)? {
        AppendEntriesResponse::Success => (Kind::Success, None, None),
        AppendEntriesResponse::PartialSuccess(matched) => (Kind::Partial, matched, None),
        AppendEntriesResponse::Conflict => (Kind::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (Kind::HigherVote, None, Some(vote)),
    };
    Ok(AppendAnswer { kind: kind.into(), matched: matched.map(log_id_to_wire), vote: vote.as_ref().map(vote_to_wire) })
}

fn vote_request(call: VoteCall) -> io::Result<VoteRequest<Types>> {
    let mut request = VoteRequest::new(vote_from_wire(call.vote)?, call.last.map(log_id_from_wire));
    request.leadership_transfer = call.leadership_transfer;
    Ok(request)
}

fn vote_answer(answer: VoteResponse<Types>) -> VoteAnswer {
    VoteAnswer {
        vote: Some(vote_to_wire(&answer.vote)),
        granted: answer.vote_granted,
        last: answer.last_log_id.map(log_id_to_wire),
    }
}

async fn transfer(raft: &Raft, call: TransferCall) -> io::Result<TransferAnswer> {
    let request = TransferLeaderRequest::new(vote_from_wire(call.from)?, call.to_node, call.last.map(log_id_from_wire));
    let taken = raft.handle_transfer_leader(request).await.map_err(io::Error::other)?;
    Ok(TransferAnswer { refused: taken.err().map(|e| e.to_string()).unwrap_or_default() })
}
