//! The whole way: a client's socket, the router, gRPC over mutual TLS, nodes. And a node that dies.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::wire::NodeRecord;
use proto::wire::directory_change::Change;
use proto::wire::directory_server::DirectoryServer;
use proto::wire::mail_server::MailServer;
use proto::{ClusterTls, ClusterTlsFiles, DirectoryService, MailService, ROLE_NODE, ROLE_ROUTER, accept_peers};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use router::{Cluster, Router};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::support::client::Client;
use crate::support::cluster::{PASSWORD, TestCluster, shard_of};
use crate::support::router::{PATIENCE, POP3, SMTP, settings};

/// A CA and a certificate for each role, as `mailring` makes them.
fn certificates(dir: &Path) -> impl Fn(&str) -> ClusterTls {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let dir = dir.to_owned();
    move |role| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![role.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let path = |name: &str| dir.join(format!("{role}.{name}"));
        let files = ClusterTlsFiles { ca: path("ca"), certificate: path("certificate"), key: path("key") };
        std::fs::write(&files.ca, ca.pem()).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        ClusterTls::load(&files).unwrap()
    }
}

async fn serve(test: &TestCluster, id: u64, tls: &ClusterTls) -> (String, AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    test.change(Change::Node(NodeRecord { id, address: address.clone(), ..NodeRecord::default() }));
    let node: Arc<_> = test.node(id);
    let server = tonic::transport::Server::builder()
        .add_service(MailServer::new(MailService::new(node.clone())))
        .add_service(DirectoryServer::new(DirectoryService::new(node)))
        .serve_with_incoming(accept_peers(listener, tls));
    (address, tokio::spawn(server).abort_handle())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_in_and_out_over_the_network_and_past_a_dead_node() {
    let dir = tempfile::tempdir().unwrap();
    let tls = certificates(dir.path());
    let node_tls = tls(ROLE_NODE);
    let test = TestCluster::new();
    let mut seeds = Vec::new();
    let mut servers = Vec::new();
    for id in 1..=3 {
        let (address, server) = serve(&test, id, &node_tls).await;
        seeds.push(address);
        servers.push(server);
    }
    let settings = settings(dir.path());
    let router = Router::start(settings, Cluster::connect(&seeds, &tls(ROLE_ROUTER))).await.unwrap();
    timeout(PATIENCE, router.cluster().wait_ready()).await.unwrap();

    let recipients = ["alice@example.test", "bob@example.test", "carol@example.test", "dave@example.org"];
    let large = "a line of a message that takes several pieces on its way\r\n".repeat(30_000);
    let mut client = Client::connect(router.local_addresses()[SMTP]).await;
    client.line().await;
    client.expect("EHLO c.test", "250").await;
    assert!(client.mail("s@c.test", &recipients, &large).await.starts_with("250 "));
    for name in recipients {
        assert!(test.contents(name) == [large.clone()], "{name}");
    }

    // The node that leads alice's shard goes away; another takes over.
    let shard = shard_of(test.id("alice@example.test"));
    let dead = test.state.lock().leaders[&shard];
    servers[dead as usize - 1].abort();
    test.state.lock().down.insert(dead);
    for shard in 0..4 {
        if test.state.lock().leaders[&shard] == dead {
            test.lead(shard, dead % 3 + 1);
        }
    }
    let reply = client.mail("s@c.test", &recipients, "second\r\n").await;
    assert!(reply.starts_with("250 "), "{reply}");
    assert_eq!(test.contents("alice@example.test").len(), 2);

    let mut client = Client::connect(router.local_addresses()[POP3]).await;
    client.line().await;
    let reply = client.login_pop3("alice@example.test", PASSWORD).await;
    assert!(reply.starts_with("+OK 2 messages"), "{reply}");
    client.expect("RETR 1", "+OK").await;
    assert!(client.multi_line().await.ends_with(&large));
    let mut second = Client::connect(router.local_addresses()[POP3]).await;
    second.line().await;
    assert!(second.login_pop3("alice@example.test", PASSWORD).await.starts_with("-ERR [IN-USE]"));
    client.expect("DELE 1", "+OK").await;
    client.expect("QUIT", "+OK").await;
    let free = async {
        while !test.state.lock().locks.is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
    let reply = second.login_pop3("alice@example.test", PASSWORD).await;
    assert!(reply.starts_with("+OK 1 messages"), "{reply}");
}
