//! The server side of SMTP (RFC 5321) as a pure protocol: bytes in, events out. No I/O, no clock, no log.
//!
//! The caller reads bytes into a `BytesMut` and calls [`Session::step`] until it returns `None`; it performs each
//! [`Event`], and where an event asks a question it calls [`Session::answer`] or [`Session::accept`]. Bytes to write are
//! gathered and flushed once `step` returns `None`, so that the replies to pipelined commands share a write
//! (RFC 2920 §3.2). While a question is open the caller reads no further bytes.
//!
//! ```text
//!            EHLO, MAIL, RCPT …            accept: 354              CRLF . CRLF
//!   Command ───────────────────► Ask(Data) ───────────► Data ─────────────────► Ask(Content) ──► Command
//!      │  ▲       AUTH                                                               ▲
//!      │  └──────────────► Sasl ──► Ask(Auth)                    BDAT n LAST         │
//!      ├──────────────────────────────────────────────► Chunk ──────────────────────┘
//!      └── STARTTLS ──► TlsHandshake ── tls_started ──► Command, as if just connected
//! ```
//!
//! It knows the roles `mx` and `submission` by their settings alone: who may receive, and what relaying is, the
//! caller decides.

mod command;
mod data;
mod date;
mod line;
mod parameters;
mod path;
mod received;
mod reply;
mod sasl;
mod session;
mod settings;
mod trace;

pub use data::{BareNewlines, DataDecoder, Decoded};
pub use date::rfc5322_date;
pub use parameters::Body;
pub use path::{Domain, ForwardPath, LOCAL_PART_OCTETS_MAX, Mailbox, PathError};
pub use received::ReceivedCounter;
pub use reply::render;
pub use sasl::{Credentials, Mechanism, Password};
pub use session::{AbortReason, Event, Farewell, Mail, Session};
pub use settings::{AuthOffer, Settings, Tls};
pub use trace::{Protocol, Trace, received_header, return_path_header};
