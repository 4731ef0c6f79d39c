//! What all sessions of a router share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use crate::auth::Auth;
use crate::cluster::Cluster;
use crate::listener::Slots;
use crate::metrics::Metrics;
use crate::settings::RouterSettings;
use crate::settle::Settler;
use crate::spool::SpoolMemory;
use crate::tls::ClientTls;

/// Connections that have ended and are held to see whether the client has its answer; more are held by their sessions.
const PARTINGS_MAX: usize = 2_000;

pub struct Context {
    pub settings: RouterSettings,
    pub cluster: Cluster,
    pub auth: Auth,
    pub metrics: Arc<Metrics>,
    pub tls: Option<Arc<ClientTls>>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) spools: Arc<SpoolMemory>,
    pub(crate) settler: Settler,
    pub(crate) partings: Arc<Semaphore>,
    connections: AtomicU64,
    transactions: AtomicU32,
    /// Tells apart the ids of routers and of their restarts.
    seed: u32,
}

impl Context {
    pub fn new(settings: RouterSettings, cluster: Cluster, tls: Option<Arc<ClientTls>>) -> anyhow::Result<Context> {
        let metrics = Arc::new(Metrics::default());
        let seed = getrandom::u32().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        Ok(Context {
            auth: Auth::new(cluster.clone(), metrics.clone())?,
            spools: SpoolMemory::new(settings.limits.spool_memory_octets_max),
            settler: Settler::new(cluster.shards().clone(), metrics.clone()),
            partings: Arc::new(Semaphore::new(PARTINGS_MAX)),
            settings,
            cluster,
            metrics,
            tls,
            slots: Arc::default(),
            connections: AtomicU64::new(0),
            transactions: AtomicU32::new(0),
            seed,
        })
    }

    pub fn connection_id(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// An id for a mail transaction, unlike any other's of this cluster.
    pub fn transaction_id(&self) -> String {
        let count = self.transactions.fetch_add(1, Ordering::Relaxed);
        format!("{:X}{:08X}{count:04X}", unix_s(), self.seed)
    }
}

/// Seconds since 1970-01-01T00:00:00Z.
pub fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
