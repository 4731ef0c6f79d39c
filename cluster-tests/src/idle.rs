//! Sessions that sit in IDLE and note what they are told.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::PASSWORD;
use crate::imap::ImapClient;

/// Each session is a thread that reads lines.
const STACK_OCTETS: usize = 256 * 1024;
const LOOK: Duration = Duration::from_millis(500);

struct Idler {
    account: usize,
    /// The last EXISTS.
    exists: AtomicU64,
    /// Why it ended, if it was not told to.
    ended: Mutex<Option<String>>,
}

pub struct Idlers {
    sessions: Vec<Arc<Idler>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Idlers {
    /// Begins `count` sessions, one account after the other.
    pub fn start(address: SocketAddr, accounts: &[String], count: usize) -> Result<Idlers> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut sessions, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count {
            let account = number % accounts.len();
            let mut client = ImapClient::login(address, &accounts[account], PASSWORD)?;
            let exists = client.select("INBOX")?;
            client.send("IDLE")?;
            let go_ahead = client.response()?;
            ensure!(go_ahead.starts_with(b"+"), "IDLE was answered {:?}", String::from_utf8_lossy(&go_ahead));
            let stream = client.line.into_tcp()?;
            stream.set_read_timeout(Some(LOOK))?;
            let ended = Mutex::new(None);
            let idler = Arc::new(Idler { account, exists: AtomicU64::new(u64::from(exists)), ended });
            let (session, told) = (idler.clone(), stop.clone());
            let thread = std::thread::Builder::new().stack_size(STACK_OCTETS);
            threads.push(thread.spawn(move || {
                if let Err(error) = listen(stream, &session, &told) {
                    *session.ended.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(format!("{error:#}"));
                }
            })?);
            sessions.push(idler);
        }
        Ok(Idlers { sessions, threads, stop })
    }

    /// That no session ended, and that each was told of as many messages as its account has.
    pub fn check(&self, messages: &[u64]) -> Result<()> {
        for (number, session) in self.sessions.iter().enumerate() {
            if let Some(reason) = &*session.ended.lock().map_err(|_| anyhow::anyhow!("a session panicked"))? {
                bail!("session {number} ended: {reason}");
            }
            let told = session.exists.load(Ordering::SeqCst);
            let wanted = messages[session.account];
            ensure!(told == wanted, "session {number} was told of {told} messages, and there are {wanted}");
        }
        Ok(())
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            drop(thread.join());
        }
    }
}

fn listen(mut stream: TcpStream, session: &Idler, stop: &AtomicBool) -> Result<()> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while !stop.load(Ordering::SeqCst) {
        let octets = match stream.read(&mut buffer) {
            Ok(0) => bail!("the connection was closed"),
            Ok(octets) => octets,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error).context("the connection broke"),
        };
        text.extend_from_slice(&buffer[..octets]);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = text.drain(..end + 2).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            ensure!(!line.starts_with("* BYE"), "{line}");
            if let Some(exists) = line.strip_prefix("* ").and_then(|rest| rest.strip_suffix(" EXISTS")) {
                session.exists.store(exists.parse().context("EXISTS")?, Ordering::SeqCst);
            }
        }
    }
    stream.write_all(b"DONE\r\n")?;
    Ok(())
}
