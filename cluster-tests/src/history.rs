//! What a load did and saw: each change with when it was asked for and when it was answered, each whole reading of a
//! mailbox. Time is a counter that all workers share, so that "answered before the other was asked" is exact.

use std::collections::BTreeMap;
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
    pub value: u32,
    pub mod_seq: u64,
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
    pub messages: BTreeMap<u32, Seen>,
}

#[derive(Default)]
pub struct History {
    clock: AtomicU64,
    entries: Mutex<Entries>,
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
        self.lock().operations.push(Operation { began, ended, change, outcome });
    }

    pub fn read(&self, mut reading: Reading) {
        reading.ended = self.now();
        self.lock().readings.push(reading);
    }

    pub fn acknowledged(&self) -> usize {
        self.lock().operations.iter().filter(|operation| operation.outcome == Outcome::Ok).count()
    }

    pub fn entries(&self) -> Entries {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        // A worker that panicked fails the test anyway; what it recorded is whole.
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
