//! The server's side of one POP3 session (RFC 1939 §3): states, limits, and the replies that need no one else.

mod authorization;
mod transaction;

use bytes::{Bytes, BytesMut};
use types::MailError;

use crate::{
    command::{Command, CommandError},
    line::{AUTH_LINE_OCTETS_MAX, LINE_OCTETS_MAX, Line, LineReader},
    maildrop::Maildrop,
    reply,
    sasl::Credentials,
};

/// The first octet of a TLS handshake record (RFC 8446 §5.1); no command begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Whether the connection can be, or is, encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// STLS is neither offered nor accepted.
    Unavailable,
    /// STLS is offered.
    Available,
    /// The connection is encrypted, from its start or since STLS.
    Active,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub tls: Tls,
    /// USER, PASS and AUTH PLAIN without TLS too. For tests and closed networks.
    pub cleartext_passwords: bool,
    /// Refused commands in a session; the last of them closes it.
    pub errors_max: u32,
    /// Wrong passwords in a session; the last of them closes it.
    pub auth_failures_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { tls: Tls::Unavailable, cleartext_passwords: false, errors_max: 30, auth_failures_max: 5 }
    }
}

/// What the caller must do next. Bytes are replies, to be written in the order in which they come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Reply(Bytes),
    /// Write and flush the reply, do the TLS handshake on a fresh buffer, call [`Session::tls_started`].
    StartTls(Bytes),
    /// Question: verify, lock the maildrop and list it; then [`Session::logged_in`], [`Session::denied`] or
    /// [`Session::fail`].
    Login(Credentials),
    /// Question: stream a message; then [`Session::retrieved`], or [`Session::fail`] with nothing written yet.
    Retrieve(Retrieve),
    /// Question: delete these messages (indices into the listing, ascending; perhaps none) and free the lock; then
    /// [`Session::updated`] or [`Session::fail`]. Nothing is deleted without it (RFC 1939 §6).
    Update {
        deleted: Vec<usize>,
    },
    /// Write the reply, close the connection; the client asked for it and nothing is to be deleted.
    Quit(Bytes),
    /// Write the reply, close the connection; nothing is to be deleted.
    Close(Bytes),
}

/// A message to be streamed: `ok`, then the stored octets through a [`crate::DotStuffer`] and its terminator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retrieve {
    /// Index into the listing, from 0.
    pub index: usize,
    /// For TOP: header and so many lines, through a [`crate::TopLimiter`]. `None` for RETR.
    pub top: Option<u64>,
    /// The reply's first line.
    pub ok: Bytes,
}

/// Why the server ends a session by itself. Nothing is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Farewell {
    /// RFC 1939 §3: closed without a word.
    Idle,
    ShuttingDown,
    /// Too many connections; instead of the greeting.
    TooBusy,
    /// The account has been removed or disabled since it logged in.
    AccountDisabled,
}

/// See the crate's head for how to drive it.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    /// What the settings say, until STLS.
    tls: Tls,
    errors: u32,
    auth_failures: u32,
    lines: LineReader,
    state: State,
}

#[derive(Debug)]
enum State {
    Authorization {
        /// From USER, for PASS.
        user: Option<String>,
    },
    /// Within AUTH PLAIN.
    Sasl,
    TlsHandshake,
    /// `Login` is asked.
    LoggingIn,
    Transaction(Maildrop),
    /// Amid LIST or UIDL.
    Listing {
        maildrop: Maildrop,
        next: usize,
        what: Listed,
    },
    /// `Retrieve` is asked.
    Retrieving(Maildrop),
    /// `Update` is asked.
    Updating,
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listed {
    Octets,
    UniqueIds,
}

impl Session {
    pub fn new(settings: Settings) -> Session {
        Session {
            tls: settings.tls,
            settings,
            errors: 0,
            auth_failures: 0,
            lines: LineReader::default(),
            state: State::Authorization { user: None },
        }
    }

    /// The first reply. Without a timestamp: APOP is not offered.
    pub fn greeting(&self) -> Bytes {
        reply::ok("POP3 server ready")
    }

    /// The next event, taken from the front of `input`; `None` where more input, or an answer, is needed.
    pub fn step(&mut self, input: &mut BytesMut) -> Option<Event> {
        match &self.state {
            State::LoggingIn | State::Retrieving(_) | State::Updating => None,
            // RFC 2595 §2.1: whatever came in clear after STLS is not the client's.
            State::TlsHandshake | State::Closed => {
                input.clear();
                None
            }
            State::Listing { .. } => Some(self.go_on_listing()),
            State::Sasl => {
                let line = self.lines.next(input, AUTH_LINE_OCTETS_MAX)?;
                Some(self.on_sasl_line(line))
            }
            State::Authorization { .. } | State::Transaction(_) => {
                if self.lines.is_at_line_start() && input.first() == Some(&TLS_HANDSHAKE) {
                    return Some(self.close("this port begins in clear, TLS begins with STLS; closing"));
                }
                // An initial response makes AUTH as long as the exchange it stands for (RFC 5034 §4 would have 255).
                let auth = input.get(..5).is_some_and(|keyword| keyword.eq_ignore_ascii_case(b"AUTH "));
                let line = self.lines.next(input, if auth { AUTH_LINE_OCTETS_MAX } else { LINE_OCTETS_MAX })?;
                Some(self.on_line(line, input))
            }
        }
    }

    /// The handshake that [`Event::StartTls`] asked for is done: all that the client said before is forgotten.
    pub fn tls_started(&mut self) {
        if matches!(self.state, State::TlsHandshake) {
            self.tls = Tls::Active;
            self.lines = LineReader::default();
            self.state = State::Authorization { user: None };
        }
    }

    /// The open question cannot be answered with yes. The session goes on, except after `Update`.
    pub fn fail(&mut self, error: &MailError) -> Event {
        let bytes = reply::err(error.pop3_code().unwrap_or_default(), &error.to_string());
        match std::mem::replace(&mut self.state, State::Closed) {
            State::LoggingIn => match error {
                // Not to be told apart from a wrong password.
                MailError::NoSuchAccount | MailError::Denied => {
                    self.state = State::LoggingIn;
                    self.denied()
                }
                _ => {
                    self.state = State::Authorization { user: None };
                    Event::Reply(bytes)
                }
            },
            State::Retrieving(maildrop) => {
                self.state = State::Transaction(maildrop);
                Event::Reply(bytes)
            }
            // RFC 1939 §6.
            State::Updating => {
                let code = error.pop3_code().unwrap_or("SYS/TEMP");
                Event::Close(reply::err(code, "some deleted messages were not removed"))
            }
            other => {
                self.state = other;
                Event::Reply(bytes)
            }
        }
    }

    /// What to write when the server ends the session; the caller closes the connection. Empty when idle.
    pub fn farewell(&mut self, why: Farewell) -> Bytes {
        self.state = State::Closed;
        match why {
            Farewell::Idle => Bytes::new(),
            Farewell::ShuttingDown => reply::err("SYS/TEMP", "shutting down, try again"),
            Farewell::TooBusy => reply::err("SYS/TEMP", "too many connections, try again later"),
            Farewell::AccountDisabled => reply::err("AUTH", "account is disabled"),
        }
    }

    /// An event asked a question that is not yet answered.
    pub fn is_asking(&self) -> bool {
        matches!(self.state, State::LoggingIn | State::Retrieving(_) | State::Updating)
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn on_line(&mut self, line: Line, input: &mut BytesMut) -> Event {
        let line = match line {
            Line::Text(line) => line,
            Line::BadByte => return self.refuse("CR or NUL within a command line"),
            Line::TooLong => return self.refuse("command line too long"),
            Line::Endless => return self.close("command line too long, closing"),
            Line::BareLf => return self.refuse("lines end with CRLF, not with a bare LF"),
        };
        let Ok(text) = std::str::from_utf8(&line) else { return self.refuse("command is not UTF-8") };
        match Command::parse(text) {
            Ok(command) if matches!(self.state, State::Transaction(_)) => self.on_transaction_command(command),
            Ok(command) => self.on_authorization_command(command, input),
            Err(CommandError::Unknown) => self.refuse("unknown command"),
            Err(CommandError::Syntax(syntax)) => self.refuse(&format!("syntax: {syntax}")),
            Err(CommandError::Http) => self.close("this is POP3, not HTTP; closing"),
        }
    }

    /// RFC 2449 §5.
    fn capabilities(&self, in_authorization: bool) -> Event {
        let mut out = String::from("+OK capabilities follow\r\nTOP\r\nUIDL\r\n");
        if self.passwords_allowed() {
            out.push_str("USER\r\nSASL PLAIN\r\n");
        }
        // RFC 2595 §4: only where it can be used.
        if in_authorization && self.tls == Tls::Available {
            out.push_str("STLS\r\n");
        }
        out.push_str("PIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\n.\r\n");
        Event::Reply(out.into())
    }

    fn passwords_allowed(&self) -> bool {
        self.settings.cleartext_passwords || self.tls == Tls::Active
    }

    /// A refusal that counts towards the limit of errors; the last one closes the session.
    fn refuse(&mut self, text: &str) -> Event {
        self.errors = self.errors.saturating_add(1);
        if self.errors >= self.settings.errors_max {
            return self.close("too many errors, closing");
        }
        Event::Reply(reply::err("", text))
    }

    fn close(&mut self, text: &str) -> Event {
        self.state = State::Closed;
        Event::Close(reply::err("", text))
    }
}
