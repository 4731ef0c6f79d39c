//! Accepts connections: sockets, limits, and the task that each connection runs in.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::{Instrument, debug, info_span, warn};

use crate::connection::Connection;
use crate::context::Context;
use crate::session;
use crate::settings::{ListenerSettings, ListenerTls, Protocol};
use crate::stop::Stop;

/// Connections that wait for us to accept them: a burst of senders after an outage.
const BACKLOG: i32 = 4_096;
/// Out of descriptors or memory: the pause before accepting again, doubling.
const ACCEPT_PAUSE_FIRST: Duration = Duration::from_millis(20);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart need not wait for the connections of the process before.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Until the router stops.
pub async fn accept(listener: TcpListener, settings: Arc<ListenerSettings>, context: Arc<Context>, mut stop: Stop) {
    let mut wait = ACCEPT_PAUSE_FIRST;
    let mut spare = Spare::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.stopping() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                wait = ACCEPT_PAUSE_FIRST;
                spare.refill();
                admit(stream, peer, &settings, &context, &stop);
            }
            // The client has gone while it waited.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) if spare.turns_away(&error, &listener, &settings, &context) => {}
            Err(error) => {
                warn!(%error, protocol = settings.protocol.as_str(), "accept failed");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(ACCEPT_PAUSE_MAX);
            }
        }
    }
}

/// A descriptor that is kept for the time when there are no others: with it a client is accepted, told so, and let go.
struct Spare {
    file: Option<File>,
    /// That there are none left was logged.
    told: bool,
}

impl Spare {
    fn new() -> Spare {
        Spare { file: File::open("/dev/null").ok(), told: false }
    }

    /// There are descriptors again.
    fn refill(&mut self) {
        if self.file.is_none() {
            self.file = File::open("/dev/null").ok();
        }
        self.told = false;
    }

    /// False if this is not what is wrong, or if there was no descriptor to do it with.
    fn turns_away(
        &mut self,
        error: &io::Error,
        listener: &TcpListener,
        settings: &ListenerSettings,
        context: &Context,
    ) -> bool {
        let none_left = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
        if !none_left.iter().any(|none| error.raw_os_error() == Some(none.raw_os_error())) {
            return false;
        }
        if !std::mem::replace(&mut self.told, true) {
            warn!(%error, protocol = settings.protocol.as_str(), "clients are turned away");
        }
        if self.file.take().is_none() {
            self.file = File::open("/dev/null").ok();
            return false;
        }
        // Now or not at all: the descriptor is missed by nobody while it is away.
        let accepted = listener.accept().now_or_never();
        let done = match accepted {
            Some(Ok((stream, _))) => {
                context.metrics.refused(settings.protocol);
                refuse(&stream, settings, &context.settings.hostname);
                true
            }
            Some(Err(_)) => false,
            // Nobody waits: the kernel asks for a descriptor before it looks.
            None => true,
        };
        self.file = File::open("/dev/null").ok();
        done
    }
}

fn admit(stream: TcpStream, peer: SocketAddr, settings: &Arc<ListenerSettings>, context: &Arc<Context>, stop: &Stop) {
    let limits = &context.settings.limits;
    let slot = context.slots.take(peer.ip(), limits.connections_max, limits.connections_per_address_max);
    let Some(slot) = slot else {
        context.metrics.refused(settings.protocol);
        debug!(protocol = settings.protocol.as_str(), "connection over the limit");
        refuse(&stream, settings, &context.settings.hostname);
        return;
    };
    // Replies are written whole; waiting for more only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "connection gone");
        return;
    }
    let connection = Connection::new(stream, peer, limits.write(), stop.clone());
    let open = context.metrics.connection(settings.protocol);
    let (settings, context, mut stop) = (settings.clone(), context.clone(), stop.clone());
    let span = info_span!("connection", protocol = settings.protocol.as_str(), id = context.connection_id());
    let session = async move {
        debug!(%peer, "connection opened");
        tokio::select! {
            () = session::run(connection, settings, context) => {}
            () = stop.killed() => {}
        }
        debug!("connection closed");
        drop((slot, open, stop));
    };
    tokio::spawn(session.instrument(span));
}

/// The protocol's words for "too many", as far as the socket takes them at once. Under implicit TLS there are none.
fn refuse(stream: &TcpStream, settings: &ListenerSettings, hostname: &str) {
    if settings.tls == ListenerTls::Implicit {
        return;
    }
    let words = match settings.protocol {
        Protocol::Smtp => format!("421 {hostname} has too many connections, try again later\r\n"),
        Protocol::Pop3 => "-ERR [SYS/TEMP] too many connections, try again later\r\n".to_owned(),
        Protocol::Imap => "* BYE [UNAVAILABLE] too many connections, try again later\r\n".to_owned(),
    };
    let _ = stream.try_write(words.as_bytes());
}

/// Counts connections, in all and by address.
#[derive(Default)]
pub struct Slots {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; given back when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    address: Option<IpAddr>,
}

impl Slots {
    /// A limit of 0 is none.
    pub fn take(self: &Arc<Slots>, address: IpAddr, max: usize, per_address_max: usize) -> Option<Slot> {
        let mut counts = self.counts.lock();
        if max > 0 && counts.all >= max {
            return None;
        }
        // Addresses are counted only where they are limited.
        let address = (per_address_max > 0).then(|| network(address));
        if let Some(address) = address {
            let count = counts.by_address.entry(address).or_insert(0);
            if *count >= per_address_max {
                return None;
            }
            *count += 1;
        }
        counts.all += 1;
        Some(Slot { slots: self.clone(), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock();
        counts.all -= 1;
        let Some(address) = self.address else { return };
        if let Some(count) = counts.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

/// A site has a /64 of IPv6, as it has one address of IPv4.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::Slots;

    #[test]
    fn connections_are_counted_in_all_and_by_network() {
        let slots = Arc::new(Slots::default());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = slots.take(address("2001:db8::1"), 3, 1).unwrap();
        assert!(slots.take(address("2001:db8::2"), 3, 1).is_none());
        let _second = slots.take(address("2001:db8:0:1::1"), 3, 1).unwrap();
        let _third = slots.take(address("192.0.2.1"), 3, 1).unwrap();
        assert!(slots.take(address("192.0.2.2"), 3, 1).is_none());
        drop(first);
        assert!(slots.take(address("::ffff:192.0.2.1"), 3, 1).is_none());
        assert!(slots.take(address("2001:db8::2"), 3, 1).is_some());
        assert!(slots.take(address("192.0.2.1"), 0, 0).is_some());
    }
}
