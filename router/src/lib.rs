//! The protocol router: accepts SMTP, POP3 and IMAP connections, ends their TLS, and asks the nodes for everything
//! that is stored. It holds nothing that outlives a connection, so any number of routers can stand side by side.
//!
//! ```text
//! listener ──► connection ──► session (protocol machine) ──► delivery, cluster::ShardClient ──► proto::NodeApi
//!                                  │                                  ▲
//!                                  └── auth ── cluster view ◄── directory watch
//! ```

pub mod auth;
pub mod cluster;
pub mod connection;
pub mod context;
mod delivery;
mod listener;
mod metrics;
mod send_queue;
pub mod session;
pub mod settings;
mod settle;
mod spool;
mod stop;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use crate::context::Context;
use crate::stop::Stopper;

pub use cluster::Cluster;
pub use settings::RouterSettings;
pub use stop::Stop;
pub use tls::ClientTls;

/// At shutdown, what senders know already is settled, if the shards answer within this.
const SETTLE_AT_SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// A router that serves. Dropping it cuts every session off; see [`Router::shutdown`].
pub struct Router {
    context: Arc<Context>,
    stopper: Stopper,
    addresses: Vec<SocketAddr>,
    certificate_watch: Option<AbortHandle>,
}

impl Router {
    /// Checks the settings, reads the certificate and binds every listener before it serves the first client. Begins
    /// to follow the directory; until it is known, mail is deferred and logins are told to try later.
    pub async fn start(settings: RouterSettings, cluster: Cluster) -> anyhow::Result<Router> {
        settings.validate()?;
        let tls = match &settings.tls {
            Some(files) => Some(Arc::new(ClientTls::load(files).context("cannot use the certificate")?)),
            None => None,
        };
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for listener in &settings.listeners {
            let bound = listener::bind(listener.address)
                .with_context(|| format!("cannot listen on {} for {}", listener.address, listener.protocol.as_str()))?;
            addresses.push(bound.local_addr().context("cannot tell a listener's address")?);
            listeners.push((bound, Arc::new(listener.clone())));
        }
        let cluster = cluster.with_patience(settings.limits.patience());
        cluster.follow();
        let certificate_watch = tls.clone().map(|tls| tokio::spawn(tls.watch()).abort_handle());
        let context = Arc::new(Context::new(settings, cluster, tls)?);
        let stopper = Stopper::new();
        for (bound, listener) in listeners {
            tokio::spawn(listener::accept(bound, listener, context.clone(), stopper.stop()));
        }
        info!(name = context.settings.name, listeners = addresses.len(), "router started");
        Ok(Router { context, stopper, addresses, certificate_watch })
    }

    /// Where it listens, in the settings' order; a port of 0 is the port that was taken.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Knows the directory, so that it can serve.
    pub fn ready(&self) -> bool {
        self.context.cluster.is_ready()
    }

    pub fn cluster(&self) -> &Cluster {
        &self.context.cluster
    }

    /// In the OpenMetrics text format.
    pub fn metrics_text(&self) -> String {
        self.context.metrics.text()
    }

    /// Reads the certificate's files again, as on SIGHUP. Changes are also seen within seconds without it.
    pub fn reload_certificate(&self) {
        if let Some(tls) = &self.context.tls {
            tls.reload();
        }
    }

    /// Accepts no more, lets each session finish its command and say goodbye, and cuts off whoever takes longer than
    /// the settings' `shutdown_s`.
    pub async fn shutdown(self) {
        self.stopper.begin();
        let max = Duration::from_secs(self.context.settings.limits.shutdown_s);
        if tokio::time::timeout(max, self.stopper.all_gone()).await.is_err() {
            warn!("sessions cut off at shutdown");
            self.stopper.kill();
            // They end as soon as they are polled.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.stopper.all_gone()).await;
        }
        if tokio::time::timeout(SETTLE_AT_SHUTDOWN_MAX, self.context.settler.finish()).await.is_err() {
            debug!("fingerprints left unsettled at shutdown");
        }
        self.context.cluster.stop();
        info!("router stopped");
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stopper.kill();
        self.context.cluster.stop();
        if let Some(watch) = &self.certificate_watch {
            watch.abort();
        }
    }
}
