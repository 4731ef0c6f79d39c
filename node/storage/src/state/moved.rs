//! An account on its way from one shard to another: how it stands in each of them, the steps, and what is carried over, in
//! the form in which it is written into the target's log.

use bytes::Bytes;
use prost::Message;
use types::{AccountId, UidSet};

use super::wire::{flat, ranges};

/// How an account stands in a shard. The numbers are the disk format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Place {
    /// It is served here, or there is nothing of it yet.
    #[default]
    Here = 0,
    /// Whole, and changed no more unless the move is undone.
    Frozen = 1,
    /// Some of it has come.
    Coming = 2,
    /// All of it has come; it is not served yet.
    Whole = 3,
    /// What is left of it is dropped bit by bit.
    Leaving = 4,
    /// Nothing is left but the number of the move, so that whatever comes late is known as late.
    Gone = 5,
}

impl Place {
    /// `None` for a number that means nothing.
    pub(crate) fn of(number: u32) -> Option<Place> {
        let all = [Place::Here, Place::Frozen, Place::Coming, Place::Whole, Place::Leaving, Place::Gone];
        all.into_iter().find(|place| *place as u32 == number)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Whereabouts {
    pub place: Place,
    /// The last move that the shard has had a part in; 0 for none.
    pub move_id: u64,
    /// Frozen or whole: no modseq of the account is greater.
    pub mod_seq_last: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveStep {
    /// Source: here → frozen.
    Freeze,
    /// Source: frozen → here. The move is undone.
    Thaw,
    /// Source, once the directory has the account elsewhere; target, if the move is undone: → leaving → gone, to be
    /// repeated until it has gone.
    Leave,
    /// Target: → coming, by this bringer and no other from now on.
    Begin { bringer: u64 },
    /// Target: coming → whole. `mod_seq_last` as the source has it.
    Complete { bringer: u64, mod_seq_last: u64 },
    /// Target, once the directory has the account here: whole → here.
    Admit,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MoveRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(uint32, tag = "3")]
    step: u32,
    #[prost(uint64, tag = "4")]
    bringer: u64,
    #[prost(uint64, tag = "5")]
    mod_seq_last: u64,
}

impl MoveRecord {
    pub(crate) fn new(account: AccountId, id: u64, step: MoveStep) -> MoveRecord {
        let (step, bringer, mod_seq_last) = match step {
            MoveStep::Freeze => (1, 0, 0),
            MoveStep::Thaw => (2, 0, 0),
            MoveStep::Leave => (3, 0, 0),
            MoveStep::Begin { bringer } => (4, bringer, 0),
            MoveStep::Complete { bringer, mod_seq_last } => (5, bringer, mod_seq_last),
            MoveStep::Admit => (6, 0, 0),
        };
        MoveRecord { account: account.0, id, step, bringer, mod_seq_last }
    }

    pub(crate) fn read(self) -> Option<(AccountId, u64, MoveStep)> {
        let MoveRecord { bringer, mod_seq_last, .. } = self;
        let step = match self.step {
            1 => MoveStep::Freeze,
            2 => MoveStep::Thaw,
            3 => MoveStep::Leave,
            4 => MoveStep::Begin { bringer },
            5 => MoveStep::Complete { bringer, mod_seq_last },
            6 => MoveStep::Admit,
            _ => return None,
        };
        Some((AccountId(self.account), self.id, step))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImportRecord {
    #[prost(uint64, tag = "1")]
    pub account: u64,
    #[prost(uint64, tag = "2")]
    pub id: u64,
    #[prost(uint64, tag = "3")]
    pub bringer: u64,
    #[prost(message, repeated, tag = "4")]
    pub parts: Vec<Moved>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub body: Option<Vec<u8>>,
    #[prost(bytes = "bytes", tag = "6")]
    pub digest: Bytes,
}

/// A part on its way between nodes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Moved {
    #[prost(oneof = "MovedPart", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub part: Option<MovedPart>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum MovedPart {
    #[prost(message, tag = "1")]
    Account(MovedAccount),
    /// A mailbox but for its messages.
    #[prost(message, tag = "2")]
    Mailbox(MovedMailbox),
    #[prost(message, tag = "3")]
    Message(MovedMessage),
    #[prost(message, tag = "4")]
    Pass(MovedPass),
    /// A mailbox that was deleted.
    #[prost(uint64, tag = "5")]
    Gone(u64),
    #[prost(message, tag = "6")]
    Subscription(MovedSubscription),
    #[prost(message, tag = "7")]
    Request(MovedRequest),
    #[prost(message, tag = "8")]
    Fingerprint(MovedFingerprint),
}

/// The counters that say what was given out; neither falls.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MovedAccount {
    #[prost(uint64, tag = "1")]
    pub mailbox_next: u64,
    #[prost(uint32, tag = "2")]
    pub uid_validity_last: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovedMailbox {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(uint32, tag = "3")]
    pub uid_validity: u32,
    #[prost(uint64, tag = "4")]
    pub uid_next: u64,
    /// As in the mailbox's table: their places are bits of the messages.
    #[prost(string, repeated, tag = "5")]
    pub keywords: Vec<String>,
    #[prost(uint32, tag = "6")]
    pub special_use: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovedMessage {
    #[prost(uint64, tag = "1")]
    pub mailbox: u64,
    #[prost(uint32, tag = "2")]
    pub uid: u32,
    #[prost(uint32, tag = "3")]
    pub system: u32,
    #[prost(uint64, tag = "4")]
    pub keywords_low: u64,
    #[prost(uint64, tag = "5")]
    pub keywords_high: u64,
    #[prost(uint64, tag = "6")]
    pub mod_seq: u64,
    #[prost(sint64, tag = "7")]
    pub internal_unix_s: i64,
    #[prost(sint32, tag = "8")]
    pub internal_offset_min: i32,
    #[prost(sint64, tag = "9")]
    pub save_unix_s: i64,
    /// None: the target has the message, and only flags change.
    #[prost(message, optional, tag = "10")]
    pub body: Option<BodyOf>,
}

/// Where the body of a message is that is new to the target.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BodyOf {
    /// With this very command where both are 0, else another message's, which the target has.
    #[prost(uint64, tag = "1")]
    pub mailbox: u64,
    #[prost(uint32, tag = "2")]
    pub uid: u32,
}

/// A mailbox has all that happened in the source up to a modseq.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovedPass {
    #[prost(uint64, tag = "1")]
    pub mailbox: u64,
    #[prost(uint64, tag = "2")]
    pub mod_seq: u64,
    /// The sets are what happened since the pass before, for those who ask for changes. Else they may have to look at all.
    #[prost(bool, tag = "3")]
    pub follows: bool,
    /// Flat pairs of first and last.
    #[prost(uint32, repeated, tag = "4")]
    changed: Vec<u32>,
    /// To be removed.
    #[prost(uint32, repeated, tag = "5")]
    vanished: Vec<u32>,
}

impl MovedPass {
    pub fn new(mailbox: u64, mod_seq: u64, follows: bool, changed: &UidSet, vanished: &UidSet) -> MovedPass {
        MovedPass { mailbox, mod_seq, follows, changed: flat(changed), vanished: flat(vanished) }
    }

    /// `None` for what is no set of UIDs.
    pub(crate) fn sets(&self) -> Option<(UidSet, UidSet)> {
        Some((ranges(&self.changed)?.collect(), ranges(&self.vanished)?.collect()))
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovedSubscription {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub on: bool,
}

/// What is remembered of a request that was done.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovedRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub request: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub unix_ms: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub record: Bytes,
}

/// What is remembered of a delivery whose sender may send it again.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovedFingerprint {
    #[prost(bytes = "vec", tag = "1")]
    pub fingerprint: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub mailbox: u64,
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    #[prost(uint32, tag = "4")]
    pub uid_validity: u32,
    #[prost(uint64, tag = "5")]
    pub unix_ms: u64,
}
