//! The gRPC services over a node's traits: checks who asks, gathers bodies within bounds, turns errors into statuses.

use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};
use types::MailError;

use crate::body::Body;
use crate::error::status;
use crate::listen::Peer;
use crate::role::PeerRole;
use crate::store::{DirectoryStore, ItemStream, MailStore};
use crate::wire::append_part::Part as AppendPiece;
use crate::wire::deliver_part::Part as DeliverPiece;
use crate::wire::directory_server::Directory;
use crate::wire::mail_server::Mail;
use crate::wire::{
    AccountRequest, AdminReply, AdminRequest, AppendPart, AppendReply, BeginReplicaRequest, ChangeVolumeRequest,
    ChangesReply, ChangesRequest, CompareShardReply, CompareShardRequest, CopyReply, CopyRequest, CreateMailboxReply,
    CreateMailboxRequest, DeliverPart, DeliverReply, DigestShardReply, DigestShardRequest, DirectoryEvent,
    DirectoryWatchRequest, Done, ExportAccountRequest, ExportedPart, ExpungeReply, ExpungeRequest, FetchItem,
    FetchRequest, IdentifyRequest, Identity, Mailbox, MailboxNameRequest, MailboxesReply, MoveAccountReply,
    MoveAccountRequest, NodeStart, NodeStatusReply, NodeStatusRequest, RebalanceReply, RebalanceRequest,
    RegisterNodeRequest, RenameMailboxRequest, ScrubEvent, ScrubRequest, SearchReply, SearchRequest, SelectReply,
    SelectRequest, SettleRequest, ShardMembersReply, ShardMembersRequest, StoreReply, StoreRequest, SubscribeRequest,
    UsageReply, WatchEvent, WatchRequest,
};

/// The largest gRPC message in either direction. Bodies travel in pieces far below it.
pub const GRPC_MESSAGE_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// The largest body that a node takes; the routers' own limits are lower.
const BODY_OCTETS_MAX: u64 = 128 * 1024 * 1024;
/// Memory for all bodies that are being received at once, in KiB; a body beyond it waits for its turn.
const BODIES_KIB_MAX: u32 = 512 * 1024;

type Stream1<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn statuses<T: Send + 'static>(stream: ItemStream<T>) -> Stream1<T> {
    Box::pin(stream.map(|item| item.map_err(|error| status(&error))))
}

fn allow<T>(request: &Request<T>, roles: &[PeerRole]) -> Result<(), Status> {
    match request.extensions().get::<Peer>() {
        Some(peer) if roles.contains(&peer.role) => Ok(()),
        _ => Err(status(&MailError::Denied)),
    }
}

/// A node makes itself known under its own name. One that passes the request on has looked.
fn check_name(peer: Option<&Peer>, request: &RegisterNodeRequest) -> Result<(), Status> {
    let Some(peer) = peer.filter(|peer| peer.role == PeerRole::Node && !request.forwarded) else { return Ok(()) };
    match peer.name.as_deref() {
        Some(name) if name == request.name => Ok(()),
        name => {
            let shown = name.unwrap_or("nobody");
            let reason = format!("node {:?} shows a certificate that is of {shown:?}", request.name);
            Err(status(&MailError::CannotDo(reason)))
        }
    }
}

/// [`Mail`] for routers (and nodes, which pass things on). Admins learn what accounts hold, and nothing else.
pub struct MailService<S> {
    store: Arc<S>,
    bodies: Arc<Semaphore>,
}

impl<S: MailStore> MailService<S> {
    pub fn new(store: Arc<S>) -> MailService<S> {
        MailService { store, bodies: Arc::new(Semaphore::new(BODIES_KIB_MAX as usize)) }
    }

    /// Room for a body of `octets`, held until the operation is over.
    async fn room(&self, octets: u64) -> Result<OwnedSemaphorePermit, Status> {
        if octets > BODY_OCTETS_MAX {
            return Err(status(&MailError::Limit("message too large".into())));
        }
        let kib = u32::try_from(octets.div_ceil(1024).max(1)).unwrap_or(BODIES_KIB_MAX);
        self.bodies.clone().acquire_many_owned(kib).await.map_err(|_| status(&MailError::Unavailable))
    }
}

const MAIL: &[PeerRole] = &[PeerRole::Router, PeerRole::Node];
const ANYBODY: &[PeerRole] = &[PeerRole::Router, PeerRole::Node, PeerRole::Admin];

/// Gathers exactly `octets` octets from the rest of an upload.
async fn gather<P>(
    parts: &mut Streaming<P>,
    octets: u64,
    bytes_of: impl Fn(P) -> Option<Bytes>,
) -> Result<Body, Status> {
    let mismatch = || status(&MailError::Invalid("body is not as long as announced".into()));
    let mut whole = BytesMut::new();
    let mut only: Option<Bytes> = None;
    let mut received = 0u64;
    while let Some(part) = parts.message().await? {
        let bytes = bytes_of(part).ok_or_else(|| status(&MailError::Invalid("request sent twice".into())))?;
        received += bytes.len() as u64;
        if received > octets {
            return Err(mismatch());
        }
        if received == octets && whole.is_empty() && only.is_none() {
            only = Some(bytes);
        } else {
            if whole.is_empty() {
                whole.reserve(octets as usize);
            }
            whole.extend_from_slice(&bytes);
        }
    }
    if received != octets {
        return Err(mismatch());
    }
    Ok(Body::from_bytes(only.filter(|_| whole.is_empty()).unwrap_or_else(|| whole.freeze())))
}

/// Forwards a unary call: role check, operation, error conversion.
macro_rules! unary {
    ($self:ident, $roles:expr, $request:ident, $operation:ident) => {{
        allow(&$request, $roles)?;
        $self.store.$operation($request.into_inner()).await.map(Response::new).map_err(|error| status(&error))
    }};
    ($self:ident, $roles:expr, $request:ident, $operation:ident -> done) => {{
        allow(&$request, $roles)?;
        let result = $self.store.$operation($request.into_inner()).await;
        result.map(|()| Response::new(Done {})).map_err(|error| status(&error))
    }};
    ($self:ident, $roles:expr, $request:ident, $operation:ident -> stream) => {{
        allow(&$request, $roles)?;
        let stream = $self.store.$operation($request.into_inner()).await.map_err(|error| status(&error))?;
        Ok(Response::new(statuses(stream)))
    }};
}

#[tonic::async_trait]
impl<S: MailStore> Mail for MailService<S> {
    type FetchStream = Stream1<FetchItem>;
    type WatchStream = Stream1<WatchEvent>;
    type HoldMaildropStream = Stream1<Done>;

    async fn deliver(&self, request: Request<Streaming<DeliverPart>>) -> Result<Response<DeliverReply>, Status> {
        allow(&request, MAIL)?;
        let mut parts = request.into_inner();
        let Some(DeliverPart { part: Some(DeliverPiece::Request(first)) }) = parts.message().await? else {
            return Err(status(&MailError::Invalid("upload without a request".into())));
        };
        let _room = self.room(first.body_octets).await?;
        let body = gather(&mut parts, first.body_octets, |part| match part.part {
            Some(DeliverPiece::Body(bytes)) => Some(bytes),
            _ => None,
        })
        .await?;
        self.store.deliver(first, body).await.map(Response::new).map_err(|error| status(&error))
    }

    async fn settle(&self, request: Request<SettleRequest>) -> Result<Response<Done>, Status> {
        unary!(self, MAIL, request, settle -> done)
    }

    async fn append(&self, request: Request<Streaming<AppendPart>>) -> Result<Response<AppendReply>, Status> {
        allow(&request, MAIL)?;
        let mut parts = request.into_inner();
        let Some(AppendPart { part: Some(AppendPiece::Request(first)) }) = parts.message().await? else {
            return Err(status(&MailError::Invalid("upload without a request".into())));
        };
        let _room = self.room(first.body_octets).await?;
        let body = gather(&mut parts, first.body_octets, |part| match part.part {
            Some(AppendPiece::Body(bytes)) => Some(bytes),
            _ => None,
        })
        .await?;
        self.store.append(first, body).await.map(Response::new).map_err(|error| status(&error))
    }

    async fn open_account(&self, request: Request<AccountRequest>) -> Result<Response<Done>, Status> {
        unary!(self, MAIL, request, open_account -> done)
    }

    async fn usage(&self, request: Request<AccountRequest>) -> Result<Response<UsageReply>, Status> {
        unary!(self, ANYBODY, request, usage)
    }

    async fn mailboxes(&self, request: Request<AccountRequest>) -> Result<Response<MailboxesReply>, Status> {
        unary!(self, MAIL, request, mailboxes)
    }

    async fn create_mailbox(
        &self,
        request: Request<CreateMailboxRequest>,
    ) -> Result<Response<CreateMailboxReply>, Status> {
        unary!(self, MAIL, request, create_mailbox)
    }

    async fn delete_mailbox(&self, request: Request<MailboxNameRequest>) -> Result<Response<Done>, Status> {
        unary!(self, MAIL, request, delete_mailbox -> done)
    }

    async fn rename_mailbox(&self, request: Request<RenameMailboxRequest>) -> Result<Response<Done>, Status> {
        unary!(self, MAIL, request, rename_mailbox -> done)
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Done>, Status> {
        unary!(self, MAIL, request, subscribe -> done)
    }

    async fn status(&self, request: Request<MailboxNameRequest>) -> Result<Response<Mailbox>, Status> {
        unary!(self, MAIL, request, status)
    }

    async fn select(&self, request: Request<SelectRequest>) -> Result<Response<SelectReply>, Status> {
        unary!(self, MAIL, request, select)
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        unary!(self, MAIL, request, fetch -> stream)
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchReply>, Status> {
        unary!(self, MAIL, request, search)
    }

    async fn store(&self, request: Request<StoreRequest>) -> Result<Response<StoreReply>, Status> {
        unary!(self, MAIL, request, store)
    }

    async fn copy(&self, request: Request<CopyRequest>) -> Result<Response<CopyReply>, Status> {
        unary!(self, MAIL, request, copy)
    }

    async fn expunge(&self, request: Request<ExpungeRequest>) -> Result<Response<ExpungeReply>, Status> {
        unary!(self, MAIL, request, expunge)
    }

    async fn changes(&self, request: Request<ChangesRequest>) -> Result<Response<ChangesReply>, Status> {
        unary!(self, MAIL, request, changes)
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        unary!(self, MAIL, request, watch -> stream)
    }

    async fn hold_maildrop(
        &self,
        request: Request<AccountRequest>,
    ) -> Result<Response<Self::HoldMaildropStream>, Status> {
        unary!(self, MAIL, request, hold_maildrop -> stream)
    }
}

/// [`Directory`] for every role; changes for admins alone.
pub struct DirectoryService<S> {
    store: Arc<S>,
}

impl<S: DirectoryStore> DirectoryService<S> {
    pub fn new(store: Arc<S>) -> DirectoryService<S> {
        DirectoryService { store }
    }
}

#[tonic::async_trait]
impl<S: DirectoryStore> Directory for DirectoryService<S> {
    type WatchStream = Stream1<DirectoryEvent>;
    type ScrubStream = Stream1<ScrubEvent>;
    type ExportAccountStream = Stream1<ExportedPart>;

    async fn watch(&self, request: Request<DirectoryWatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        unary!(self, ANYBODY, request, watch_directory -> stream)
    }

    async fn administer(&self, request: Request<AdminRequest>) -> Result<Response<AdminReply>, Status> {
        unary!(self, &[PeerRole::Admin], request, administer)
    }

    async fn register_node(&self, request: Request<RegisterNodeRequest>) -> Result<Response<Done>, Status> {
        check_name(request.extensions().get::<Peer>(), request.get_ref())?;
        unary!(self, &[PeerRole::Node], request, register_node -> done)
    }

    async fn note_start(&self, request: Request<NodeStart>) -> Result<Response<NodeStart>, Status> {
        unary!(self, &[PeerRole::Node], request, note_start)
    }

    async fn identify(&self, request: Request<IdentifyRequest>) -> Result<Response<Identity>, Status> {
        allow(&request, ANYBODY)?;
        self.store.identify().await.map(Response::new).map_err(|error| status(&error))
    }

    async fn node_status(&self, request: Request<NodeStatusRequest>) -> Result<Response<NodeStatusReply>, Status> {
        allow(&request, ANYBODY)?;
        self.store.node_status().await.map(Response::new).map_err(|error| status(&error))
    }

    async fn compare_shard(
        &self,
        request: Request<CompareShardRequest>,
    ) -> Result<Response<CompareShardReply>, Status> {
        unary!(self, &[PeerRole::Admin, PeerRole::Node], request, compare_shard)
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        unary!(self, &[PeerRole::Admin], request, scrub -> stream)
    }

    async fn begin_replica(&self, request: Request<BeginReplicaRequest>) -> Result<Response<Done>, Status> {
        unary!(self, &[PeerRole::Node], request, begin_replica -> done)
    }

    async fn change_volume(&self, request: Request<ChangeVolumeRequest>) -> Result<Response<Done>, Status> {
        unary!(self, &[PeerRole::Admin], request, change_volume -> done)
    }

    async fn digest_shard(&self, request: Request<DigestShardRequest>) -> Result<Response<DigestShardReply>, Status> {
        unary!(self, &[PeerRole::Admin, PeerRole::Node], request, digest_shard)
    }

    async fn shard_members(
        &self,
        request: Request<ShardMembersRequest>,
    ) -> Result<Response<ShardMembersReply>, Status> {
        unary!(self, &[PeerRole::Node], request, shard_members)
    }

    async fn rebalance(&self, request: Request<RebalanceRequest>) -> Result<Response<RebalanceReply>, Status> {
        unary!(self, &[PeerRole::Admin], request, rebalance)
    }

    async fn move_account(&self, request: Request<MoveAccountRequest>) -> Result<Response<MoveAccountReply>, Status> {
        unary!(self, &[PeerRole::Node], request, move_account)
    }

    async fn export_account(
        &self,
        request: Request<ExportAccountRequest>,
    ) -> Result<Response<Self::ExportAccountStream>, Status> {
        unary!(self, &[PeerRole::Node], request, export_account -> stream)
    }
}
