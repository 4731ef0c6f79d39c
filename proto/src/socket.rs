//! What both ends of a connection between processes ask of its socket.

use std::io;

use socket2::SockRef;
use tokio::net::TcpStream;

/// What waits in the kernel before it is sent. Whatever else is to be said, a ping's answer or another stream's frame,
/// waits behind it: an eighth of a second at 1 Mbit/s. What is under way to the peer comes on top and needs no limit.
const UNSENT_OCTETS: u32 = 16 * 1024;
/// The same for what is encrypted and not yet with the kernel: a record of TLS (RFC 8446 §5.1).
pub(crate) const TLS_BUFFER_OCTETS: usize = 16 * 1024;

pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_OCTETS)
}
