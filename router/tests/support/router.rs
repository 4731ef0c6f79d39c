//! A router under test: listeners on free ports of the loopback.

use std::net::SocketAddr;
use std::time::Duration;

use router::settings::{Limits, ListenerSettings, ListenerTls, Protocol, Role, TlsFiles};
use router::{Router, RouterSettings};

use super::client::Client;
use super::cluster::TestCluster;

/// Longer than anything that works takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For tests that wait until an operation is given up. Others have the usual time: a busy machine may need it.
pub const OPERATION_MS: u64 = 1_500;

pub struct TestRouter {
    pub router: Router,
    pub cluster: TestCluster,
    /// Certificates; deleted with it.
    _dir: tempfile::TempDir,
}

pub fn listener(protocol: Protocol, tls: ListenerTls) -> ListenerSettings {
    ListenerSettings {
        protocol,
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        role: Role::Mx,
        tls,
        allow_plaintext_login: true,
    }
}

/// SMTP role mx with STARTTLS, POP3 with STLS, submission, POP3 over TLS, in this order.
pub const SMTP: usize = 0;
pub const POP3: usize = 1;
pub const SUBMISSION: usize = 2;
pub const POP3S: usize = 3;

pub fn settings(dir: &std::path::Path) -> RouterSettings {
    let files = TlsFiles { certificate: dir.join("certificate.pem"), key: dir.join("key.pem") };
    let made = rcgen::generate_simple_self_signed(vec!["mx.example.test".to_owned()]).unwrap();
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let submission = ListenerSettings {
        role: Role::Submission,
        allow_plaintext_login: false,
        ..listener(Protocol::Smtp, ListenerTls::StartTls)
    };
    RouterSettings {
        name: "router1".to_owned(),
        hostname: "mx.example.test".to_owned(),
        nodes: Vec::new(),
        cluster_tls: None,
        tls: Some(files),
        listeners: vec![
            listener(Protocol::Smtp, ListenerTls::StartTls),
            listener(Protocol::Pop3, ListenerTls::StartTls),
            submission,
            listener(Protocol::Pop3, ListenerTls::Implicit),
        ],
        limits: Limits::default(),
    }
}

impl TestRouter {
    pub async fn start() -> TestRouter {
        TestRouter::with(|_| {}).await
    }

    /// Started and ready, with settings changed.
    pub async fn with(change: impl FnOnce(&mut RouterSettings)) -> TestRouter {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        change(&mut settings);
        let cluster = TestCluster::new();
        let router = Router::start(settings, cluster.cluster()).await.unwrap();
        tokio::time::timeout(PATIENCE, router.cluster().wait_ready()).await.unwrap();
        TestRouter { router, cluster, _dir: dir }
    }

    pub fn address(&self, listener: usize) -> SocketAddr {
        self.router.local_addresses()[listener]
    }

    /// Connected, the greeting not yet read.
    pub async fn connect(&self, listener: usize) -> Client {
        Client::connect(self.address(listener)).await
    }

    /// Connected and greeted.
    pub async fn client(&self, listener: usize) -> Client {
        let mut client = self.connect(listener).await;
        client.line().await;
        client
    }

    /// Waits until the router has heard all changes of the directory.
    pub async fn heard(&self) {
        let revision = self.cluster.directory().revision;
        let mut revisions = self.router.cluster().revisions();
        let heard = revisions.wait_for(|known| known.is_some_and(|known| known >= revision));
        tokio::time::timeout(PATIENCE, heard).await.unwrap().unwrap();
    }

    pub async fn eventually(&self, what: &str, is_so: impl Fn(&TestRouter) -> bool) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(tokio::time::Instant::now() < until, "never came about: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
