//! The storage node: replicas of shards and of the directory as Raft groups over one volume, served to routers and
//! administrators over gRPC.

mod account_move;
mod admin;
mod bootstrap;
mod descriptors;
mod directory_group;
mod group;
mod groups;
mod homes;
mod log_keeping;
mod mail;
mod membership;
mod raft;
mod rebalance;
mod reconcile;
mod remains;
mod scrub;
mod settings;
mod shard;
mod shard_clock;
mod space;
mod step_aside;
mod throttle;
mod vetting;
mod volume_starts;
mod volumes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use proto::wire::directory_server::DirectoryServer;
use proto::wire::mail_server::MailServer;
use proto::wire::raft_server::RaftServer;
use proto::{ClusterTls, DirectoryService, GRPC_MESSAGE_OCTETS_MAX, MailService, accept_peers_while, check_format};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::InterceptorLayer;
use types::{NodeId, ShardId};

use crate::group::GroupContext;
use crate::groups::Groups;
use crate::mail::{Bounds, Doubted};
use crate::raft::{Peers, RaftService};
use crate::step_aside::Stall;
use crate::volumes::Volumes;

pub use crate::settings::{ClusterSettings, NodeSettings, VolumeSettings};

/// HTTP/2 streams that one connection may have open: each POP3 session of a router holds one, each fetch under way.
const STREAMS_MAX: u32 = 32_768;
/// Octets of metadata in one request.
const HEADERS_OCTETS_MAX: u32 = 16 * 1024;
/// Streams that a peer may reset before it is told to go away (rapid reset).
const RESETS_MAX: usize = 256;
const STREAM_WINDOW_OCTETS: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_OCTETS: u32 = 8 * 1024 * 1024;
/// A router that is gone without a word frees its locks within the sum of the two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(2);
/// Calls under way when the node stops get this long to end.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// A running node. Cloning shares it.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    settings: NodeSettings,
    groups: Arc<Groups>,
    bounds: Bounds,
    doubted: Doubted,
    account_moves: account_move::Figures,
    short_shards: rebalance::ShortShards,
    /// Held by the scrub that is under way.
    scrubbing: Arc<tokio::sync::Mutex<()>>,
    /// Seconds since 1970; 0 where it does not say.
    certificate_ends_unix_s: i64,
    started: Instant,
    stop: watch::Sender<bool>,
    tasks: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    /// Opens the disk, starts the replicas that are on it, serves gRPC, and joins or founds the cluster in the
    /// background. Errors are those that an operator must mend.
    pub async fn start(settings: NodeSettings) -> Result<Node> {
        settings.validate().map_err(|e| anyhow!("settings: {e}"))?;
        let tls = ClusterTls::load(&settings.tls).context("cluster TLS")?;
        settings.check_certificate(tls.name.as_deref()).map_err(|e| anyhow!("{e}"))?;
        descriptors::raise_limit();
        let of_volumes = settings.clone();
        let opening = tokio::task::spawn_blocking(move || Volumes::open(&of_volumes));
        let volumes = Arc::new(opening.await.context("open the volumes")?.context("open the volumes")?);
        let looking = volumes.clone();
        let looked = tokio::task::spawn_blocking(move || volume_starts::give_up_old_copies(&looking));
        looked.await.context("look for old copies")??;
        let own = volumes.node;
        let peers = Peers::new(own.0, tls.client.clone(), settings.move_octets_per_s);
        let first = volumes.numbered(1).context("the first volume")?;
        let (start, vetting) = bootstrap::count_start(&first, &peers, &settings).await?;
        let counting = volumes.clone();
        let counted = tokio::task::spawn_blocking(move || volume_starts::count(&counting, start.now));
        counted.await.context("count the start")?.context("count the start")?;
        // Not before: nodes that start together would wait for answers of each other's open ports.
        let listener =
            TcpListener::bind(&settings.listen).await.with_context(|| format!("listen on {}", settings.listen))?;
        let context = GroupContext { own, peers, stall: Stall::default(), start, vetting: Arc::new(vetting) };
        let groups = Groups::start(volumes, context).await.context("start the groups on disk")?;
        let (stop, stopped) = watch::channel(false);
        let inner = Arc::new(Inner {
            bounds: Bounds::default(),
            doubted: Doubted::default(),
            account_moves: account_move::Figures::default(),
            short_shards: rebalance::ShortShards::default(),
            settings,
            groups,
            scrubbing: Arc::default(),
            certificate_ends_unix_s: tls.ends_unix_s.unwrap_or(0),
            started: Instant::now(),
            stop,
            tasks: parking_lot::Mutex::default(),
        });
        let node = Node { inner };
        let serving = tokio::spawn(serve(node.clone(), listener, tls, stopped.clone()));
        let founding = tokio::spawn(bootstrap::run(node.clone(), stopped.clone()));
        let reconciling = tokio::spawn(reconcile::run(node.clone(), stopped.clone()));
        let stepping_aside = tokio::spawn(step_aside::run(node.clone(), stopped.clone()));
        let changing = tokio::spawn(membership::run(node.clone(), stopped.clone()));
        let moving = tokio::spawn(account_move::run(node.clone(), stopped.clone()));
        let conducting = tokio::spawn(rebalance::run(node.clone(), stopped.clone()));
        let measuring = tokio::spawn(space::run(node.clone(), stopped.clone()));
        let reclaiming = tokio::spawn(space::reclaim::run(node.clone(), stopped.clone()));
        let keeping = tokio::spawn(log_keeping::run(node.clone(), stopped.clone()));
        let clearing = tokio::spawn(remains::run(node.clone(), stopped.clone()));
        let scrubbing = tokio::spawn(scrub::run(node.clone(), stopped));
        node.inner.tasks.lock().extend([
            serving,
            founding,
            stepping_aside,
            reconciling,
            changing,
            moving,
            conducting,
            measuring,
            reclaiming,
            keeping,
            clearing,
            scrubbing,
        ]);
        Ok(node)
    }

    pub fn id(&self) -> NodeId {
        self.inner.groups.own
    }

    /// Knows the directory, and every shard that it holds is running, unless it is damaged and has no other copy. What is yet
    /// to come to it, or to be made anew, is held by others and keeps it from nothing.
    pub fn ready(&self) -> bool {
        let groups = &self.inner.groups;
        let placed: BTreeSet<ShardId> = {
            let directory = groups.directory_state.read();
            let placed = directory.placements().count() as u32;
            if directory.cluster().is_none_or(|cluster| placed != cluster.shards) {
                return false;
            }
            directory.placements_on(self.id()).map(|placement| placement.shard).collect()
        };
        let running = groups.shards().into_iter().map(|shard| shard.id);
        let damaged = groups.damaged().into_iter().map(|(shard, _)| shard);
        let elsewhere = groups.absent().into_iter().chain(groups.lost());
        let accounted: BTreeSet<ShardId> = running.chain(damaged).chain(elsewhere).collect();
        placed.is_subset(&accounted)
    }

    /// Hands leaders over where it can, finishes what is under way, and stops.
    pub async fn shutdown(&self) {
        reconcile::hand_over(self).await;
        self.inner.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            drop(tokio::time::timeout(DRAIN_MAX, task).await);
        }
        self.inner.groups.stop().await;
        let groups = self.inner.groups.clone();
        drop(tokio::task::spawn_blocking(move || groups.volumes.close()).await);
    }

    fn groups(&self) -> &Arc<Groups> {
        &self.inner.groups
    }

    fn scrubbing(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.inner.scrubbing.clone()
    }

    fn settings(&self) -> &NodeSettings {
        &self.inner.settings
    }

    fn account_moves(&self) -> &account_move::Figures {
        &self.inner.account_moves
    }

    fn short_shards(&self) -> &rebalance::ShortShards {
        &self.inner.short_shards
    }

    fn bounds(&self) -> &Bounds {
        &self.inner.bounds
    }

    fn doubted(&self) -> &Doubted {
        &self.inner.doubted
    }
}

async fn serve(node: Node, listener: TcpListener, tls: ClusterTls, mut stopped: watch::Receiver<bool>) {
    let store = Arc::new(node.clone());
    let mail = MailServer::new(MailService::new(store.clone()))
        .max_decoding_message_size(GRPC_MESSAGE_OCTETS_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_OCTETS_MAX);
    let directory = DirectoryServer::new(DirectoryService::new(store))
        .max_decoding_message_size(GRPC_MESSAGE_OCTETS_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_OCTETS_MAX);
    let raft = RaftServer::new(RaftService::new(node.groups().clone()))
        .max_decoding_message_size(GRPC_MESSAGE_OCTETS_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_OCTETS_MAX);
    let reserve = descriptors::reserve(node.settings().databases());
    let peers = accept_peers_while(listener, &tls, move |stream| descriptors::leaves(reserve, stream));
    let served = tonic::transport::Server::builder()
        .layer(InterceptorLayer::new(check_format))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_OCTETS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_OCTETS)
        .initial_connection_window_size(CONNECTION_WINDOW_OCTETS)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_MAX))
        .add_service(mail)
        .add_service(directory)
        .add_service(raft)
        .serve_with_incoming_shutdown(peers, async move {
            drop(stopped.wait_for(|stop| *stop).await);
        })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "grpc service ended");
    }
}
