//! The IMAP protocol as pure values: octets in, events out; values in, octets out. It knows the grammar, the order of
//! commands, the sequence numbers of a selected mailbox and nothing else: no I/O, no clock, no log, no storage.
//!
//! ```text
//!  socket ──octets──▶ Decoder ──Event──▶ session ──▶ rules::allowed ──▶ mail operations
//!  socket ◀─octets── encode::* ◀──values── session ◀── View (sequence number ↔ UID)
//! ```
//!
//! IMAP4rev1 (RFC 3501) with STARTTLS, SASL-IR (RFC 4959), ID (RFC 2971), ENABLE (RFC 5161), NAMESPACE (RFC 2342),
//! UNSELECT (RFC 3691), LITERAL+ and LITERAL- (RFC 7888), UIDPLUS (RFC 4315), MOVE (RFC 6851), IDLE (RFC 2177),
//! CHILDREN (RFC 3348), SPECIAL-USE (RFC 6154) and CONDSTORE (RFC 7162).

pub mod command;
pub mod date;
mod decode;
pub mod encode;
mod parse;
mod pattern;
mod rules;
mod sequence;
pub mod utf7;
mod view;

pub use command::{Command, CommandBody, MailboxArg, Secret, Tag};
pub use decode::{AppendStart, Decoder, Event, Limits, SaslResponse};
pub use pattern::{Pattern, matches};
pub use rules::{
    Context, LiteralMode, MECHANISMS, Refusal, SessionState, allowed, append_allowed, capabilities,
    expunges_may_be_sent_during,
};
pub use sequence::{OutOfRange, SequenceSet};
pub use view::{Expunged, View};
