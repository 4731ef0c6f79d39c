//! A router under test, and transcripts: `C:` and `S:` lines are the first client's, `C2:` and `S2:` the second's.
//! `<..>` in an S line stands for anything.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::node::MemoryNode;
use crate::settings::{Limits, ListenerSettings, ListenerTls, Protocol, Role, TlsFiles};
use crate::{Cluster, Router, RouterSettings};

/// Longer than anything that works takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// In place of a line, where there are no more.
const END: &str = "(end of stream)";

pub struct Server {
    pub node: MemoryNode,
    pub router: Router,
    _dir: tempfile::TempDir,
}

/// Passwords in clear allowed; STARTTLS, passwords only with it.
pub const OPEN: usize = 0;
pub const STARTTLS: usize = 1;

impl Server {
    pub async fn start() -> Server {
        Server::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut RouterSettings)) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { certificate: dir.path().join("certificate.pem"), key: dir.path().join("key.pem") };
        let made = rcgen::generate_simple_self_signed(vec!["imap.example.test".to_owned()]).unwrap();
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let listener = |tls, allow_plaintext_login| ListenerSettings {
            protocol: Protocol::Imap,
            address: ([127, 0, 0, 1], 0).into(),
            role: Role::Mx,
            tls,
            allow_plaintext_login,
        };
        let mut settings = RouterSettings {
            name: "router1".to_owned(),
            hostname: "imap.example.test".to_owned(),
            nodes: Vec::new(),
            cluster_tls: None,
            tls: Some(files),
            listeners: vec![listener(ListenerTls::None, true), listener(ListenerTls::StartTls, false)],
            limits: Limits::default(),
        };
        change(&mut settings);
        let node = MemoryNode::new();
        let router = Router::start(settings, Cluster::in_process(Arc::new(node.clone()))).await.unwrap();
        timeout(PATIENCE, router.cluster().wait_ready()).await.unwrap();
        Server { node, router, _dir: dir }
    }

    pub async fn connect(&self, listener: usize) -> Client {
        let stream = TcpStream::connect(self.router.local_addresses()[listener]).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, received: Vec::new() }
    }

    /// Greeted and logged in.
    pub async fn client(&self) -> Client {
        let mut client = self.connect(OPEN).await;
        client.line().await;
        client.send("l LOGIN alice@example.test mailring-demo\r\n").await;
        assert!(client.line().await.starts_with("l OK "));
        client
    }

    /// Plays a transcript with clients that are logged in, as many as it names.
    pub async fn play(&self, transcript: &str) {
        let mut clients = vec![self.client().await];
        if transcript.contains("C2:") {
            clients.push(self.client().await);
        }
        play(&mut clients, transcript).await;
    }
}

pub async fn play(clients: &mut [Client], transcript: &str) {
    for line in transcript.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
        let (who, text) = line.split_once(':').unwrap();
        let text = text.strip_prefix(' ').unwrap_or(text);
        let client = &mut clients[usize::from(who.ends_with('2'))];
        if who.starts_with('C') {
            client.send(format!("{text}\r\n")).await;
        } else {
            let got = client.line().await;
            assert!(fits(&got, text), "expected {line:?}\n     got {got:?}\nin {transcript}");
        }
    }
}

fn fits(got: &str, expected: &str) -> bool {
    let mut rest = got;
    let mut parts = expected.split("<..>");
    match parts.next().and_then(|first| rest.strip_prefix(first)) {
        Some(after) => rest = after,
        None => return false,
    }
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

pub struct Client {
    pub stream: TcpStream,
    pub received: Vec<u8>,
}

impl Client {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.unwrap().unwrap();
    }

    /// Without CRLF; [`END`] at the stream's end.
    pub async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..at + 2).collect();
                return line[..at].iter().map(|octet| char::from(*octet)).collect();
            }
            let mut buffer = vec![0; 64 * 1024];
            match timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("no answer") {
                Ok(0) | Err(_) => return END.to_owned(),
                Ok(octets) => self.received.extend_from_slice(&buffer[..octets]),
            }
        }
    }

    /// Sends a command; all lines up to and with the tagged one.
    pub async fn command(&mut self, command: &str) -> Vec<String> {
        self.send(format!("x {command}\r\n")).await;
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            let is_last = line.starts_with("x ") || line == END;
            lines.push(line);
            if is_last {
                return lines;
            }
        }
    }

    /// Everything up to the stream's end.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.line().await {
                line if line == END => return lines,
                line => lines.push(line),
            }
        }
    }
}
