//! What a peer's TCP has not acknowledged of what was written to it, asked of the kernel by netlink (sock_diag(7)):
//! a few microseconds, and never a wait.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr as Address, protocols::NETLINK_SOCK_DIAG};
use parking_lot::Mutex;

/// One answer: its header, one socket and the few attributes that come unasked.
const ANSWER_OCTETS_MAX: usize = 4096;
/// sock_diag(7): a socket is told by its addresses alone.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Made at first use, and again after a failure, so that no late answer is taken for another's.
static KERNEL: Mutex<Option<Socket>> = Mutex::new(None);

/// Octets written to the connection and not acknowledged by the peer's TCP. `NotFound` for a connection that is gone.
pub fn unacknowledged(local: SocketAddr, peer: SocketAddr) -> io::Result<u32> {
    let mut kernel = KERNEL.lock();
    let socket = match kernel.take() {
        Some(socket) => socket,
        None => connect()?,
    };
    let octets = ask(&socket, &request(local, peer))?;
    *kernel = Some(socket);
    octets.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&Address::new(0, 0))?;
    // The kernel answers within the call that asks.
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let (family, interface_id) = match local {
        SocketAddr::V4(_) => (AF_INET, 0),
        SocketAddr::V6(local) => (AF_INET6, local.scope_id()),
    };
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: peer.port(),
        source_address: local.ip(),
        destination_address: peer.ip(),
        interface_id,
        cookie: NO_COOKIE,
    };
    let (protocol, extensions, states) = (IPPROTO_TCP, ExtensionFlags::empty(), StateFlags::all());
    let request = SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states, socket_id });
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}

/// `None` where there is no such connection.
fn ask(kernel: &Socket, request: &[u8]) -> io::Result<Option<u32>> {
    kernel.send(request, 0)?;
    let mut answer = [0; ANSWER_OCTETS_MAX];
    let length = kernel.recv(&mut &mut answer[..], 0)?;
    let answer = answer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(Some(response.header.send_queue)),
        NetlinkPayload::Error(error) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(None),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

    use super::unacknowledged;

    /// More than both ends' buffers take.
    const MUCH: usize = 64 << 20;

    fn pair(listen: SocketAddr) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(listen).ok()?;
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Some((listener.accept().unwrap().0, client))
    }

    fn octets(stream: &TcpStream) -> std::io::Result<u32> {
        unacknowledged(stream.local_addr().unwrap(), stream.peer_addr().unwrap())
    }

    #[test]
    fn what_a_peer_has_not_acknowledged_is_told_until_it_has() {
        let listens = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
        for listen in listens {
            // There may be no IPv6.
            let Some((mut server, mut client)) = pair(listen) else { continue };
            server.write_all(b"250 stored\r\n").unwrap();
            client.read_exact(&mut [0; 12]).unwrap();
            client.write_all(b"NOOP\r\n").unwrap();
            server.read_exact(&mut [0; 6]).unwrap();
            assert_eq!(octets(&server).unwrap(), 0, "{listen}");

            server.set_nonblocking(true).unwrap();
            let much = vec![0; MUCH];
            let mut written = server.write(&much).unwrap();
            while let Ok(more) = server.write(&much) {
                written += more;
            }
            assert!(octets(&server).unwrap() > 0, "{listen}: {written} octets were written, and nobody read");

            let addresses = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            drop((server, client));
            let gone = unacknowledged(addresses.1, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
            assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}
