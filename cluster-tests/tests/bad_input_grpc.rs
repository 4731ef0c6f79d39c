//! Who has no business with a node's gRPC port gets nothing from it, and what makes no sense gets a clear refusal.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions};
use proto::wire::admin_request::Request;
use proto::wire::{AdminRequest, DomainRecord, MailboxNameRequest, NewAccount, NewAccounts, RegisterNodeRequest};
use proto::{ClusterTls, ClusterTlsFiles, DirectoryStore, GrpcNode, MailStore};
use rustls::ClientConfig;
use types::{MailError, MailResult};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(50);
const REFUSED: &str = "certificate of a peer is refused";

fn node(cluster: &Cluster, name: &str) -> Result<GrpcNode> {
    let tls = ClusterTls::load(&cluster.tls_files(name))?;
    Ok(GrpcNode::new(proto::connect(&cluster.grpc(0).to_string(), tls.client)?))
}

/// What a node says to a call, which is made again while the node does not get to it: a connection that takes 2 s on a busy
/// machine is no answer.
async fn answered<T>(call: impl AsyncFn() -> MailResult<T>) -> MailResult<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(MailError::Unavailable | MailError::Deadline) if Instant::now() < until => {
                tokio::time::sleep(AGAIN).await
            }
            answer => return answer,
        }
    }
}

#[test]
fn nobody_gets_an_answer_without_the_right_certificate_and_role() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        no_certificate(&cluster).await?;
        another_ca(&cluster).await?;
        wrong_roles(&cluster).await?;
        nonsense(&cluster).await
    })?;
    garbage(&cluster)?;
    runtime.block_on(async {
        let admin = node(&cluster, "admin")?;
        answered(async || admin.identify().await).await.context("served afterwards")
    })?;
    ensure!(cluster.nodes[0].is_running(), "the node has ended");
    // Told of those who show none, and one of another CA; not of those who speak no TLS.
    ensure!(cluster.nodes[0].logged(REFUSED)? >= 2, "refusals: {:?}", cluster.nodes[0].alarms()?);
    cluster.check_logs(&[REFUSED])
}

/// Trusts the cluster's CA and shows nothing.
async fn no_certificate(cluster: &Cluster) -> Result<()> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(&cluster.ca()?) {
        roots.add(certificate?)?;
    }
    let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stranger = GrpcNode::new(proto::connect(&cluster.grpc(0).to_string(), Arc::new(tls))?);
    let answer = tokio::time::timeout(PATIENCE, stranger.identify()).await.context("identify")?;
    ensure!(answer.is_err(), "a stranger was answered {answer:?}");
    Ok(())
}

async fn another_ca(cluster: &Cluster) -> Result<()> {
    let other = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 1, routers: 0, ..Default::default() })?;
    let own = other.tls_files("admin");
    let files = ClusterTlsFiles { ca: cluster.tls_files("admin").ca, ..own };
    let tls = ClusterTls::load(&files)?;
    let stranger = GrpcNode::new(proto::connect(&cluster.grpc(0).to_string(), tls.client)?);
    let answer = tokio::time::timeout(PATIENCE, stranger.identify()).await.context("identify")?;
    ensure!(answer.is_err(), "an admin of another cluster was answered {answer:?}");
    Ok(())
}

async fn wrong_roles(cluster: &Cluster) -> Result<()> {
    let domain = || admin_request(Request::DomainAdd(DomainRecord { name: "evil.test".to_owned() }));
    for name in ["router1", "node1"] {
        let node = node(cluster, name)?;
        let answer = answered(async || node.administer(domain()).await).await;
        ensure!(answer == Err(MailError::Denied), "{name} was answered {answer:?}");
    }
    let admin = node(cluster, "admin")?;
    let answer = answered(async || admin.register_node(RegisterNodeRequest::default()).await).await;
    ensure!(answer == Err(MailError::Denied), "an admin that registers a node was answered {answer:?}");
    let status = MailboxNameRequest { shard: 0, account: 1, name: "INBOX".to_owned(), ..MailboxNameRequest::default() };
    let answer = answered(async || admin.status(status.clone()).await).await;
    ensure!(answer == Err(MailError::Denied), "an admin that reads mail was answered {answer:?}");
    Ok(())
}

async fn nonsense(cluster: &Cluster) -> Result<()> {
    let (id, name) = (7, "node1".to_owned());
    let foreign = RegisterNodeRequest { id, name, cluster_id: "f".repeat(32), ..RegisterNodeRequest::default() };
    let node1 = node(cluster, "node1")?;
    let answer = answered(async || node1.register_node(foreign.clone()).await).await;
    ensure!(
        matches!(&answer, Err(MailError::CannotDo(reason)) if reason.contains("another cluster")),
        "a node of another cluster was answered {answer:?}"
    );
    let other = RegisterNodeRequest { name: "node9".to_owned(), ..foreign };
    let answer = answered(async || node1.register_node(other.clone()).await).await;
    ensure!(
        matches!(&answer, Err(MailError::CannotDo(reason)) if reason.contains("\"node9\"") && reason.contains("\"node1\"")),
        "a node under another one's certificate was answered {answer:?}"
    );
    let admin = node(cluster, "admin")?;
    let long = "a".repeat(1 << 20) + "@example.test";
    for name in ["../x", "a\0b@example.test", "@example.test", "a@", long.as_str()] {
        let account = NewAccount { name: name.to_owned(), password_hash: "x".to_owned() };
        let request = Request::AccountsAdd(NewAccounts { accounts: vec![account] });
        let request = admin_request(request);
        let answer = answered(async || admin.administer(request.clone()).await).await;
        ensure!(matches!(answer, Err(MailError::Invalid(_))), "{}: {answer:?}", &name[..name.len().min(40)]);
    }
    let domain = DomainRecord { name: "d".repeat(proto::GRPC_MESSAGE_OCTETS_MAX + 1) };
    let answer = admin.administer(admin_request(Request::DomainAdd(domain))).await;
    ensure!(answer.is_err(), "a message over the limit was taken");
    let answer = answered(async || admin.administer(AdminRequest::default()).await).await;
    ensure!(matches!(answer, Err(MailError::Invalid(_))), "{answer:?}");
    let domain = Request::DomainAdd(DomainRecord { name: "new.test".to_owned() });
    let short_id = AdminRequest { request_id: vec![1; 15].into(), ..admin_request(domain) };
    let answer = answered(async || admin.administer(short_id.clone()).await).await;
    ensure!(matches!(answer, Err(MailError::Invalid(_))), "{answer:?}");
    Ok(())
}

fn admin_request(request: Request) -> AdminRequest {
    AdminRequest { request: Some(request), ..AdminRequest::default() }
}

/// HTTP/1, and bytes that are nothing: closed, soon.
fn garbage(cluster: &Cluster) -> Result<()> {
    let junk = [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff],
        &[7; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for (number, bytes) in junk.into_iter().enumerate() {
        let mut stream = TcpStream::connect(cluster.grpc(0))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(bytes)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            // A TLS alert may come first.
            Ok(_) => ensure!(answer.len() < 1024, "{number}: {} octets came back", answer.len()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => bail!("{number}: {error}"),
        }
    }
    Ok(())
}
