//! A TCP proxy before every node of a cluster, so that what passes between two processes can be cut, swallowed, delayed
//! or slowed, in one direction alone too. Who is calling is told by the kernel: the process that owns the other end of
//! the connection.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Octets under way in one direction of one connection; a slow link then pushes back, as a real one does.
const UNDER_WAY_MAX: usize = 1024 * 1024;
const PIECE_OCTETS: usize = 16 * 1024;
/// How soon a change of the rules is noticed by a direction that waits.
const LOOK: Duration = Duration::from_millis(20);
/// A direction whose sink takes nothing does not look: nothing passes there anyway.
const SEEN_MAX: Duration = Duration::from_secs(2);

/// What happens to bytes from one process to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Link {
    #[default]
    Open,
    /// Connections are reset, and new ones too.
    Cut,
    /// Bytes vanish, and the connection stays: a cable that was pulled, a firewall that drops.
    Swallow,
    Delay(Duration),
    /// Octets a second.
    Slow(u64),
}

/// By caller and callee; `None` stands for everybody.
type Rules = BTreeMap<(Option<String>, Option<String>), Link>;

#[derive(Default)]
struct Shared {
    rules: Mutex<Rules>,
    /// Names of processes by id.
    processes: Mutex<BTreeMap<u32, String>>,
    /// Of the rules, and which of them each direction of a connection has seen.
    generation: AtomicU64,
    seen: Mutex<BTreeMap<u64, u64>>,
    next_pump: AtomicU64,
    ended: AtomicBool,
}

/// One a cluster. Dropping it closes every connection.
#[derive(Default)]
pub struct Proxy {
    shared: Arc<Shared>,
    listeners: Vec<(SocketAddr, JoinHandle<()>)>,
}

impl Proxy {
    /// Listens for a process that itself listens at `target`; where others are to call it.
    pub fn before(&mut self, name: &str, listener: TcpListener, target: SocketAddr) -> Result<SocketAddr> {
        let address = listener.local_addr()?;
        let (shared, name) = (self.shared.clone(), name.to_owned());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (shared, name) = (shared.clone(), name.clone());
                std::thread::spawn(move || shared.carry(stream, &name, target));
            }
        });
        self.listeners.push((address, accepting));
        Ok(address)
    }

    /// A process was started: connections that it makes are its own.
    pub fn knows(&self, name: &str, process: u32) {
        lock(&self.shared.processes).insert(process, name.to_owned());
    }

    /// Sets one direction; in force when this returns. The most particular rule counts: both ends named, then the
    /// callee, then the caller.
    pub fn set(&self, from: Option<&str>, to: Option<&str>, link: Link) {
        lock(&self.shared.rules).insert((from.map(str::to_owned), to.map(str::to_owned)), link);
        self.await_seen();
    }

    fn await_seen(&self) {
        let generation = self.shared.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let deadline = Instant::now() + SEEN_MAX;
        while lock(&self.shared.seen).values().any(|seen| *seen < generation) && Instant::now() < deadline {
            std::thread::sleep(LOOK / 4);
        }
    }

    /// Both directions between two processes.
    pub fn between(&self, one: &str, other: &str, link: Link) {
        self.set(Some(one), Some(other), link);
        self.set(Some(other), Some(one), link);
    }

    /// All that a process says and hears.
    pub fn around(&self, name: &str, link: Link) {
        self.set(Some(name), None, link);
        self.set(None, Some(name), link);
    }

    /// Everything flows again.
    pub fn heal(&self) {
        lock(&self.shared.rules).clear();
        self.await_seen();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for (address, accepting) in self.listeners.drain(..) {
            // Wakes the listener.
            drop(TcpStream::connect(address));
            drop(accepting.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    fn link(&self, from: Option<&str>, to: Option<&str>) -> Link {
        let rules = lock(&self.rules);
        let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
        [(from.clone(), to.clone()), (None, to), (from, None), (None, None)]
            .iter()
            .find_map(|key| rules.get(key))
            .copied()
            .unwrap_or_default()
    }

    /// Carries one connection until either end is done with it.
    fn carry(self: Arc<Self>, caller: TcpStream, callee: &str, target: SocketAddr) {
        let ends = caller.peer_addr().ok().zip(caller.local_addr().ok());
        let name = ends.and_then(|(peer, own)| self.caller(peer, own));
        let link = self.link(name.as_deref(), Some(callee));
        if link == Link::Cut {
            return;
        }
        let Ok(node) = TcpStream::connect(target) else { return };
        for stream in [&caller, &node] {
            drop(stream.set_nodelay(true));
            drop(stream.set_read_timeout(Some(LOOK)));
        }
        let (Ok(caller_too), Ok(node_too)) = (caller.try_clone(), node.try_clone()) else { return };
        let back = {
            let (shared, from, to) = (self.clone(), callee.to_owned(), name.clone());
            std::thread::spawn(move || shared.pump(node_too, caller_too, Some(&from), to.as_deref()))
        };
        self.pump(caller, node, name.as_deref(), Some(callee));
        drop(back.join());
    }

    /// One direction. Bytes are written when they have been under way for as long as the link says.
    fn pump(&self, mut source: TcpStream, sink: TcpStream, from: Option<&str>, to: Option<&str>) {
        let road = Road::default();
        let number = self.next_pump.fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| road.unload(&sink));
            let mut piece = vec![0; PIECE_OCTETS];
            let mut free_at = Instant::now();
            loop {
                let generation = self.generation.load(Ordering::SeqCst);
                let link = self.link(from, to);
                lock(&self.seen).insert(number, generation);
                if link == Link::Cut || self.ended.load(Ordering::Relaxed) || road.is_closed() {
                    break;
                }
                if !road.has_room() {
                    std::thread::sleep(LOOK);
                    continue;
                }
                let octets = match source.read(&mut piece) {
                    Ok(0) => break,
                    Ok(octets) => octets,
                    Err(error) if is_pause(&error) => continue,
                    Err(_) => break,
                };
                // The rule may have changed while this waited for bytes.
                let at = match self.link(from, to) {
                    Link::Open => Instant::now(),
                    Link::Cut => break,
                    Link::Swallow => continue,
                    Link::Delay(delay) => Instant::now() + delay,
                    Link::Slow(octets_a_second) => {
                        let takes = Duration::from_secs_f64(octets as f64 / octets_a_second.max(1) as f64);
                        free_at = free_at.max(Instant::now()) + takes;
                        free_at
                    }
                };
                road.load(at, piece[..octets].to_vec());
            }
            road.close();
        });
        lock(&self.seen).remove(&number);
        // Either way out, the other direction ends too.
        drop(source.shutdown(Shutdown::Both));
        drop(sink.shutdown(Shutdown::Both));
    }

    /// The process at the other end of an accepted connection. It may have connected before we were told its id.
    fn caller(&self, peer: SocketAddr, own: SocketAddr) -> Option<String> {
        let inode = socket_inode(peer, own)?;
        let wanted = format!("socket:[{inode}]");
        let processes = lock(&self.processes).clone();
        processes.into_iter().find_map(|(process, name)| {
            let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
            let owns = descriptors
                .flatten()
                .any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|link| link.to_string_lossy() == wanted));
            owns.then_some(name)
        })
    }
}

fn is_pause(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// The inode of the socket from `local` to `remote`, from the kernel's table (proc(5), /proc/net/tcp). A local port
/// alone may be in use towards several remote ones.
fn socket_inode(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let written = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    };
    let (local, remote) = (written(local)?, written(remote)?);
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str());
        is_it.then(|| fields.get(9)?.parse().ok())?
    })
}

/// Bytes under way.
#[derive(Default)]
struct Road {
    state: Mutex<RoadState>,
    changed: Condvar,
}

#[derive(Default)]
struct RoadState {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    octets: usize,
    closed: bool,
}

impl Road {
    fn has_room(&self) -> bool {
        lock(&self.state).octets < UNDER_WAY_MAX
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    fn load(&self, at: Instant, piece: Vec<u8>) {
        let mut state = lock(&self.state);
        state.octets += piece.len();
        state.pieces.push_back((at, piece));
        self.changed.notify_all();
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Writes each piece at its time; what is still under way when the source has ended is delivered first.
    fn unload(&self, mut sink: &TcpStream) {
        loop {
            let piece = {
                let mut state = lock(&self.state);
                loop {
                    match state.pieces.front() {
                        Some((at, _)) => {
                            let wait = at.saturating_duration_since(Instant::now());
                            if wait.is_zero() {
                                break;
                            }
                            state = match self.changed.wait_timeout(state, wait) {
                                Ok((state, _)) => state,
                                Err(_) => return,
                            };
                        }
                        None if state.closed => return,
                        None => {
                            state = match self.changed.wait(state) {
                                Ok(state) => state,
                                Err(_) => return,
                            };
                        }
                    }
                }
                let Some((_, piece)) = state.pieces.pop_front() else { return };
                state.octets -= piece.len();
                piece
            };
            if sink.write_all(&piece).is_err() {
                return self.close();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::{Link, Proxy};

    /// A proxy named `server` before something that echoes; this process is `client`.
    fn echo() -> (Proxy, SocketAddr) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut { stream }));
            }
        });
        let mut proxy = Proxy::default();
        proxy.knows("client", std::process::id());
        let address = proxy.before("server", TcpListener::bind("127.0.0.1:0").unwrap(), target).unwrap();
        (proxy, address)
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn says(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text)?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn bytes_pass_are_delayed_are_swallowed_and_connections_are_cut() {
        let (proxy, address) = echo();
        let mut stream = connect(address);
        assert_eq!(says(&mut stream, b"hello").unwrap(), b"hello");
        proxy.set(Some("client"), Some("server"), Link::Delay(Duration::from_millis(300)));
        let began = Instant::now();
        assert_eq!(says(&mut stream, b"later").unwrap(), b"later");
        assert!(began.elapsed() >= Duration::from_millis(300));
        proxy.heal();
        // One way alone: what the server says is lost, and the connection stays.
        proxy.set(Some("server"), Some("client"), Link::Swallow);
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(says(&mut stream, b"lost").is_err());
        proxy.heal();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(says(&mut stream, b"again").unwrap(), b"again");
        proxy.between("client", "server", Link::Cut);
        let ended = stream.read(&mut [0; 1]);
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert!(says(&mut connect(address), b"x").is_err());
        proxy.heal();
        assert_eq!(says(&mut connect(address), b"new").unwrap(), b"new");
    }

    #[test]
    fn rules_for_others_do_not_touch_this_process() {
        let (proxy, address) = echo();
        proxy.set(Some("somebody"), Some("server"), Link::Cut);
        let mut stream = connect(address);
        assert_eq!(says(&mut stream, b"hello").unwrap(), b"hello");
        proxy.around("client", Link::Cut);
        assert!(says(&mut stream, b"x").is_err());
    }
}
