//! A mail client as a socket and a script.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::router::PATIENCE;

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

pub struct Client {
    wire: Option<Box<dyn Wire>>,
    received: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { wire: Some(Box::new(stream)), received: Vec::new() }
    }

    /// Its end is a reset.
    pub async fn connect_rude(address: SocketAddr) -> Client {
        let client = TcpStream::connect(address).await.unwrap();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        Client { wire: Some(Box::new(client)), received: Vec::new() }
    }

    /// Any certificate will do.
    pub async fn start_tls(&mut self) {
        assert!(self.received.is_empty());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        let wire = self.wire.take().unwrap();
        let name = ServerName::try_from("mx.example.test").unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, wire);
        self.wire = Some(Box::new(timeout(PATIENCE, tls).await.unwrap().unwrap()));
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.unwrap();
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let wire = self.wire.as_mut().unwrap();
        wire.write_all(bytes.as_ref()).await?;
        wire.flush().await
    }

    /// Says that no more comes; what comes can still be read.
    pub async fn shut_down(&mut self) {
        self.wire.as_mut().unwrap().shutdown().await.unwrap();
    }

    /// The next line, without CRLF; empty at the stream's end.
    pub async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line = self.received.drain(..at + 2).collect::<Vec<u8>>();
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            if !self.receive().await {
                return String::new();
            }
        }
    }

    /// The next SMTP reply, its lines joined by `|`.
    pub async fn reply(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            let more = line.as_bytes().get(3) == Some(&b'-');
            lines.push(line);
            if !more {
                return lines.join("|");
            }
        }
    }

    /// The body of a multi-line POP3 response, dots taken away, without the terminator.
    pub async fn multi_line(&mut self) -> String {
        let mut out = String::new();
        loop {
            let line = self.line().await;
            if line == "." {
                return out;
            }
            out.push_str(line.strip_prefix('.').unwrap_or(&line));
            out.push_str("\r\n");
        }
    }

    pub async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        self.reply().await
    }

    /// Asks, and expects a reply that begins so.
    pub async fn expect(&mut self, line: &str, start: &str) {
        let reply = self.ask(line).await;
        assert!(reply.starts_with(start), "{line}: {reply:?} where {start:?} was expected");
    }

    /// Everything up to the stream's end.
    pub async fn rest(&mut self) -> String {
        while self.receive().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.received)).into_owned()
    }

    /// False at the end, also where the connection was reset.
    async fn receive(&mut self) -> bool {
        let mut room = vec![0; 64 * 1024];
        let read = timeout(PATIENCE, self.wire.as_mut().unwrap().read(&mut room)).await.expect("the router is silent");
        let octets = read.unwrap_or(0);
        self.received.extend_from_slice(&room[..octets]);
        octets > 0
    }

    /// EHLO to RCPT, each accepted.
    pub async fn envelope(&mut self, from: &str, recipients: &[&str]) {
        self.expect(&format!("MAIL FROM:<{from}>"), "250 ").await;
        for recipient in recipients {
            self.expect(&format!("RCPT TO:<{recipient}>"), "250 ").await;
        }
    }

    /// A mail transaction; returns the reply to the message.
    pub async fn mail(&mut self, from: &str, recipients: &[&str], message: &str) -> String {
        self.envelope(from, recipients).await;
        self.expect("DATA", "354 ").await;
        self.send(format!("{message}.\r\n")).await;
        self.reply().await
    }

    pub async fn login_pop3(&mut self, user: &str, password: &str) -> String {
        self.expect(&format!("USER {user}"), "+OK").await;
        self.ask(&format!("PASS {password}")).await
    }
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
