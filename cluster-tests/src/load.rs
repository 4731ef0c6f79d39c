//! A seeded load of sending servers and mail clients that writes down all it does: [`crate::History`]. Workers go on
//! through faults as real clients do: a server that got no 250 sends again, a client that lost its connection logs in
//! again and does not know whether its last command was done.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::cluster::PASSWORD;
use crate::history::{Change, History, Outcome, Place, Tally};
use crate::imap::ImapClient;
use crate::process::{START_MAX, eventually};
use crate::random::Random;
use crate::reading::read_mailbox;
use crate::service::Service;
use crate::smtp::SmtpClient;

/// Beside INBOX.
pub const MAILBOXES: [&str; 2] = ["Work", "Archive/2026"];
/// A sending server tries the same message again until then; longer than any fault of a test.
const RESEND_MAX: Duration = Duration::from_secs(300);
/// Between attempts of a client whose server does not answer.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Of a writer between changes while nobody waits for them, and of a reader between whole mailboxes: the processes under test have
/// the same processors.
const WRITER_RESTS: Duration = Duration::from_millis(10);
const READER_RESTS: Duration = Duration::from_millis(250);
/// Flag values; a mailbox has room for 128 keywords.
const VALUES: u64 = 24;

#[derive(Clone)]
pub struct LoadOptions {
    pub seed: u64,
    pub accounts: Vec<String>,
    pub smtp: Vec<SocketAddr>,
    pub imap: Vec<SocketAddr>,
    pub writers: usize,
    pub readers: usize,
}

/// A load under way. Dropping it stops it.
pub struct Load {
    pub history: Arc<History>,
    options: LoadOptions,
    stop: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
    /// What the clients met.
    pub service: Arc<Service>,
    workers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Makes the mailboxes and starts the workers.
    pub fn start(options: LoadOptions) -> Result<Load> {
        for account in &options.accounts {
            eventually("the account has its mailboxes", START_MAX, || {
                let mut client = ImapClient::login(options.imap[0], account, PASSWORD)?;
                MAILBOXES.iter().try_for_each(|mailbox| client.create(mailbox))
            })?;
        }
        let (history, stop) = (Arc::new(History::default()), Arc::new(AtomicBool::new(false)));
        let (service, waiting) = (Arc::new(Service::default()), Arc::new(AtomicUsize::new(0)));
        let worker = |number: usize| Worker {
            options: options.clone(),
            history: history.clone(),
            stop: stop.clone(),
            waiting: waiting.clone(),
            service: service.clone(),
            asked: Instant::now(),
            random: Random::new(options.seed, number as u64),
            number,
            sent: 0,
            own: Vec::new(),
            smtp: None,
            sessions: HashMap::new(),
        };
        let mut workers = Vec::new();
        for number in 0..options.writers {
            let mut worker = worker(number);
            workers.push(std::thread::spawn(move || worker.write()));
        }
        for number in options.writers..options.writers + options.readers {
            let mut worker = worker(number);
            workers.push(std::thread::spawn(move || worker.read()));
        }
        Ok(Load { history, options, stop, waiting, service, workers })
    }

    /// Writers do not rest while this is waited for.
    pub fn hurry<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let done = wait();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Changes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.tally().all()
    }

    /// The same, by what they were.
    pub fn tally(&self) -> Tally {
        self.history.acknowledged()
    }

    /// What a client met that was not what it had asked for: refusals, lost sessions, failed attempts.
    pub fn errors(&self) -> u64 {
        self.service.errors()
    }

    /// Those that came of what a test did itself.
    pub fn forget_errors(&self) {
        self.service.forget();
    }

    /// Ends the load, each worker after what it has under way; an error is a worker's that could not go on.
    pub fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| anyhow!("a worker panicked"))??;
        }
        Ok(())
    }

    /// Reads every mailbox, when nothing writes any more.
    pub fn read_all(&self) -> Result<()> {
        for account in &self.options.accounts {
            let mut client = ImapClient::login(self.options.imap[0], account, PASSWORD)?;
            for mailbox in std::iter::once("INBOX").chain(MAILBOXES) {
                let began = self.history.now();
                let reading = read_mailbox(&mut client, account, mailbox, began, true)?;
                self.history.read(reading);
            }
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Also when a test fails: its workers must not outlive the cluster.
        if let Err(error) = self.stop() {
            eprintln!("load: {error:#}");
        }
    }
}

/// A message that only this worker touches.
#[derive(Clone)]
struct Own {
    account: String,
    mailbox: &'static str,
    uid: u32,
    marker: String,
    /// Its flags; None after a write whose outcome is open.
    value: Option<u32>,
}

struct Worker {
    options: LoadOptions,
    history: Arc<History>,
    stop: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
    service: Arc<Service>,
    /// When the change under way was first asked for.
    asked: Instant,
    random: Random,
    number: usize,
    sent: u64,
    own: Vec<Own>,
    smtp: Option<SmtpClient>,
    /// By account: the session and the mailbox that it has selected.
    sessions: HashMap<String, (ImapClient, Option<&'static str>)>,
}

fn place(account: &str, mailbox: &str) -> Place {
    format!("{account}/{mailbox}")
}

impl Worker {
    fn write(&mut self) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            match self.random.below(100) {
                0..55 => self.deliver()?,
                55..75 => self.append(),
                75..85 => self.flag(),
                85..90 => self.copy_or_move(false),
                90..95 => self.copy_or_move(true),
                _ => self.expunge(),
            }
            if self.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(WRITER_RESTS);
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mailboxes: Vec<&'static str> = std::iter::once("INBOX").chain(MAILBOXES).collect();
        while !self.stop.load(Ordering::Relaxed) {
            let account = self.account();
            let mailbox = mailboxes[self.random.below(mailboxes.len() as u64) as usize];
            let began = self.history.now();
            let reading = self.session(&account).and_then(|(client, selected)| {
                *selected = Some(mailbox);
                read_mailbox(client, &account, mailbox, began, false)
            });
            match reading {
                Ok(reading) => self.history.read(reading),
                Err(_) => self.lose(&account),
            }
            std::thread::sleep(READER_RESTS);
        }
        Ok(())
    }

    fn account(&mut self) -> String {
        let at = self.random.below(self.options.accounts.len() as u64) as usize;
        self.options.accounts[at].clone()
    }

    fn mailbox(&mut self) -> &'static str {
        MAILBOXES[self.random.below(MAILBOXES.len() as u64) as usize]
    }

    fn marker(&mut self) -> String {
        self.sent += 1;
        format!("m{}.{}.{}", self.options.seed, self.number, self.sent)
    }

    /// A change is about to be asked for.
    fn begin(&mut self) -> u64 {
        self.asked = Instant::now();
        self.history.now()
    }

    fn record(&self, account: &str, began: u64, change: Change, outcome: Outcome) {
        if outcome == Outcome::Ok {
            self.service.acknowledged(account, self.asked.elapsed());
        } else {
            self.service.failed(account);
        }
        self.history.record(began, change, outcome);
    }

    /// A sending server: the same message until it is acknowledged or refused for good (RFC 5321 §4.5.4.1).
    fn deliver(&mut self) -> Result<()> {
        let (account, marker) = (self.account(), self.marker());
        let message = message(&marker);
        let began = self.begin();
        let deadline = Instant::now() + RESEND_MAX;
        let change = Change::Create { to: place(&account, "INBOX"), marker: marker.clone(), uid: None };
        loop {
            let router = self.random.below(self.options.smtp.len() as u64) as usize;
            match self.attempt(router, &account, &message) {
                Ok((250, _)) => {
                    self.record(&account, began, change, Outcome::Ok);
                    return Ok(());
                }
                Ok((code, text)) if code >= 500 => {
                    self.record(&account, began, change, Outcome::Refused);
                    bail!("{marker} was refused: {code} {text}");
                }
                Ok(_) => {}
                Err(_) => self.smtp = None,
            }
            self.service.failed(&account);
            if self.stop.load(Ordering::Relaxed) {
                self.record(&account, began, change, Outcome::Unknown);
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.record(&account, began, change, Outcome::Unknown);
                bail!("{marker} was not taken in {RESEND_MAX:?}");
            }
            std::thread::sleep(AGAIN_AFTER);
        }
    }

    fn attempt(&mut self, router: usize, account: &str, message: &[u8]) -> Result<(u16, String)> {
        let client = match &mut self.smtp {
            Some(client) => client,
            none => none.insert(SmtpClient::connect(self.options.smtp[router])?),
        };
        client.deliver("load@example.test", &[account], message)
    }

    fn session(&mut self, account: &str) -> Result<&mut (ImapClient, Option<&'static str>)> {
        if !self.sessions.contains_key(account) {
            let router = self.random.below(self.options.imap.len() as u64) as usize;
            let client = ImapClient::login(self.options.imap[router], account, PASSWORD)?;
            self.sessions.insert(account.to_owned(), (client, None));
        }
        self.sessions.get_mut(account).context("a session that was just made")
    }

    fn lose(&mut self, account: &str) {
        self.sessions.remove(account);
        self.service.failed(account);
        std::thread::sleep(AGAIN_AFTER);
    }

    /// The tagged reply and the untagged ones, as text.
    fn command(&mut self, account: &str, mailbox: &'static str, command: &str) -> Result<(String, Outcome)> {
        let (client, selected) = self.session(account)?;
        if *selected != Some(mailbox) {
            client.select(mailbox)?;
            *selected = Some(mailbox);
        }
        let Ok((untagged, tagged)) = client.command(command) else {
            self.lose(account);
            return Ok((String::new(), Outcome::Unknown));
        };
        let outcome = outcome(&tagged);
        let mut said = String::from_utf8_lossy(&untagged.join(&b'\n')).into_owned();
        said.push('\n');
        said.push_str(&tagged);
        Ok((said, outcome))
    }

    /// As `command`, but None if it was not even sent.
    fn change(&mut self, own: &Own, command: &str) -> Option<(String, Outcome)> {
        match self.command(&own.account, own.mailbox, command) {
            Ok(answer) => Some(answer),
            Err(_) => {
                self.lose(&own.account);
                None
            }
        }
    }

    fn append(&mut self) {
        let (account, mailbox, marker) = (self.account(), self.mailbox(), self.marker());
        let message = message(&marker);
        let to = place(&account, mailbox);
        let Ok((client, _)) = self.session(&account) else { return self.lose(&account) };
        let Ok(tag) = client.send(&format!("APPEND {mailbox} {{{}+}}", message.len())) else {
            return self.lose(&account);
        };
        // The command's line is out: from here on it may be done.
        let began = self.begin();
        let (client, _) = self.sessions.get_mut(&account).expect("the session was used a line above");
        let answer =
            client.line.send(&message).and_then(|()| client.line.send(b"\r\n")).and_then(|()| client.finish(&tag));
        let (outcome, uid) = match &answer {
            Ok((_, tagged)) => (outcome(tagged), uid_after(tagged, "APPENDUID ", 1)),
            Err(_) => (Outcome::Unknown, None),
        };
        if answer.is_err() {
            self.lose(&account);
        }
        self.record(&account, began, Change::Create { to, marker: marker.clone(), uid }, outcome);
        if let (Outcome::Ok, Some(uid)) = (outcome, uid) {
            self.own.push(Own { account, mailbox, uid, marker, value: Some(0) });
        }
    }

    fn some_own(&mut self) -> Option<(usize, Own)> {
        let count = self.own.len() as u64;
        let at = (count > 0).then(|| self.random.below(count) as usize)?;
        Some((at, self.own[at].clone()))
    }

    fn flag(&mut self) {
        let Some((at, own)) = self.some_own() else { return };
        let value = 1 + self.random.below(VALUES) as u32;
        let began = self.begin();
        // Some are read and some are not, so that there is something to count.
        let seen = if value.is_multiple_of(2) { "\\Seen " } else { "" };
        let store = format!("UID STORE {} FLAGS.SILENT ({seen}$v{value})", own.uid);
        if let Some((_, outcome)) = self.change(&own, &store) {
            match outcome {
                Outcome::Ok => self.own[at].value = Some(value),
                Outcome::Unknown => self.own[at].value = None,
                Outcome::Refused => {}
            }
            let Own { account, mailbox, uid, marker, .. } = own;
            let at = place(&account, mailbox);
            self.record(&account, began, Change::Flag { at, uid, marker, value }, outcome);
        }
    }

    fn copy_or_move(&mut self, moves: bool) {
        let Some((at, own)) = self.some_own() else { return };
        let to_mailbox = self.mailbox();
        if to_mailbox == own.mailbox {
            return;
        }
        let verb = if moves { "MOVE" } else { "COPY" };
        let began = self.begin();
        let Some((said, outcome)) = self.change(&own, &format!("UID {verb} {} {to_mailbox}", own.uid)) else { return };
        let uid = uid_after(&said, "COPYUID ", 2);
        let (to, marker) = (place(&own.account, to_mailbox), own.marker.clone());
        let change = if moves {
            Change::Move {
                from: place(&own.account, own.mailbox),
                from_uid: own.uid,
                to,
                marker,
                uid,
                value: own.value,
            }
        } else {
            Change::Copy { to, marker, uid, value: own.value }
        };
        self.record(&own.account, began, change, outcome);
        if moves && outcome != Outcome::Refused {
            self.own.swap_remove(at);
        }
        if let (Outcome::Ok, Some(uid)) = (outcome, uid) {
            self.own.push(Own { mailbox: to_mailbox, uid, ..own });
        }
    }

    fn expunge(&mut self) {
        let Some((at, own)) = self.some_own() else { return };
        match self.change(&own, &format!("UID STORE {} +FLAGS.SILENT (\\Deleted)", own.uid)) {
            Some((_, Outcome::Ok)) => {}
            _ => return,
        }
        let began = self.begin();
        let Some((_, outcome)) = self.change(&own, &format!("UID EXPUNGE {}", own.uid)) else { return };
        if outcome != Outcome::Refused {
            self.own.swap_remove(at);
        }
        let from = place(&own.account, own.mailbox);
        self.record(&own.account, began, Change::Expunge { from, uid: own.uid, marker: own.marker }, outcome);
    }
}

/// [UNAVAILABLE] leaves open what came of a change (RFC 5530 §3).
fn outcome(tagged: &str) -> Outcome {
    match tagged {
        _ if tagged.starts_with("OK") => Outcome::Ok,
        _ if tagged.contains("[UNAVAILABLE]") => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

/// The n-th word behind UIDVALIDITY in a response code such as `[COPYUID 7 3 9]`.
fn uid_after(text: &str, code: &str, word: usize) -> Option<u32> {
    text.split(code).nth(1)?.split([' ', ']']).nth(word)?.parse().ok()
}

/// The message of a marker, always the same: a few KiB, at times much more.
pub fn message(marker: &str) -> Vec<u8> {
    let mut random = Random::new(marker.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(131) + u64::from(byte)), 0);
    let lines = match random.below(100) {
        0 => 9_000,
        1..6 => 1_000,
        _ => 5 + random.below(50),
    };
    let mut message = format!("From: load@example.test\r\nSubject: {marker}\r\n\r\n").into_bytes();
    for _ in 0..lines {
        let word = random.draw();
        message.extend_from_slice(format!(".{word:016x} {marker} {word:020} {:x}\r\n", !word).as_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::uid_after;

    #[test]
    fn uids_are_found_in_response_codes() {
        assert_eq!(uid_after("OK [APPENDUID 7 12] done", "APPENDUID ", 1), Some(12));
        assert_eq!(uid_after("* OK [COPYUID 7 3 9] moved\nOK done", "COPYUID ", 2), Some(9));
        assert_eq!(uid_after("OK done", "COPYUID ", 2), None);
    }
}
