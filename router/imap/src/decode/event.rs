//! What the decoder tells the session, and the limits that the session sets it.

use bytes::Bytes;
use types::{Flags, InternalDate};

use crate::command::{Command, MailboxArg, Secret, Tag};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Command(Command),
    /// The client waits amid a command: write `+ `.
    Continue,
    /// A message is announced. Nothing more is decoded until the session calls `accept_literal` or
    /// `refuse_literal`; having refused, it answers the tag itself.
    AppendStart(AppendStart),
    /// The next octets of the accepted message, never empty and without NUL; `size` of them in all.
    AppendData(Bytes),
    /// The message and its command are complete.
    AppendEnd,
    /// The accepted message or what followed it was wrong: no AppendEnd will come. Answer with a tagged BAD.
    AppendBad {
        text: &'static str,
    },
    /// The answer to a challenge; the decoder is back to commands unless told otherwise again.
    AuthenticateLine(SaslResponse),
    /// `DONE`: answer the IDLE command with a tagged OK.
    IdleDone,
    /// Something else than DONE came, and was not executed: IDLE has ended, answer it with a tagged BAD.
    IdleBad {
        text: &'static str,
    },
    /// Answer `tag BAD text`, or `* BAD text` without a tag. Nothing was executed.
    Bad {
        tag: Option<Tag>,
        text: &'static str,
    },
    /// Answer `tag NO [TOOBIG] text` (RFC 7889 §4).
    TooBig {
        tag: Tag,
        text: &'static str,
    },
    /// Write `* BYE text` and close. No further event comes.
    Fatal {
        text: &'static str,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendStart {
    pub tag: Tag,
    pub mailbox: MailboxArg,
    pub flags: Flags,
    /// Now, if the client gave none.
    pub date: Option<InternalDate>,
    /// From 1 to `append_octets_max`.
    pub size: u64,
    /// Whether the client waits for `+`, so that a refusal saves it from sending.
    pub synchronising: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SaslResponse {
    Data(Secret),
    /// `*`: answer BAD (RFC 3501 §6.2.2).
    Cancel,
    /// Not base64: answer BAD.
    Bad,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// All lines of one command together, CRLFs included, literals not. Beyond it the connection ends.
    pub line_octets_max: usize,
    /// Literals in one command, APPEND's message not counted.
    pub literals_max: usize,
    /// Their sizes together.
    pub literal_octets_max: u64,
    /// A literal sent without waiting: 4,096 with LITERAL- (RFC 7888 §5), else unlimited by itself.
    pub non_synchronising_octets_max: u64,
    /// A message to be appended.
    pub append_octets_max: u64,
    /// Octets read and dropped to get past a refused command. When more would be needed the connection ends.
    pub drain_octets_max: u64,
}

impl Limits {
    /// LOGIN by two literals is the most that an honest client needs.
    pub const BEFORE_LOGIN: Limits = Limits {
        line_octets_max: 16 << 10, // an AUTHENTICATE line may have 12,288 octets
        literals_max: 8,
        literal_octets_max: 4 << 10,
        non_synchronising_octets_max: u64::MAX,
        append_octets_max: 50 << 20,
        drain_octets_max: 16 << 10,
    };

    pub const AFTER_LOGIN: Limits = Limits {
        line_octets_max: 64 << 10, // sets of thousands of UIDs come in one line
        literals_max: 256,
        literal_octets_max: 64 << 10,
        non_synchronising_octets_max: u64::MAX,
        append_octets_max: 50 << 20,
        drain_octets_max: 64 << 20, // cheaper than a client that reconnects and sends it again
    };

    /// The same, with LITERAL- in place of LITERAL+ (RFC 7888 §5).
    pub const fn with_literal_minus(self) -> Limits {
        Limits { non_synchronising_octets_max: 4_096, ..self }
    }
}
