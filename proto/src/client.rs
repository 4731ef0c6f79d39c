//! The gRPC client: a node over the network, behind the same traits as a node in this process.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use types::{MailError, MailResult};

use crate::body::Body;
use crate::error::mail_error;
use crate::format::user_agent;
use crate::refusals;
use crate::role::ROLE_NODE;
use crate::server::GRPC_MESSAGE_OCTETS_MAX;
use crate::socket;
use crate::store::{DirectoryStore, ItemStream, MailStore};
use crate::stream::Known;
use crate::wire::append_part::Part as AppendPiece;
use crate::wire::deliver_part::Part as DeliverPiece;
use crate::wire::directory_client::DirectoryClient;
use crate::wire::mail_client::MailClient;
use crate::wire::{
    AccountRequest, AdminReply, AdminRequest, AppendPart, AppendReply, AppendRequest, BeginReplicaRequest,
    ChangeVolumeRequest, ChangesReply, ChangesRequest, CompareShardReply, CompareShardRequest, CopyReply, CopyRequest,
    CreateMailboxReply, CreateMailboxRequest, DeliverPart, DeliverReply, DeliverRequest, DigestShardReply,
    DigestShardRequest, DirectoryEvent, DirectoryWatchRequest, Done, ExportAccountRequest, ExportedPart, ExpungeReply,
    ExpungeRequest, FetchItem, FetchRequest, IdentifyRequest, Identity, Mailbox, MailboxNameRequest, MailboxesReply,
    MoveAccountReply, MoveAccountRequest, NodeStart, NodeStatusReply, NodeStatusRequest, RebalanceReply,
    RebalanceRequest, RegisterNodeRequest, RenameMailboxRequest, ScrubEvent, ScrubRequest, SearchReply, SearchRequest,
    SelectReply, SelectRequest, SettleRequest, ShardMembersReply, ShardMembersRequest, StoreReply, StoreRequest,
    SubscribeRequest, UsageReply, WatchEvent, WatchRequest,
};

/// A node on the same network answers a connect in well under this.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// After a failed connect, what waits for the connection fails at once for so long: each would else wait for an attempt
/// of its own, one after another.
const CONNECT_AGAIN_AFTER: Duration = Duration::from_millis(150);
/// One operation, from send to reply: longer than an election, shorter than a mail client's patience.
const CALL_MAX: Duration = Duration::from_secs(15);
/// One operation that carries a body: 64 MiB over a slow link.
const BODY_CALL_MAX: Duration = Duration::from_secs(120);
/// Reading all of a shard: tens of GiB from a slow disk.
const DIGEST_CALL_MAX: Duration = Duration::from_secs(3_600);
/// The same of all replicas at once, and what is done about one.
const COMPARE_CALL_MAX: Duration = Duration::from_secs(3_660);
/// A peer that is gone without a word is noticed within the sum of the two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(2);
/// The same for [`connect_for_bulk`]: several times what the buffers before a link of 64 kbit/s hold (see `socket.rs`).
const BULK_KEEP_ALIVE_MAX: Duration = Duration::from_secs(20);
/// HTTP/2 flow control: what a reader that does not read holds of a stream. Enough for a fast network.
const STREAM_WINDOW_OCTETS: u32 = 256 * 1024;
/// No bound of its own (RFC 9113 §6.9.1 has none greater): slow readers of some streams must not stop all others.
const CONNECTION_WINDOW_OCTETS: u32 = (1 << 31) - 1;
/// Streams that were given up, whose late frames are ignored without an answer.
const RESET_STREAMS_REMEMBERED: usize = 1_024;

/// A connection to a node at `address` (host:port), made when first used and again when lost.
///
/// A peer that is gone without a word is noticed within four seconds.
pub fn connect(address: &str, tls: Arc<ClientConfig>) -> io::Result<Channel> {
    connect_with(address, tls, KEEP_ALIVE_MAX)
}

/// As [`connect`], for large messages over narrow links, where a ping waits for what was sent before it. That the peer is
/// gone is better learnt from another connection: here it takes so much longer.
pub fn connect_for_bulk(address: &str, tls: Arc<ClientConfig>) -> io::Result<Channel> {
    connect_with(address, tls, BULK_KEEP_ALIVE_MAX)
}

fn connect_with(address: &str, tls: Arc<ClientConfig>, keep_alive_max: Duration) -> io::Result<Channel> {
    let uri: Uri = format!("http://{address}").parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let endpoint = Endpoint::from(uri)
        .user_agent(user_agent())
        .map_err(io::Error::other)?
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(keep_alive_max)
        .keep_alive_while_idle(true)
        // What a stream that was given up still brings must not end the connection, and with it everybody's operations.
        .http2_max_local_error_reset_streams(None)
        .http2_max_concurrent_reset_streams(RESET_STREAMS_REMEMBERED)
        .initial_stream_window_size(STREAM_WINDOW_OCTETS)
        .initial_connection_window_size(CONNECTION_WINDOW_OCTETS);
    let connector = TlsConnector::from(tls);
    let failed_at: Arc<Mutex<Option<Instant>>> = Arc::default();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
        let (connector, failed_at) = (connector.clone(), failed_at.clone());
        async move {
            if lock(&failed_at).is_some_and(|at| at.elapsed() < CONNECT_AGAIN_AFTER) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let authority = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
            let connecting = async {
                let stream = TcpStream::connect(&authority).await?;
                socket::prepare(&stream)?;
                let name = ServerName::try_from(ROLE_NODE).map_err(io::Error::other)?;
                let limit = |connection: &mut ClientConnection| {
                    connection.set_buffer_limit(Some(socket::TLS_BUFFER_OCTETS));
                };
                connector.connect_with(name, stream, limit).await
            };
            let connected = tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(io::Error::from);
            let connected = connected.and_then(|connected| connected);
            *lock(&failed_at) = connected.is_err().then(Instant::now);
            if let Err(error) = &connected {
                refusals::tell(&authority, error);
            }
            connected.map(|stream| TokioIo::new(Known { stream, peer: authority }))
        }
    })))
}

fn lock(failed_at: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    failed_at.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node over gRPC. Cloning shares its connections.
///
/// What lasts has connections of its own, for there are only so many streams to one: the operations of everybody would
/// wait for clients that read slowly, or that hold a maildrop.
#[derive(Clone, Debug)]
pub struct GrpcNode {
    mail: MailClient<Channel>,
    /// Fetches: as long as a mail client takes to read.
    reading: MailClient<Channel>,
    /// Held maildrops and watches.
    lasting: MailClient<Channel>,
    directory: DirectoryClient<Channel>,
}

impl GrpcNode {
    /// Everything over one connection: for a caller that asks little.
    pub fn new(channel: Channel) -> GrpcNode {
        GrpcNode::over([channel.clone(), channel.clone(), channel])
    }

    /// For a router: connections that are made when first used.
    pub fn connect(address: &str, tls: &Arc<ClientConfig>) -> io::Result<GrpcNode> {
        let channel = || connect(address, tls.clone());
        Ok(GrpcNode::over([channel()?, channel()?, channel()?]))
    }

    fn over([calls, reading, lasting]: [Channel; 3]) -> GrpcNode {
        let mail = |channel: Channel| {
            MailClient::new(channel)
                .max_decoding_message_size(GRPC_MESSAGE_OCTETS_MAX)
                .max_encoding_message_size(GRPC_MESSAGE_OCTETS_MAX)
        };
        GrpcNode {
            directory: DirectoryClient::new(calls.clone())
                .max_decoding_message_size(GRPC_MESSAGE_OCTETS_MAX)
                .max_encoding_message_size(GRPC_MESSAGE_OCTETS_MAX),
            mail: mail(calls),
            reading: mail(reading),
            lasting: mail(lasting),
        }
    }
}

fn timed<T>(message: T, max: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(max);
    request
}

/// Awaits a reply no longer than `max`: the server is told the same, but may be the one that hangs.
async fn reply<T>(max: Duration, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> MailResult<T> {
    match tokio::time::timeout(max, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(mail_error(&status)),
        Err(_) => Err(MailError::Deadline),
    }
}

fn items<T: Send + 'static>(stream: Streaming<T>) -> ItemStream<T> {
    Box::pin(stream.map(|item| item.map_err(|status| mail_error(&status))))
}

/// A request and its body as one client stream. A body that cannot be read ends the stream early, which the server
/// notices by the octets that the request announced.
fn parts<P: Send + 'static>(
    first: P,
    body: &Body,
    part: impl Fn(bytes::Bytes) -> P + Send + Sync + 'static,
) -> impl Stream<Item = P> + Send + 'static {
    let body = body.stream().take_while(|piece| std::future::ready(piece.is_ok()));
    stream::once(std::future::ready(first))
        .chain(body.filter_map(move |piece| std::future::ready(piece.ok().map(&part))))
}

/// A unary call forwarded as it is.
macro_rules! call {
    ($client:expr, $method:ident, $request:expr) => {
        reply(CALL_MAX, $client.clone().$method(timed($request, CALL_MAX))).await
    };
}

#[async_trait]
impl MailStore for GrpcNode {
    async fn deliver(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply> {
        let first = DeliverPart { part: Some(DeliverPiece::Request(request)) };
        let stream = parts(first, &body, |bytes| DeliverPart { part: Some(DeliverPiece::Body(bytes)) });
        reply(BODY_CALL_MAX, self.mail.clone().deliver(timed(stream, BODY_CALL_MAX))).await
    }

    async fn settle(&self, request: SettleRequest) -> MailResult<()> {
        call!(self.mail, settle, request).map(|Done {}| ())
    }

    async fn append(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        let first = AppendPart { part: Some(AppendPiece::Request(request)) };
        let stream = parts(first, &body, |bytes| AppendPart { part: Some(AppendPiece::Body(bytes)) });
        reply(BODY_CALL_MAX, self.mail.clone().append(timed(stream, BODY_CALL_MAX))).await
    }

    async fn open_account(&self, request: AccountRequest) -> MailResult<()> {
        call!(self.mail, open_account, request).map(|Done {}| ())
    }

    async fn usage(&self, request: AccountRequest) -> MailResult<UsageReply> {
        call!(self.mail, usage, request)
    }

    async fn mailboxes(&self, request: AccountRequest) -> MailResult<MailboxesReply> {
        call!(self.mail, mailboxes, request)
    }

    async fn create_mailbox(&self, request: CreateMailboxRequest) -> MailResult<CreateMailboxReply> {
        call!(self.mail, create_mailbox, request)
    }

    async fn delete_mailbox(&self, request: MailboxNameRequest) -> MailResult<()> {
        call!(self.mail, delete_mailbox, request).map(|Done {}| ())
    }

    async fn rename_mailbox(&self, request: RenameMailboxRequest) -> MailResult<()> {
        call!(self.mail, rename_mailbox, request).map(|Done {}| ())
    }

    async fn subscribe(&self, request: SubscribeRequest) -> MailResult<()> {
        call!(self.mail, subscribe, request).map(|Done {}| ())
    }

    async fn status(&self, request: MailboxNameRequest) -> MailResult<Mailbox> {
        call!(self.mail, status, request)
    }

    async fn select(&self, request: SelectRequest) -> MailResult<SelectReply> {
        call!(self.mail, select, request)
    }

    async fn fetch(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>> {
        // No deadline on the stream as a whole: a client may read 500 MB over a slow line.
        reply(CALL_MAX, self.reading.clone().fetch(Request::new(request))).await.map(items)
    }

    async fn search(&self, request: SearchRequest) -> MailResult<SearchReply> {
        reply(BODY_CALL_MAX, self.mail.clone().search(timed(request, BODY_CALL_MAX))).await
    }

    async fn store(&self, request: StoreRequest) -> MailResult<StoreReply> {
        call!(self.mail, store, request)
    }

    async fn copy(&self, request: CopyRequest) -> MailResult<CopyReply> {
        call!(self.mail, copy, request)
    }

    async fn expunge(&self, request: ExpungeRequest) -> MailResult<ExpungeReply> {
        call!(self.mail, expunge, request)
    }

    async fn changes(&self, request: ChangesRequest) -> MailResult<ChangesReply> {
        call!(self.mail, changes, request)
    }

    async fn watch(&self, request: WatchRequest) -> MailResult<ItemStream<WatchEvent>> {
        reply(CALL_MAX, self.lasting.clone().watch(Request::new(request))).await.map(items)
    }

    async fn hold_maildrop(&self, request: AccountRequest) -> MailResult<ItemStream<Done>> {
        reply(CALL_MAX, self.lasting.clone().hold_maildrop(Request::new(request))).await.map(items)
    }
}

#[async_trait]
impl DirectoryStore for GrpcNode {
    async fn watch_directory(&self, request: DirectoryWatchRequest) -> MailResult<ItemStream<DirectoryEvent>> {
        reply(CALL_MAX, self.directory.clone().watch(Request::new(request))).await.map(items)
    }

    async fn administer(&self, request: AdminRequest) -> MailResult<AdminReply> {
        call!(self.directory, administer, request)
    }

    async fn register_node(&self, request: RegisterNodeRequest) -> MailResult<()> {
        call!(self.directory, register_node, request).map(|Done {}| ())
    }

    async fn note_start(&self, request: NodeStart) -> MailResult<NodeStart> {
        call!(self.directory, note_start, request)
    }

    async fn identify(&self) -> MailResult<Identity> {
        call!(self.directory, identify, IdentifyRequest {})
    }

    async fn node_status(&self) -> MailResult<NodeStatusReply> {
        call!(self.directory, node_status, NodeStatusRequest {})
    }

    async fn compare_shard(&self, request: CompareShardRequest) -> MailResult<CompareShardReply> {
        reply(COMPARE_CALL_MAX, self.directory.clone().compare_shard(timed(request, COMPARE_CALL_MAX))).await
    }

    async fn scrub(&self, request: ScrubRequest) -> MailResult<ItemStream<ScrubEvent>> {
        reply(CALL_MAX, self.directory.clone().scrub(Request::new(request))).await.map(items)
    }

    async fn begin_replica(&self, request: BeginReplicaRequest) -> MailResult<()> {
        call!(self.directory, begin_replica, request).map(|Done {}| ())
    }

    async fn change_volume(&self, request: ChangeVolumeRequest) -> MailResult<()> {
        call!(self.directory, change_volume, request).map(|Done {}| ())
    }

    async fn digest_shard(&self, request: DigestShardRequest) -> MailResult<DigestShardReply> {
        reply(DIGEST_CALL_MAX, self.directory.clone().digest_shard(timed(request, DIGEST_CALL_MAX))).await
    }

    async fn shard_members(&self, request: ShardMembersRequest) -> MailResult<ShardMembersReply> {
        call!(self.directory, shard_members, request)
    }

    async fn rebalance(&self, request: RebalanceRequest) -> MailResult<RebalanceReply> {
        call!(self.directory, rebalance, request)
    }

    async fn move_account(&self, request: MoveAccountRequest) -> MailResult<MoveAccountReply> {
        call!(self.directory, move_account, request)
    }

    async fn export_account(&self, request: ExportAccountRequest) -> MailResult<ItemStream<ExportedPart>> {
        // No deadline on the stream as a whole: it is as slow as mail makes it.
        reply(CALL_MAX, self.directory.clone().export_account(Request::new(request))).await.map(items)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use futures_util::future::join_all;
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::net::TcpListener;
    use types::MailError;

    use super::{CONNECT_MAX, GrpcNode, connect};
    use crate::store::DirectoryStore;

    #[tokio::test]
    async fn what_waits_for_a_connection_that_fails_fails_with_it() {
        // As of a process that is stopped: the kernel accepts, and nobody answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let address = silent.local_addr().unwrap().to_string();
        let node = GrpcNode::new(connect(&address, Arc::new(tls)).unwrap());
        let started = Instant::now();
        for outcome in join_all((0..8).map(|_| node.identify())).await {
            // Certainly not sent.
            assert_eq!(outcome.err(), Some(MailError::Unavailable));
        }
        // One after another they would take eight times as long as one.
        assert!(started.elapsed() < CONNECT_MAX * 4, "{:?}", started.elapsed());
    }
}
