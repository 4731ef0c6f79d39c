//! Running a role: start it from its settings, serve its health pages, obey signals, stop it gracefully.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use node::Node;
use parking_lot::Mutex;
use proto::ClusterTls;
use router::{Cluster, Router};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use crate::failure::Failure;
use crate::http;
use crate::settings::{NodeFile, ProcessSettings, RouterFile, SingleFile};

/// Tasks that do not end by themselves get this long once everything graceful is done.
const RUNTIME_STOP_MAX: Duration = Duration::from_secs(2);

/// What runs in this process.
pub struct Running {
    pub node: Option<Node>,
    /// Taken out when it stops.
    router: Mutex<Option<Router>>,
    stopping: AtomicBool,
}

pub fn node(file: NodeFile) -> Result<(), Failure> {
    run(file.process(), "node", async move { Ok(Running::new(Some(Node::start(file.node).await?), None)) })
}

pub fn router(file: RouterFile) -> Result<(), Failure> {
    run(file.process(), "router", async move {
        let tls = ClusterTls::load(file.router.validate_cluster()?).context("cluster_tls")?;
        let cluster = Cluster::connect(&file.router.nodes, &tls);
        Ok(Running::new(None, Some(Router::start(file.router, cluster).await?)))
    })
}

/// The router calls the node in this process; the node still listens for administration.
pub fn single(file: SingleFile) -> Result<(), Failure> {
    run(file.process(), "single", async move {
        let node = Node::start(file.node).await?;
        let cluster = Cluster::in_process(Arc::new(node.clone()));
        match Router::start(file.router, cluster).await {
            Ok(router) => Ok(Running::new(Some(node), Some(router))),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    })
}

fn run(
    process: ProcessSettings,
    role: &'static str,
    start: impl Future<Output = Result<Running>>,
) -> Result<(), Failure> {
    process.log.start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let ran = runtime.block_on(serve(&process, role, start));
    runtime.shutdown_timeout(RUNTIME_STOP_MAX);
    if let Err(error) = &ran {
        tracing::error!(error = format!("{error:#}"), role, "process ends");
    }
    // Said once, in the log.
    ran.map_err(|_| Failure::Told)
}

async fn serve(
    process: &ProcessSettings,
    role: &'static str,
    start: impl Future<Output = Result<Running>>,
) -> Result<()> {
    let mut signals = Signals::new()?;
    // Bound first: a port that is taken should end the start before a disk is opened.
    let health = match process.http {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| format!("http: listen on {address}"))?),
        None => None,
    };
    let _pid_file = process.pid_file.clone().map(PidFile::write).transpose()?;
    info!(role, version = env!("CARGO_PKG_VERSION"), "process starts");
    let running = tokio::select! {
        started = start => Arc::new(started?),
        () = signals.stop() => return Ok(()),
    };
    let health = health.map(|listener| tokio::spawn(http::serve(listener, running.clone())));
    info!(role, "process started");
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => running.reload(),
        }
    }
    info!(role, "process stops");
    tokio::select! {
        () = running.shutdown() => {}
        // Somebody is in a hurry. What was acknowledged is on disk.
        () = signals.stop() => info!(role, "process stops at once"),
    }
    if let Some(health) = health {
        health.abort();
    }
    info!(role, "process stopped");
    Ok(())
}

impl Running {
    fn new(node: Option<Node>, router: Option<Router>) -> Running {
        Running { node, router: Mutex::new(router), stopping: AtomicBool::new(false) }
    }

    /// False also while stopping, so that a load balancer sends nobody here any more.
    pub fn ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
            && self.node.as_ref().is_none_or(Node::ready)
            && self.router.lock().as_ref().is_none_or(Router::ready)
    }

    pub fn router_metrics(&self) -> Option<String> {
        self.router.lock().as_ref().map(Router::metrics_text)
    }

    fn reload(&self) {
        if let Some(router) = &*self.router.lock() {
            router.reload_certificate();
        }
    }

    /// Clients first: the router's sessions need the node to finish.
    async fn shutdown(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let router = self.router.lock().take();
        if let Some(router) = router {
            router.shutdown().await;
        }
        if let Some(node) = &self.node {
            node.shutdown().await;
        }
    }
}

/// What a signal asks for.
enum Told {
    Stop,
    /// SIGHUP: read the certificate for clients again.
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| signal(kind).context("signal handler");
        Ok(Signals {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    async fn stop(&mut self) {
        while let Told::Reload = self.next().await {}
    }
}

/// Removed when the process ends by itself.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<PidFile> {
        fs::write(&path, format!("{}\n", std::process::id()))
            .with_context(|| format!("pid_file: write {}", path.display()))?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, "pid file not removed");
        }
    }
}
