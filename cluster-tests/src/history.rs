//! What a load did and saw: each change with when it was asked for and when it was answered, each whole reading of a
//! mailbox. Time is a counter that all workers share, so that "answered before the other was asked" is exact.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// `account/mailbox`.
pub type Place = String;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A message came by delivery or APPEND. `uid` where the answer told it.
    Create {
        to: Place,
        marker: String,
        uid: Option<u32>,
    },
    /// `value`: the flags that it brings along, if they are known.
    Copy {
        to: Place,
        marker: String,
        uid: Option<u32>,
        value: Option<u32>,
    },
    Move {
        from: Place,
        from_uid: u32,
        to: Place,
        marker: String,
        uid: Option<u32>,
        value: Option<u32>,
    },
    Expunge {
        from: Place,
        uid: u32,
        marker: String,
    },
    /// Replaces the keyword of a message: `$v7` for value 7. One worker writes the flags of one message.
    Flag {
        at: Place,
        uid: u32,
        marker: String,
        value: u32,
    },
}

/// Changes that were acknowledged, each message by each verb one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Over SMTP.
    pub deliveries: u64,
    /// Over IMAP: APPEND, STORE, COPY, MOVE, EXPUNGE.
    pub appends: u64,
    pub stores: u64,
    pub copies: u64,
    pub moves: u64,
    pub expunges: u64,
}

impl Tally {
    pub fn imap(&self) -> u64 {
        self.appends + self.stores + self.copies + self.moves + self.expunges
    }

    pub fn all(&self) -> u64 {
        self.deliveries + self.imap()
    }

    fn add(&mut self, change: &Change) {
        let count = match change {
            // Deliveries go to INBOX, and a client appends elsewhere: who sent it is told from where it is.
            Change::Create { to, .. } if to.ends_with("/INBOX") => &mut self.deliveries,
            Change::Create { .. } => &mut self.appends,
            Change::Flag { .. } => &mut self.stores,
            Change::Copy { .. } => &mut self.copies,
            Change::Move { .. } => &mut self.moves,
            Change::Expunge { .. } => &mut self.expunges,
        };
        *count += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { deliveries, appends, stores, copies, moves, expunges } = self;
        write!(
            f,
            "{deliveries} deliveries and {} IMAP operations ({appends} APPEND, {stores} STORE, {copies} COPY, {moves} \
             MOVE, {expunges} EXPUNGE)",
            self.imap()
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Acknowledged: it is done, and stays.
    Ok,
    /// The server said that it is not done.
    Refused,
    /// No answer, or one that leaves it open.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub began: u64,
    pub ended: u64,
    pub change: Change,
    pub outcome: Outcome,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub marker: String,
    /// The bytes behind the trace header are those that were sent.
    pub intact: bool,
    /// With the flag \Seen.
    pub seen: bool,
    pub value: u32,
    pub mod_seq: u64,
    /// Its octets as counted, and as RFC822.SIZE has them.
    pub octets: u64,
    pub size: u64,
}

/// What STATUS says of a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    pub messages: u64,
    pub unseen: u64,
    pub uid_next: u64,
    pub uid_validity: u64,
    pub highest_mod_seq: u64,
}

/// A whole mailbox as one session read it.
#[derive(Clone, Debug)]
pub struct Reading {
    pub place: Place,
    pub began: u64,
    pub ended: u64,
    pub uid_validity: u32,
    pub uid_next: u32,
    pub highest_mod_seq: u64,
    pub exists: u32,
    /// Where nothing was written meanwhile.
    pub status: Option<Status>,
    pub messages: BTreeMap<u32, Seen>,
}

#[derive(Default)]
pub struct History {
    clock: AtomicU64,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    entries: Entries,
    acknowledged: Tally,
}

#[derive(Clone, Default, Debug)]
pub struct Entries {
    pub operations: Vec<Operation>,
    pub readings: Vec<Reading>,
}

impl History {
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub fn record(&self, began: u64, change: Change, outcome: Outcome) {
        let ended = self.now();
        let mut log = self.lock();
        if outcome == Outcome::Ok {
            log.acknowledged.add(&change);
        }
        log.entries.operations.push(Operation { began, ended, change, outcome });
    }

    pub fn read(&self, mut reading: Reading) {
        reading.ended = self.now();
        self.lock().entries.readings.push(reading);
    }

    pub fn acknowledged(&self) -> Tally {
        self.lock().acknowledged
    }

    pub fn entries(&self) -> Entries {
        self.lock().entries.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        // A worker that panicked fails the test anyway; what it recorded is whole.
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
