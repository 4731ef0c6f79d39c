//! A client's connection: bytes in and out, in clear or over TLS, within limits of time. Knows no protocol, and holds
//! no buffers while the client is silent.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::send_queue;
use crate::stop::Stop;

/// Read at once: a TLS record's worth.
const READ_OCTETS: usize = 16 * 1024;
/// Replies that are gathered before they are written.
const OUTPUT_OCTETS_WANTED: usize = 64 * 1024;
/// A client's handshake takes a few round trips.
const HANDSHAKE_MAX: Duration = Duration::from_secs(30);
/// After our last word the client's rest is read and dropped for so long, and so much of it: to close at once would
/// reset the connection and take our last word with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// A client that closed before our last word came to it answers it with a reset: a round trip, and retransmissions.
const RESET_WAIT: Duration = Duration::from_secs(2);

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Amid an upgrade that failed.
    Closed,
}

/// What waiting for a client came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// There is more in [`Connection::input`].
    Data,
    /// The client has closed, or the connection is broken.
    Closed,
    /// Nothing came for as long as was given.
    Idle,
    /// The router is to stop.
    Stopping,
}

pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
    input: BytesMut,
    output: BytesMut,
    write_max: Duration,
    stop: Stop,
    /// A read has failed: the connection was reset, or the like. An end in peace is not that.
    broken: bool,
}

impl Connection {
    pub fn new(stream: TcpStream, peer: SocketAddr, write_max: Duration, stop: Stop) -> Connection {
        Connection {
            stream: Stream::Plain(stream),
            peer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            write_max,
            stop,
            broken: false,
        }
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// What the client sent and nobody has taken yet.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Waits for bytes. What is gathered for writing is not written: see [`Connection::flush`]. Cancel safe.
    pub async fn read(&mut self, wait: Duration) -> Incoming {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            read = self.read_on(wait) => read,
            () = stop.stopping() => Incoming::Stopping,
        }
    }

    /// [`Connection::read`] that goes on while the router stops: for what is to be finished.
    pub async fn read_on(&mut self, wait: Duration) -> Incoming {
        self.give_back();
        match timeout(wait, self.fill()).await {
            Ok(Ok(true)) => Incoming::Data,
            Ok(Ok(false)) => Incoming::Closed,
            Ok(Err(_)) => {
                self.broken = true;
                Incoming::Closed
            }
            Err(_) => Incoming::Idle,
        }
    }

    /// Whether a client that has closed, or has been told all, has what was written, as far as TCP tells. One that
    /// closed before answers with a reset; one whose program closes while it lies unread sends a reset in place of
    /// the end (RFC 1122 §4.2.2.13). Our side stays open meanwhile: after both have ended no reset would be noticed,
    /// and with TLS our own farewell, which clients do not wait for, would draw one.
    pub async fn was_heard(&mut self) -> bool {
        if self.broken || self.flush().await.is_err() {
            return false;
        }
        let until = Instant::now() + LINGER;
        let mut dropped = 0;
        loop {
            self.input = BytesMut::new();
            match timeout_at(until, self.fill()).await {
                Ok(Ok(true)) if dropped < LINGER_OCTETS_MAX => dropped += self.input.len(),
                Ok(Ok(false)) => break,
                Ok(Err(_)) => return false,
                // It stays so long after our last word.
                Ok(Ok(true)) | Err(_) => return self.is_acknowledged(),
            }
        }
        let Some(tcp) = self.tcp() else { return false };
        let errs = timeout(RESET_WAIT, tcp.ready(Interest::ERROR)).await.is_ok();
        !errs && self.is_acknowledged()
    }

    /// Whether the client's TCP has acknowledged all that was written so far. Where the kernel does not say so, it has not.
    pub fn is_acknowledged(&self) -> bool {
        let Some(tcp) = self.tcp().filter(|tcp| matches!(tcp.take_error(), Ok(None))) else { return false };
        let (Ok(local), Ok(peer)) = (tcp.local_addr(), tcp.peer_addr()) else { return false };
        match send_queue::unacknowledged(local, peer) {
            Ok(octets) => octets == 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                debug!(%error, "the kernel does not say what a client has acknowledged");
                false
            }
        }
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(stream) => Some(stream),
            Stream::Tls(stream) => Some(stream.get_ref().0),
            Stream::Closed => None,
        }
    }

    /// Bytes came before the client was spoken to. Waits for them no longer than `wait`.
    pub async fn is_early_talker(&mut self, wait: Duration) -> bool {
        let Stream::Plain(stream) = &self.stream else { return false };
        // The end of the stream is readable too, and is no talk.
        matches!(timeout(wait, stream.peek(&mut [0])).await, Ok(Ok(1)))
    }

    /// Gathers bytes for the client.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// The buffer behind [`Connection::queue`], for encoders.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Writes what is gathered if it is much.
    pub async fn flush_if_full(&mut self) -> io::Result<()> {
        if self.output.len() >= OUTPUT_OCTETS_WANTED { self.flush().await } else { Ok(()) }
    }

    /// Writes what is gathered. `TimedOut` when the client takes nothing for too long.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let mut output = std::mem::take(&mut self.output).freeze();
        let write_max = self.write_max;
        while !output.is_empty() {
            self.write_some(&mut output, write_max).await?;
        }
        timeout(write_max, poll_fn(|cx| self.poll_flush(cx))).await?
    }

    async fn write_some(&mut self, output: &mut Bytes, write_max: Duration) -> io::Result<()> {
        let written = timeout(write_max, poll_fn(|cx| self.poll_write(cx, output))).await??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        drop(output.split_to(written.min(output.len())));
        Ok(())
    }

    /// The TLS handshake, from the first octet or after STARTTLS. What came in clear is dropped (RFC 3207 §4.2).
    pub async fn start_tls(&mut self, acceptor: &TlsAcceptor) -> io::Result<()> {
        self.input = BytesMut::new();
        match std::mem::replace(&mut self.stream, Stream::Closed) {
            Stream::Plain(stream) => {
                let tls = timeout(HANDSHAKE_MAX, Box::pin(acceptor.accept(stream))).await??;
                self.stream = Stream::Tls(Box::new(tls));
                Ok(())
            }
            Stream::Tls(_) | Stream::Closed => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Writes what is gathered, says that no more comes, and waits a little for the client to close.
    pub async fn close(mut self) {
        self.input = BytesMut::new();
        if self.flush().await.is_err() {
            return;
        }
        let parted = async {
            match &mut self.stream {
                Stream::Plain(stream) => stream.shutdown().await?,
                Stream::Tls(stream) => stream.shutdown().await?,
                Stream::Closed => return Ok(()),
            }
            let mut dropped = 0;
            while dropped < LINGER_OCTETS_MAX && self.fill().await? {
                dropped += self.input.len();
                self.input.clear();
            }
            io::Result::Ok(())
        };
        // Whatever goes wrong now, the connection is over.
        let _ = timeout(LINGER, parted).await;
    }

    /// False at the stream's end, also where TLS was not ended first.
    async fn fill(&mut self) -> io::Result<bool> {
        match poll_fn(|cx| self.poll_fill(cx)).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            filled => filled,
        }
    }

    /// Reads by way of the stack: a buffer on the heap exists only once there is something to put into it.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut room = [MaybeUninit::uninit(); READ_OCTETS];
        let mut buffer = ReadBuf::uninit(&mut room);
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Stream::Closed => Poll::Ready(Ok(())),
        };
        read.map_ok(|()| {
            self.input.extend_from_slice(buffer.filled());
            !buffer.filled().is_empty()
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Closed => Poll::Ready(Ok(())),
        }
    }

    /// Buffers that hold nothing go back to the allocator while the client is waited for.
    fn give_back(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
    }
}
