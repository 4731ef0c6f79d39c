//! Where the tests' processes listen.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

/// Where the ports of the tests' processes are.
const PORT_FIRST: u32 = 12_000;
const PORTS: u32 = 18_000;

/// Ports that were free a moment ago, below those that the kernel gives to outgoing connections, which would take them
/// before the process that they are for.
pub(crate) fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() * 101;
    let mut free = Vec::new();
    for _ in 0..PORTS {
        if free.len() == count {
            break;
        }
        let port = PORT_FIRST + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            free.push(address);
        }
    }
    if free.len() < count {
        bail!("no {count} free ports from {PORT_FIRST} on");
    }
    Ok(free)
}
