//! The cluster's gRPC listener: accepts TCP, does the TLS handshake off the accept loop, and hands connections with
//! their peer's role to tonic.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use rustls::ServerConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use crate::refusals;
use crate::role::{PeerRole, name_of};
use crate::socket;
use crate::stream::PeerStream;
use crate::tls::ClusterTls;

/// Handshakes under way at once: a flood of half-open connections costs no more than this.
const HANDSHAKES_MAX: usize = 256;
/// A peer of this cluster needs milliseconds.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Connections whose peers showed a certificate of the cluster's CA with a role in it.
pub fn accept_peers(listener: TcpListener, tls: &ClusterTls) -> impl Stream<Item = io::Result<PeerStream>> + use<> {
    accept_peers_while(listener, tls, |_| true)
}

/// The same; a connection for which there is no room is let go at once.
pub fn accept_peers_while<F: Fn(&TcpStream) -> bool + Send + 'static>(
    listener: TcpListener,
    tls: &ClusterTls,
    has_room: F,
) -> impl Stream<Item = io::Result<PeerStream>> + use<F> {
    let acceptor = TlsAcceptor::from(tls.server.clone());
    let (sender, receiver) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(accept_loop(listener, acceptor, sender, has_room));
    ReceiverStream::new(receiver)
}

async fn accept_loop(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<PeerStream>>,
    has_room: impl Fn(&TcpStream) -> bool,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut turned_away = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: give others the time to close theirs.
                warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let has_room = has_room(&stream);
        if !has_room && !turned_away {
            warn!(%address, "no room for another connection, peers are turned away");
        }
        turned_away = !has_room;
        if !has_room {
            continue;
        }
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            match handshake(acceptor, stream).await {
                Ok(stream) => drop(sender.send(Ok(stream)).await),
                Err(error) => {
                    debug!(%address, %error, "peer refused");
                    refusals::tell(&address.ip().to_string(), &error);
                }
            }
            drop(permit);
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<PeerStream> {
    socket::prepare(&stream)?;
    let address = stream.peer_addr()?;
    let limit = |connection: &mut ServerConnection| connection.set_buffer_limit(Some(socket::TLS_BUFFER_OCTETS));
    let stream = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept_with(stream, limit)).await??;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let role = certificates.first().and_then(PeerRole::of_certificate).ok_or_else(refusals::no_role)?;
    let name = certificates.first().and_then(name_of).map(Arc::from);
    Ok(PeerStream { stream: Box::new(stream), peer: Peer { role, name, address } })
}

/// What a request's extensions tell of its connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub role: PeerRole,
    /// Whom its certificate is of.
    pub name: Option<Arc<str>>,
    pub address: SocketAddr,
}
