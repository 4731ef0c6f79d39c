//! The server's side of one SMTP session (RFC 5321 §3, §4.1.4): order, limits, and the replies that need no one else.

mod auth;
mod commands;
mod content;

use bytes::{Bytes, BytesMut};
use types::SmtpReply;

use crate::{
    data::DataDecoder,
    line::{AUTH_LINE_OCTETS_MAX, LINE_OCTETS_MAX, Line, LineReader},
    parameters::Body,
    path::{ForwardPath, Mailbox},
    received::ReceivedCounter,
    reply,
    sasl::Credentials,
    settings::{Settings, Tls},
    trace::Protocol,
};

/// What the caller must do next. Bytes are replies, to be written in the order in which they come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Reply(Bytes),
    /// Write the reply; the mail transaction that was open is over without a message (RSET, EHLO).
    Reset(Bytes),
    /// Write and flush the reply, do the TLS handshake on a fresh buffer, call [`Session::tls_started`]. An open
    /// transaction is over.
    StartTls(Bytes),
    /// Question: may a transaction from this reverse-path begin?
    Mail(Mail),
    /// Question: is this recipient accepted?
    Recipient(ForwardPath),
    /// Question: may the content come? [`Session::accept`] answers 354; a no ends the transaction.
    Data,
    /// Content exactly as the sender had it. The first of a transaction follows `Data`, or comes unasked by BDAT.
    Content(Bytes),
    /// The content that came so far is to be forgotten; a 5xx reply follows once the client has sent all of it.
    ContentAborted(AbortReason),
    /// Question: the message is complete; is it stored? It may be empty. A 2xx answer promises that it is
    /// (RFC 5321 §6.1). Any answer ends the transaction.
    ContentEnd {
        octets: u64,
    },
    /// Question: are these credentials right? Answer 235, 535 5.7.8 or 454 4.7.0.
    Auth(Credentials),
    /// Write the reply, close the connection; the client asked for it.
    Quit(Bytes),
    /// Write the reply, close the connection. An open transaction is over.
    Close(Bytes),
}

/// A MAIL command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mail {
    /// `None` is the null reverse-path `<>` (RFC 5321 §4.5.5). A source route was ignored.
    pub reverse_path: Option<Mailbox>,
    /// The sender's estimate in octets, not above the limit (RFC 1870).
    pub size: Option<u64>,
    pub body: Body,
    pub smtputf8: bool,
}

/// Why content is refused before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbortReason {
    /// 552 5.3.4.
    TooLarge,
    /// 554 5.6.0: a smuggling mark, or bare newlines where those are refused.
    BareNewline,
    /// 554 5.4.6: more Received fields than the limit.
    MailLoop,
}

impl AbortReason {
    fn reply(self) -> (u16, &'static str, &'static str) {
        match self {
            AbortReason::TooLarge => (552, "5.3.4", "message is larger than the limit"),
            AbortReason::BareNewline => (554, "5.6.0", "bare CR or LF is not allowed here; use CHUNKING"),
            AbortReason::MailLoop => (554, "5.4.6", "too many Received fields: mail loop"),
        }
    }
}

/// Why the server ends a session by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Farewell {
    /// RFC 5321 §4.5.3.2.7.
    Idle,
    ShuttingDown,
    /// Too many connections; instead of the greeting.
    TooBusy,
}

/// See the crate's head for how to drive it.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    /// What the settings say, until STARTTLS.
    tls: Tls,
    helo: Option<Helo>,
    authenticated: bool,
    errors: u32,
    auth_failures: u32,
    lines: LineReader,
    transaction: Option<Transaction>,
    state: State,
}

#[derive(Debug)]
struct Helo {
    name: String,
    extended: bool,
}

/// From an accepted MAIL on.
#[derive(Debug, Default)]
struct Transaction {
    smtputf8: bool,
    recipients: usize,
    /// Recipients that the caller refused.
    refused: usize,
    /// BDAT was used: DATA is out of order (RFC 3030 §2).
    chunked: bool,
    octets: u64,
    received: ReceivedCounter,
    aborted: Option<AbortReason>,
    /// Octets of refused content that were read and dropped.
    drained: u64,
}

#[derive(Debug)]
enum State {
    Command,
    /// An event asked a question; nothing is read until it is answered.
    Ask(Question),
    Sasl(SaslStep),
    Data(DataDecoder),
    Chunk(Chunk),
    TlsHandshake,
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum Question {
    Mail { smtputf8: bool },
    Recipient,
    Data,
    Content,
    Auth,
}

#[derive(Debug)]
enum SaslStep {
    Plain,
    LoginUser,
    LoginPassword { user: String },
}

/// Within the octets of a BDAT command.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    size: u64,
    left: u64,
    last: bool,
    /// Out of order: the octets are dropped, then this is answered (RFC 3030 §2).
    refused: Option<(u16, &'static str, &'static str)>,
}

impl Session {
    pub fn new(settings: Settings) -> Session {
        Session {
            tls: settings.tls,
            settings,
            helo: None,
            authenticated: false,
            errors: 0,
            auth_failures: 0,
            lines: LineReader::default(),
            transaction: None,
            state: State::Command,
        }
    }

    /// The first reply. A client that has spoken before it is not a mail server: it gets 554 (RFC 5321 §3.1, §4.3.1).
    pub fn greeting(&mut self, early_talker: bool) -> Event {
        if early_talker {
            self.state = State::Closed;
            let text =
                format!("{} no SMTP service for clients that do not wait for the greeting", self.settings.hostname);
            return Event::Close(reply::line(554, "", &text));
        }
        Event::Reply(reply::line(220, "", &format!("{} ESMTP", self.settings.hostname)))
    }

    /// The next event, taken from the front of `input`; `None` where more input, or an answer, is needed.
    pub fn step(&mut self, input: &mut BytesMut) -> Option<Event> {
        loop {
            let event = match &self.state {
                State::Ask(_) => return None,
                // RFC 3207 §4.2: whatever came in clear after STARTTLS is not the client's.
                State::TlsHandshake | State::Closed => {
                    input.clear();
                    return None;
                }
                State::Command => {
                    if let Some(event) = self.tls_hello(input) {
                        return Some(event);
                    }
                    let line = self.command_line(input)?;
                    self.on_command_line(line, input)
                }
                State::Sasl(_) => {
                    let line = self.lines.next(input, AUTH_LINE_OCTETS_MAX)?;
                    Some(self.on_sasl_line(line))
                }
                State::Data(_) => self.on_data(input)?,
                State::Chunk(_) => self.on_chunk(input)?,
            };
            if event.is_some() {
                return event;
            }
        }
    }

    /// Answers the open question. A code below 400 is a yes. Without an open question the reply is only rendered.
    pub fn answer(&mut self, reply: &SmtpReply) -> Event {
        let bytes = reply::render(reply);
        let yes = reply.code < 400;
        let State::Ask(question) = self.state else { return Event::Reply(bytes) };
        self.state = State::Command;
        match question {
            Question::Mail { smtputf8 } => {
                self.transaction = yes.then(|| Transaction { smtputf8, ..Transaction::default() });
            }
            Question::Recipient => {
                if let Some(transaction) = &mut self.transaction {
                    let count = if yes { &mut transaction.recipients } else { &mut transaction.refused };
                    *count = count.saturating_add(1);
                }
            }
            Question::Data if yes => self.state = State::Data(DataDecoder::new(self.settings.bare_newlines)),
            // Clients differ in whether they send RSET now; none counts on the transaction to go on.
            Question::Data => self.transaction = None,
            Question::Content => {
                self.transaction = None;
                if yes {
                    self.errors = 0;
                }
            }
            Question::Auth if yes => self.authenticated = true,
            Question::Auth => {
                self.auth_failures = self.auth_failures.saturating_add(1);
                if self.auth_failures >= self.settings.auth_failures_max {
                    return self.close_after(&bytes, "4.7.0", "too many failed logins");
                }
            }
        }
        if reply.code == 421 {
            self.end();
            return Event::Close(bytes);
        }
        Event::Reply(bytes)
    }

    /// Answers the open question with yes, in the usual words; 354 to `Data`.
    pub fn accept(&mut self) -> Event {
        let (code, enhanced, text) = match &self.state {
            State::Ask(Question::Mail { .. }) => (250, "2.1.0", "sender ok"),
            State::Ask(Question::Recipient) => (250, "2.1.5", "recipient ok"),
            // RFC 2034 §4: no enhanced code here.
            State::Ask(Question::Data) => (354, "", "go ahead, end with <CRLF>.<CRLF>"),
            State::Ask(Question::Auth) => (235, "2.7.0", "authentication successful"),
            _ => (250, "2.0.0", "ok"),
        };
        self.answer(&SmtpReply { code, enhanced, text: text.to_owned() })
    }

    /// The handshake that [`Event::StartTls`] asked for is done: all that the client said before is forgotten
    /// (RFC 3207 §4.2).
    pub fn tls_started(&mut self) {
        if matches!(self.state, State::Closed) {
            return;
        }
        self.tls = Tls::Active;
        self.helo = None;
        self.authenticated = false;
        self.transaction = None;
        self.lines = LineReader::default();
        self.state = State::Command;
    }

    /// The last reply of a session that the server ends; the caller closes the connection.
    pub fn farewell(&mut self, why: Farewell) -> Bytes {
        self.end();
        let host = &self.settings.hostname;
        match why {
            Farewell::Idle => reply::line(421, "4.4.2", &format!("{host} idle for too long, closing")),
            Farewell::ShuttingDown => reply::line(421, "4.3.2", &format!("{host} is shutting down, try again")),
            Farewell::TooBusy => reply::line(421, "", &format!("{host} has too many connections, try again later")),
        }
    }

    /// The client's argument to EHLO or HELO: printable ASCII without spaces and parentheses.
    pub fn helo(&self) -> Option<&str> {
        self.helo.as_ref().map(|helo| helo.name.as_str())
    }

    /// How the present transaction's message comes, for its Received field.
    pub fn protocol(&self) -> Protocol {
        Protocol {
            extended: self.helo.as_ref().is_some_and(|helo| helo.extended),
            tls: self.tls == Tls::Active,
            authenticated: self.authenticated,
            smtputf8: self.transaction.as_ref().is_some_and(|transaction| transaction.smtputf8),
        }
    }

    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// An event asked a question that is not yet answered.
    pub fn is_asking(&self) -> bool {
        matches!(self.state, State::Ask(_))
    }

    /// Content is on its way. A connection that drops now leaves nothing to store.
    pub fn is_receiving(&self) -> bool {
        matches!(self.state, State::Data(_) | State::Chunk(_))
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn command_line(&mut self, input: &mut BytesMut) -> Option<Line> {
        let auth = input.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        self.lines.next(input, if auth { AUTH_LINE_OCTETS_MAX } else { LINE_OCTETS_MAX })
    }

    /// A refusal that counts towards the limit of errors; the last one brings 421 with it.
    fn refuse(&mut self, code: u16, enhanced: &'static str, text: &str) -> Event {
        self.errors = self.errors.saturating_add(1);
        let bytes = reply::line(code, enhanced, text);
        if self.errors >= self.settings.errors_max {
            return self.close_after(&bytes, "4.7.0", "too many errors");
        }
        Event::Reply(bytes)
    }

    /// A refusal after which the stream's framing, or the client, cannot be trusted.
    fn close(&mut self, code: u16, enhanced: &'static str, text: &str) -> Event {
        self.end();
        Event::Close(reply::line(code, enhanced, text))
    }

    /// 421 may follow any reply (RFC 5321 §3.8).
    fn close_after(&mut self, bytes: &[u8], enhanced: &'static str, text: &str) -> Event {
        self.end();
        let farewell = reply::line(421, enhanced, &format!("{} {text}, closing", self.settings.hostname));
        Event::Close([bytes, &farewell].concat().into())
    }

    fn end(&mut self) {
        self.transaction = None;
        self.state = State::Closed;
    }
}
