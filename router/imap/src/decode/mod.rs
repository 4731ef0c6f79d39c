//! From the octets of a connection to events. It gathers one command at a time, lets the session decide about each
//! message to be appended, and finds the way back to a line's beginning after whatever it refused.
//!
//! ```text
//!              line ends in literal             octets are in
//!   Command ───────────────────────▶ Literal ─────────────────▶ Command
//!      │  APPEND's message                accept_literal           closing CRLF
//!      ├─────────────────────▶ Undecided ────────────────▶ Append ─────────────▶ Command
//!      │                           │ refuse_literal           │ NUL, garbage
//!      │ refused, literal follows  ▼                          ▼
//!      └────────────────────────▶ Skip ──── line end ───────────────▶ Command
//! ```
//!
//! Invariant: at most one command's lines and literals are held, both bounded by [`Limits`]; between commands nothing.

mod event;
mod line;

use std::fmt;

use bytes::{Bytes, BytesMut};
pub use event::{AppendStart, Event, Limits, SaslResponse};
use line::{Announced, announced_literal, is_http_request};

use crate::command::{Secret, Tag};
use crate::parse::{self, AppendPrefix, Bad};

pub struct Decoder {
    limits: Limits,
    mode: Mode,
    /// The command so far: its lines and literals as they came.
    command: Vec<u8>,
    /// Where the current line begins in `command`: 0, or after a literal.
    line_start: usize,
    /// Sums over the command.
    line_octets: usize,
    literal_octets: u64,
    literals: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Command,
    Literal {
        left: usize,
    },
    /// AppendStart is out; the session has not answered.
    Undecided(Announced),
    /// Accepted, and the client waits for `+`.
    Continue {
        size: u64,
    },
    Append {
        left: u64,
    },
    /// The message is in; the closing CRLF is not.
    AppendTail,
    /// The session or the parser refused: octets of a literal, then the rest of the line, are dropped.
    Skip {
        left: u64,
        budget: u64,
    },
    SkipLine {
        budget: u64,
    },
    /// A reason to close the connection, not told yet.
    Dying(&'static str),
    Dead,
    Sasl,
    Idle,
}

enum Step {
    Event(Event),
    Again,
    NeedMore,
}

/// What happened to the line that was being gathered.
enum Line {
    Partial,
    TooLong,
    /// Whole, its LF included.
    Whole,
}

const LINE_TOO_LONG: &str = "command line too long";
const LITERAL_TOO_LARGE: &str = "literal too large";
const NOT_CRLF: &str = "a line must end in CRLF";

impl Decoder {
    pub fn new(limits: Limits) -> Decoder {
        Decoder {
            limits,
            mode: Mode::Command,
            command: Vec::new(),
            line_start: 0,
            line_octets: 0,
            literal_octets: 0,
            literals: 0,
        }
    }

    /// The next command is held to these.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Forgets a half-read command and every mode: for use after STARTTLS, once the caller has emptied its own
    /// buffer (RFC 3501 §6.2.1).
    pub fn reset(&mut self) {
        *self = Decoder::new(self.limits);
    }

    /// Whether a command has begun and not ended: a pause here is the client's, not idleness.
    pub fn is_amid_command(&self) -> bool {
        !self.command.is_empty() || !matches!(self.mode, Mode::Command | Mode::Idle | Mode::Sasl | Mode::Dead)
    }

    /// The next line answers an AUTHENTICATE challenge. To be called before the challenge is written.
    pub fn expect_sasl_response(&mut self) {
        self.expect(Mode::Sasl);
    }

    /// The next line should be DONE (RFC 2177).
    pub fn expect_done(&mut self) {
        self.expect(Mode::Idle);
    }

    fn expect(&mut self, mode: Mode) {
        if self.mode == Mode::Command && self.command.is_empty() {
            self.mode = mode;
        }
    }

    /// Takes the message that AppendStart announced. If it is synchronising, the next event is Continue.
    pub fn accept_literal(&mut self) {
        if let Mode::Undecided(literal) = self.mode {
            self.mode = if literal.synchronising {
                Mode::Continue { size: literal.size }
            } else {
                Mode::Append { left: literal.size }
            };
        }
    }

    /// Refuses the message that AppendStart announced; the session answers the command with a tagged NO or BAD. A
    /// synchronising literal will not come (RFC 7889 §4); another is dropped as it comes, or, when it is above
    /// `drain_octets_max`, ends the connection.
    pub fn refuse_literal(&mut self) {
        if let Mode::Undecided(literal) = self.mode {
            self.skip(Some(literal));
        }
    }

    /// The next event in `input`, or None if that takes more octets, or the session's decision about AppendStart.
    /// What belongs to later commands stays in `input`.
    pub fn decode(&mut self, input: &mut BytesMut) -> Option<Event> {
        loop {
            match self.step(input) {
                Step::Event(event) => return Some(event),
                Step::Again => {}
                Step::NeedMore => return None,
            }
        }
    }

    fn step(&mut self, input: &mut BytesMut) -> Step {
        match self.mode {
            Mode::Command => self.command_line(input),
            Mode::Literal { left } => self.literal(input, left),
            Mode::Undecided(_) => Step::NeedMore,
            Mode::Continue { size } => {
                self.mode = Mode::Append { left: size };
                Step::Event(Event::Continue)
            }
            Mode::Append { left } => self.append_data(input, left),
            Mode::AppendTail => self.append_tail(input),
            Mode::Skip { left, budget } => self.skip_literal(input, left, budget),
            Mode::SkipLine { budget } => self.skip_line(input, budget),
            Mode::Dying(text) => self.fatal(text),
            Mode::Dead => {
                input.clear();
                Step::NeedMore
            }
            Mode::Sasl => self.sasl_line(input),
            Mode::Idle => self.idle_line(input),
        }
    }

    /// Moves octets up to and with the next LF from `input` to `command`.
    fn gather_line(&mut self, input: &mut BytesMut) -> Line {
        let room = self.limits.line_octets_max.saturating_sub(self.line_octets);
        let seen = input.len().min(room);
        let window = input.get(..seen).unwrap_or_default();
        let end = window.contains(&b'\n').then(|| window.iter().position(|b| *b == b'\n')).flatten();
        let length = match end {
            Some(at) => at + 1,
            None if input.len() > seen => return Line::TooLong,
            None => seen,
        };
        self.command.extend_from_slice(&input.split_to(length));
        self.line_octets += length;
        if end.is_some() { Line::Whole } else { Line::Partial }
    }

    fn command_line(&mut self, input: &mut BytesMut) -> Step {
        // The first octet of a TLS record (RFC 8446 §5.1) begins no tag.
        if self.command.is_empty() && input.first() == Some(&0x16) {
            return self.fatal("TLS is not spoken here; use STARTTLS");
        }
        match self.gather_line(input) {
            Line::Partial => return Step::NeedMore,
            Line::TooLong => return self.fatal(LINE_TOO_LONG),
            Line::Whole => {}
        }
        let line = self.command.get(self.line_start..).unwrap_or_default();
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return self.bad(Bad(NOT_CRLF), None);
        };
        if self.line_start == 0 && is_http_request(line) {
            return self.fatal("this is an IMAP server");
        }
        let has_nul = line.contains(&0);
        let literal = announced_literal(line);
        if has_nul {
            return self.bad(Bad("NUL in a command"), literal);
        }
        match literal {
            Some(literal) => self.announced(literal),
            None => {
                let text = self.command.strip_suffix(b"\r\n").unwrap_or_default();
                match parse::command(text) {
                    Ok(command) => {
                        self.begin_command();
                        Step::Event(Event::Command(command))
                    }
                    Err(bad) => self.bad(bad, None),
                }
            }
        }
    }

    fn announced(&mut self, literal: Announced) -> Step {
        let before = self.command.get(..self.line_start + literal.at).unwrap_or_default();
        let prefix = match parse::head(before).and_then(|tag| Ok((tag, parse::append_prefix(before)?))) {
            Ok(prefix) => prefix,
            Err(bad) => return self.bad(bad, Some(literal)),
        };
        // RFC 7888 §5: LITERAL- allows no larger one.
        if !literal.synchronising && literal.size > self.limits.non_synchronising_octets_max {
            return self.too_big(prefix.0, literal);
        }
        match prefix {
            (_, AppendPrefix::Message { tag, mailbox, flags, date }) => {
                if literal.size == 0 {
                    return self.bad(Bad("a message must not be empty"), Some(literal));
                }
                if literal.size > self.limits.append_octets_max {
                    return self.too_big(tag, literal);
                }
                self.forget_text();
                self.mode = Mode::Undecided(literal);
                let Announced { size, synchronising, .. } = literal;
                Step::Event(Event::AppendStart(AppendStart { tag, mailbox, flags, date, size, synchronising }))
            }
            (tag, AppendPrefix::NotAppend | AppendPrefix::Mailbox) => self.announced_argument(tag, literal),
        }
    }

    fn announced_argument(&mut self, tag: Tag, literal: Announced) -> Step {
        if self.literals == self.limits.literals_max {
            return self.bad(Bad("too many literals"), Some(literal));
        }
        let total = self.literal_octets.saturating_add(literal.size);
        let Some(left) = usize::try_from(literal.size).ok().filter(|_| total <= self.limits.literal_octets_max) else {
            return self.too_big(tag, literal);
        };
        self.literals += 1;
        self.literal_octets = total;
        self.mode = Mode::Literal { left };
        if literal.synchronising { Step::Event(Event::Continue) } else { Step::Again }
    }

    fn literal(&mut self, input: &mut BytesMut, left: usize) -> Step {
        let length = left.min(input.len());
        self.command.extend_from_slice(&input.split_to(length));
        if length < left {
            self.mode = Mode::Literal { left: left - length };
            return Step::NeedMore;
        }
        self.line_start = self.command.len();
        self.mode = Mode::Command;
        Step::Again
    }

    fn append_data(&mut self, input: &mut BytesMut, left: u64) -> Step {
        if left == 0 {
            self.mode = Mode::AppendTail;
            return Step::Again;
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        if length == 0 {
            return Step::NeedMore;
        }
        let piece = input.get(..length).unwrap_or_default();
        // CHAR8 has no NUL (RFC 3501 §4.3); literal8 is another matter.
        let nul = if piece.contains(&0) { piece.iter().position(|b| *b == 0) } else { None };
        if nul == Some(0) {
            self.mode = Mode::Skip { left, budget: self.limits.drain_octets_max };
            return Step::Event(Event::AppendBad { text: "NUL in the message" });
        }
        let data: Bytes = input.split_to(nul.unwrap_or(length)).freeze();
        self.mode = Mode::Append { left: left - data.len() as u64 };
        Step::Event(Event::AppendData(data))
    }

    fn append_tail(&mut self, input: &mut BytesMut) -> Step {
        let bad = Step::Event(Event::AppendBad { text: "unexpected text after the message" });
        let Some(&octet) = input.first() else { return Step::NeedMore };
        match (self.command.as_slice(), octet) {
            ([], b'\r') => {
                self.command.extend_from_slice(&input.split_to(1));
                Step::Again
            }
            ([b'\r'], b'\n') => {
                drop(input.split_to(1));
                self.begin_command();
                Step::Event(Event::AppendEnd)
            }
            _ => {
                self.forget_text();
                self.mode = Mode::SkipLine { budget: self.limits.drain_octets_max };
                bad
            }
        }
    }

    fn skip_literal(&mut self, input: &mut BytesMut, left: u64, budget: u64) -> Step {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        drop(input.split_to(length));
        let left = left - length as u64;
        if left > 0 {
            self.mode = Mode::Skip { left, budget };
            return Step::NeedMore;
        }
        self.mode = Mode::SkipLine { budget };
        Step::Again
    }

    fn skip_line(&mut self, input: &mut BytesMut, budget: u64) -> Step {
        match self.gather_line(input) {
            Line::Partial => Step::NeedMore,
            Line::TooLong => self.fatal(LINE_TOO_LONG),
            Line::Whole => {
                let line = self.command.strip_suffix(b"\r\n").unwrap_or_default();
                let literal = announced_literal(line);
                let Some(budget) = budget.checked_sub(self.command.len() as u64) else {
                    return self.fatal(LINE_TOO_LONG);
                };
                self.skip_within(literal, budget);
                Step::Again
            }
        }
    }

    fn sasl_line(&mut self, input: &mut BytesMut) -> Step {
        match self.gather_line(input) {
            Line::Partial => Step::NeedMore,
            Line::TooLong => self.fatal(LINE_TOO_LONG),
            Line::Whole => {
                let response = match self.command.strip_suffix(b"\r\n") {
                    Some(b"*") => SaslResponse::Cancel,
                    Some(line) => match parse::base64(line) {
                        Some(octets) => SaslResponse::Data(Secret::new(octets)),
                        None => SaslResponse::Bad,
                    },
                    None => SaslResponse::Bad,
                };
                self.begin_command();
                Step::Event(Event::AuthenticateLine(response))
            }
        }
    }

    fn idle_line(&mut self, input: &mut BytesMut) -> Step {
        match self.gather_line(input) {
            Line::Partial => Step::NeedMore,
            Line::TooLong => self.fatal(LINE_TOO_LONG),
            Line::Whole => {
                let done = self.command.eq_ignore_ascii_case(b"DONE\r\n");
                self.begin_command();
                Step::Event(if done { Event::IdleDone } else { Event::IdleBad { text: "expected DONE" } })
            }
        }
    }

    /// Refuses the command. `literal` is what its line announced: if the client sends it unasked, it is dropped.
    fn bad(&mut self, bad: Bad, literal: Option<Announced>) -> Step {
        let tag = parse::tag_of(&self.command);
        self.skip(literal);
        Step::Event(Event::Bad { tag, text: bad.0 })
    }

    /// RFC 7889 §4: a synchronising literal is refused before it is sent.
    fn too_big(&mut self, tag: Tag, literal: Announced) -> Step {
        self.skip(Some(literal));
        if let Mode::Dying(text) = self.mode {
            return self.fatal(text);
        }
        Step::Event(Event::TooBig { tag, text: LITERAL_TOO_LARGE })
    }

    fn skip(&mut self, literal: Option<Announced>) {
        self.skip_within(literal, self.limits.drain_octets_max);
    }

    fn skip_within(&mut self, literal: Option<Announced>, budget: u64) {
        self.begin_command();
        if let Some(literal) = literal.filter(|literal| !literal.synchronising) {
            self.mode = match budget.checked_sub(literal.size) {
                Some(budget) => Mode::Skip { left: literal.size, budget },
                None => Mode::Dying(LITERAL_TOO_LARGE),
            };
        }
    }

    fn fatal(&mut self, text: &'static str) -> Step {
        self.begin_command();
        self.mode = Mode::Dead;
        Step::Event(Event::Fatal { text })
    }

    fn begin_command(&mut self) {
        self.forget_text();
        self.mode = Mode::Command;
    }

    /// Gives the memory back, too: thousands of sessions are idle at a time.
    fn forget_text(&mut self) {
        self.command = Vec::new();
        self.line_start = 0;
        self.line_octets = 0;
        self.literal_octets = 0;
        self.literals = 0;
    }
}

/// Shows no octets: they may be a password.
impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("mode", &self.mode).field("held", &self.command.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{Decoder, Event, Limits};

    #[test]
    fn between_commands_no_memory_is_held() {
        let mut decoder = Decoder::new(Limits::AFTER_LOGIN);
        let long = "x".repeat(60_000);
        for wire in [
            format!("a SEARCH TEXT {long}\r\n"),
            format!("a LOGIN x {{60000+}}\r\n{long}\r\n"),
            format!("a FOO {long}\r\n"),
            format!("a APPEND {long} {{60000+}}\r\n{long}\r\n"),
            format!("a FOO {{60000+}}\r\n{long} {long}\r\n"),
        ] {
            let mut input = BytesMut::from(wire.as_bytes());
            while let Some(event) = decoder.decode(&mut input) {
                if matches!(event, Event::AppendStart(_)) {
                    assert_eq!(decoder.command.capacity(), 0);
                    decoder.accept_literal();
                }
            }
            assert_eq!(decoder.command.capacity(), 0);
            assert!(!decoder.is_amid_command());
        }
    }

    #[test]
    fn an_announced_size_reserves_nothing() {
        let mut decoder = Decoder::new(Limits::AFTER_LOGIN);
        let mut input = BytesMut::from(&b"a LOGIN {60000+}\r\nx"[..]);
        assert_eq!(decoder.decode(&mut input), None);
        assert!(decoder.command.capacity() < 1_000);
        assert!(!format!("{decoder:?}").contains("LOGIN"));
    }
}
