//! The server side of POP3 (RFC 1939) as a pure protocol: bytes in, events out. No I/O, no clock, no log.
//!
//! The caller reads bytes into a `BytesMut` and calls [`Session::step`] until it returns `None`; it performs each
//! [`Event`], and where an event asks something of it, it answers by the method that the event names. Bytes to write
//! are gathered and flushed once `step` returns `None` (PIPELINING, RFC 2449 §6.6), or whenever they are many: a long
//! listing comes in several replies. While a question is open the caller reads no further bytes.
//!
//! ```text
//!   AUTHORIZATION ── Login ── logged_in ──► TRANSACTION ── QUIT: Update ── updated ──► closed
//!      │    ▲                                  │    ▲
//!      │    └── tls_started ◄── StartTls       │    └── retrieved / fail ◄── Retrieve (RETR, TOP)
//!      └── QUIT ──► closed                     └── connection lost: nothing is deleted
//! ```
//!
//! **Octets.** STAT, LIST and RETR announce a message's size as stored, and RETR transfers exactly these octets before
//! byte-stuffing. Where the last of them are not CRLF, [`DotStuffer`] adds a CRLF that belongs to the terminator: a
//! client may keep it or drop it.

mod command;
mod line;
mod maildrop;
mod reply;
mod sasl;
mod session;
mod stuff;

pub use maildrop::{InvalidUidl, Maildrop, UIDL_OCTETS_MAX};
pub use sasl::{Credentials, Password};
pub use session::{Event, Farewell, Retrieve, Session, Settings, Tls};
pub use stuff::{DotStuffer, TopLimiter};
