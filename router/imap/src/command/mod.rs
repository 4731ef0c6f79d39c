//! A command as a value. Values have been checked against the grammar, not against the mailbox, the account or the
//! session's state.

mod arguments;
mod fetch;
mod search;

pub use arguments::{MailboxArg, Secret, Tag};
pub use fetch::{BodySection, Fetch, FetchItem, Partial, SectionName, SectionText};
pub use search::{Search, SearchCharset, SearchKey};
use types::{Flags, ModSeq, SpecialUse};

use crate::SequenceSet;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    pub tag: Tag,
    pub body: CommandBody,
}

/// Every command but APPEND, which comes as events of its own because its message is streamed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandBody {
    // Any state.
    Capability,
    Noop,
    Logout,
    /// Field names and values as the client gave them; empty for `ID NIL` (RFC 2971 §3.1).
    Id(Vec<(String, Option<String>)>),

    // Not authenticated.
    StartTls,
    Login {
        user: Vec<u8>,
        password: Secret,
    },
    Authenticate {
        /// In capitals.
        mechanism: String,
        /// The decoded initial response (RFC 4959); `=` is present and empty.
        initial: Option<Secret>,
    },

    // Authenticated.
    /// Capability names in capitals (RFC 5161 §3.1).
    Enable(Vec<String>),
    Select {
        mailbox: MailboxArg,
        condstore: bool,
    },
    Examine {
        mailbox: MailboxArg,
        condstore: bool,
    },
    Create {
        mailbox: MailboxArg,
        special_uses: Result<Vec<SpecialUse>, UnknownUse>,
    },
    Delete(MailboxArg),
    Rename {
        from: MailboxArg,
        to: MailboxArg,
    },
    Subscribe(MailboxArg),
    Unsubscribe(MailboxArg),
    List(List),
    Lsub {
        reference: String,
        pattern: String,
    },
    Namespace,
    Status {
        mailbox: MailboxArg,
        /// Without duplicates.
        items: Vec<StatusItem>,
    },
    Idle,

    // Selected.
    Check,
    Close,
    Unselect,
    Expunge,
    UidExpunge(SequenceSet),
    Search(Search),
    Fetch(Fetch),
    Store(Store),
    Copy {
        uid: bool,
        set: SequenceSet,
        mailbox: MailboxArg,
    },
    Move {
        uid: bool,
        set: SequenceSet,
        mailbox: MailboxArg,
    },
}

/// CREATE named a use that this server does not have: `NO [USEATTR]` (RFC 6154 §3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownUse;

/// LIST with the options of RFC 6154; RFC 5258 will add to the enums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List {
    pub selection: Vec<ListSelection>,
    pub reference: String,
    /// One today; several with LIST-EXTENDED. An empty one asks for the separator (RFC 3501 §6.3.8).
    pub patterns: Vec<String>,
    pub returns: Vec<ListReturn>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListSelection {
    /// Only mailboxes with a special use.
    SpecialUse,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListReturn {
    SpecialUse,
    Children,
    Subscribed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusItem {
    Messages,
    Recent,
    UidNext,
    UidValidity,
    Unseen,
    HighestModSeq,
}

impl StatusItem {
    pub(crate) const NAMES: [(StatusItem, &'static str); 6] = [
        (StatusItem::Messages, "MESSAGES"),
        (StatusItem::Recent, "RECENT"),
        (StatusItem::UidNext, "UIDNEXT"),
        (StatusItem::UidValidity, "UIDVALIDITY"),
        (StatusItem::Unseen, "UNSEEN"),
        (StatusItem::HighestModSeq, "HIGHESTMODSEQ"),
    ];
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    pub uid: bool,
    pub set: SequenceSet,
    /// RFC 7162 §3.1.3. Zero never matches a message.
    pub unchanged_since: Option<ModSeq>,
    pub action: StoreAction,
    pub silent: bool,
    pub flags: Flags,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreAction {
    Replace,
    Add,
    Remove,
}
