//! A client that sends bytes and reads lines, over TCP or TLS, with a deadline on everything.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

/// Generous: the machine may be busy with something else.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest line that a test may read.
const LINE_OCTETS_MAX: u64 = 64 * 1024 * 1024;

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

pub struct LineClient {
    reader: BufReader<Stream>,
}

impl LineClient {
    pub fn connect(address: SocketAddr) -> Result<LineClient> {
        Ok(LineClient { reader: BufReader::new(Stream::Plain(tcp(address)?)) })
    }

    pub fn connect_tls(address: SocketAddr, ca_pem: &[u8]) -> Result<LineClient> {
        LineClient::connect(address)?.start_tls(ca_pem)
    }

    /// The connection itself, once everything that came has been read.
    pub fn into_tcp(self) -> Result<TcpStream> {
        if !self.reader.buffer().is_empty() {
            bail!("something came that was not read");
        }
        match self.reader.into_inner() {
            Stream::Plain(stream) => Ok(stream),
            Stream::Tls(_) => bail!("the connection has TLS"),
        }
    }

    /// The handshake, on a connection whose plaintext has all been read.
    pub fn start_tls(self, ca_pem: &[u8]) -> Result<LineClient> {
        let Stream::Plain(stream) = self.reader.into_inner() else { bail!("already TLS") };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).context("TLS handshake")?;
        }
        Ok(LineClient { reader: BufReader::new(Stream::Tls(Box::new(stream))) })
    }

    pub fn set_patience(&mut self, patience: Duration) -> Result<()> {
        self.tcp().set_read_timeout(Some(patience))?;
        Ok(())
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.reader.get_mut() {
            Stream::Plain(stream) => stream.write_all(bytes)?,
            Stream::Tls(stream) => {
                stream.write_all(bytes)?;
                stream.flush()?;
            }
        }
        Ok(())
    }

    /// A line without its CRLF; an error at the end of the connection.
    pub fn line(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.line_bytes()?).into_owned())
    }

    pub fn line_bytes(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut self.reader).take(LINE_OCTETS_MAX).read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(text) => Ok(text.to_vec()),
            None if line.is_empty() => bail!("connection closed"),
            None => bail!("line does not end in CRLF: {:?}", String::from_utf8_lossy(&line)),
        }
    }

    pub fn exact(&mut self, octets: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; octets];
        self.reader.read_exact(&mut buffer)?;
        Ok(buffer)
    }

    /// All that comes until the other end closes.
    pub fn rest(&mut self) -> Result<String> {
        let mut rest = Vec::new();
        (&mut self.reader).take(LINE_OCTETS_MAX).read_to_end(&mut rest)?;
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }

    /// Goes away without a word: the other end sees a reset.
    pub fn reset(self) -> Result<()> {
        socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// Reads until the other end closes; true if it did so within the patience.
    pub fn closes(&mut self) -> bool {
        let mut rest = Vec::new();
        match (&mut self.reader).take(LINE_OCTETS_MAX).read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self.reader.get_ref() {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }
}

/// No answer came in time, which a paused or partitioned cluster may well give.
pub fn is_timeout(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

fn tcp(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
