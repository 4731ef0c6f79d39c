//! A connection of the cluster that knows whom it is with.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::listen::Peer;
use crate::refusals;

/// A connection that was accepted; boxed, since it is moved more than once.
pub type PeerStream = Known<Box<TlsStream<TcpStream>>, Peer>;

pub struct Known<S, P> {
    pub(crate) stream: S,
    pub(crate) peer: P,
}

/// Whom a connection is with.
pub trait Hears {
    /// A read has failed. A peer may refuse the certificate after the handshake, as TLS 1.3 has it (RFC 8446 §4.4.2.4).
    fn failed(&self, error: &io::Error);
}

/// The address that was called.
impl Hears for String {
    fn failed(&self, error: &io::Error) {
        refusals::tell(self, error);
    }
}

/// It has taken the certificate before it was accepted.
impl Hears for Peer {
    fn failed(&self, _: &io::Error) {}
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin, P: Hears + Unpin> AsyncRead for Known<S, P> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            self.peer.failed(error);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, P: Unpin> AsyncWrite for Known<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
