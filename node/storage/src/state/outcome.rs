//! What commands answer, and what reads tell.

use types::{
    AccountId, Flags, InternalDate, Keyword, MailError, MailboxId, MailboxName, ModSeq, SpecialUse, Uid, UidSet,
    UidValidity,
};

use super::moved::Whereabouts;

/// A body: the log index of the entry that completed it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BodyId(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// In the order of the recipients.
    Delivered(Vec<Result<Delivered, MailError>>),
    Appended {
        mailbox: MailboxId,
        uid: Uid,
        uid_validity: UidValidity,
        mod_seq: ModSeq,
    },
    MailboxCreated(MailboxId),
    Stored {
        /// The messages that were meant and exist, ascending, with the flags and modseq that they have now. One whose
        /// flags were so already keeps its modseq.
        changed: Vec<(Uid, Flags, ModSeq)>,
        /// Left alone, for they changed after UNCHANGEDSINCE (RFC 7162 §3.1.3).
        modified: UidSet,
        mod_seq: ModSeq,
    },
    Expunged {
        uids: UidSet,
        mod_seq: ModSeq,
    },
    Copied {
        /// The n-th of `from` became the n-th of `to` (RFC 4315 §3).
        from: UidSet,
        to: UidSet,
        uid_validity: UidValidity,
        to_mailbox: MailboxId,
        mod_seq: ModSeq,
    },
    /// Of a step of a move: how the account stands after it.
    Placed(Whereabouts),
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivered {
    pub mailbox: MailboxId,
    pub uid: Uid,
    pub uid_validity: UidValidity,
    /// It was there already: a retry met its fingerprint.
    pub duplicate: bool,
}

/// For those who watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardEvent {
    pub account: AccountId,
    pub kind: ShardEventKind,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ShardEventKind {
    /// Messages came, went or changed; or the mailbox was deleted.
    Mailbox { id: MailboxId, mod_seq: ModSeq },
    /// Mailboxes or subscriptions came, went or were renamed.
    MailboxList,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailboxInfo {
    pub id: MailboxId,
    pub name: MailboxName,
    pub special_use: Option<SpecialUse>,
    pub uid_validity: UidValidity,
    /// `None` when every UID has been given out.
    pub uid_next: Option<Uid>,
    /// Of the last change, its creation included.
    pub highest_mod_seq: ModSeq,
    pub messages: u32,
    pub unseen: u32,
    pub deleted: u32,
    pub bytes: u64,
    pub keywords: Vec<Keyword>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    pub info: MailboxInfo,
    pub uids: UidSet,
    pub first_unseen: Option<Uid>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MessageMeta {
    pub uid: Uid,
    pub flags: Flags,
    pub mod_seq: ModSeq,
    pub internal_date: InternalDate,
    /// When it came into this mailbox (RFC 8514).
    pub save_date: InternalDate,
    pub size: u64,
    pub body: BodyId,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes {
    /// New or changed, and still there.
    pub changed: UidSet,
    pub vanished: UidSet,
    /// False: the log of changes does not reach back so far, and the sets are empty. Resynchronise in full.
    pub complete: bool,
    pub highest: ModSeq,
}

/// What a shard holds in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardTotals {
    pub accounts: u64,
    pub messages: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccountTotals {
    pub mailboxes: u32,
    pub messages: u64,
    pub bytes: u64,
}
