//! Where the tests' processes listen.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

/// Where the ports of the tests' processes are. Beyond are those of `local_cluster`, from 21,000 on.
const PORT_FIRST: u32 = 12_000;
/// Of each lane: `deploy/test` runs several test programs at a time, and a node that is down for a moment must find its own
/// ports free.
const PORTS: u32 = 3_000;
const LANES: u32 = 3;

/// Ports that were free a moment ago, below those that the kernel gives to outgoing connections, which would take them
/// before the process that they are for.
pub(crate) fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let lane = std::env::var("MAILRING_LANE").ok().and_then(|lane| lane.parse().ok()).unwrap_or(0);
    let (lane_first, first) = (PORT_FIRST + lane % LANES * PORTS, std::process::id().wrapping_mul(101));
    let mut free = Vec::new();
    for _ in 0..PORTS {
        if free.len() == count {
            break;
        }
        let port = lane_first + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            free.push(address);
        }
    }
    if free.len() < count {
        bail!("no {count} free ports from {lane_first} on");
    }
    Ok(free)
}
