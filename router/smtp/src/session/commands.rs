//! Commands and their order (RFC 5321 §4.1).

use bytes::BytesMut;

use super::{Event, Helo, Mail, Question, Session, State};
use crate::{
    command::{Command, CommandError, MAIL_SYNTAX, RECIPIENT_SYNTAX, helo_name},
    line::Line,
    parameters::{ParameterError, mail_parameters, recipient_parameters},
    path::{ForwardPath, Path, PathError, parse_path},
    reply,
    settings::{AuthOffer, Tls},
};

/// The first octet of a TLS handshake record (RFC 8446 §5.1); no command begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

impl Session {
    /// `None` where the command goes on in its octets (BDAT).
    pub(super) fn on_command_line(&mut self, line: Line, input: &mut BytesMut) -> Option<Event> {
        let line = match line {
            Line::Text(line) => line,
            Line::BadByte => return Some(self.refuse(500, "5.5.2", "CR or NUL within a command line")),
            Line::TooLong => return Some(self.refuse(500, "5.5.2", "command line too long")),
            Line::Endless => return Some(self.close(500, "5.5.2", "command line too long, closing")),
            // Anything behind the LF may have been smuggled past a system that takes it for text (RFC 5321 §2.3.8).
            Line::BareLf => return Some(self.close(500, "5.5.2", "lines end with CRLF, not with a bare LF; closing")),
        };
        let Ok(text) = std::str::from_utf8(&line) else {
            return Some(match line.get(..5).map(|verb| verb.to_ascii_uppercase()).as_deref() {
                // RFC 6531 §3.1, §3.5.
                Some(b"MAIL " | b"RCPT ") => self.refuse(553, "5.6.7", "the address is not UTF-8"),
                _ => self.refuse(500, "5.5.2", "command not recognized"),
            });
        };
        match Command::parse(text) {
            Ok(command) => self.on_command(command, input),
            Err(CommandError::Unknown) => Some(self.refuse(500, "5.5.1", "command not recognized")),
            Err(CommandError::NotImplemented) => Some(self.refuse(502, "5.5.1", "command not implemented")),
            Err(CommandError::Syntax(syntax)) => Some(self.refuse(501, "5.5.4", &format!("syntax: {syntax}"))),
            Err(CommandError::Http) => Some(self.close(554, "5.5.0", "this is SMTP, not HTTP; closing")),
        }
    }

    /// A TLS hello on a port that speaks in clear holds no line end that could be waited for.
    pub(super) fn tls_hello(&mut self, input: &BytesMut) -> Option<Event> {
        if !self.lines.is_at_line_start() || input.first() != Some(&TLS_HANDSHAKE) {
            return None;
        }
        Some(self.close(554, "5.5.0", "this port begins in clear, TLS begins with STARTTLS; closing"))
    }

    fn on_command(&mut self, command: Command<'_>, input: &mut BytesMut) -> Option<Event> {
        let event = match command {
            Command::Ehlo(argument) => self.on_helo(argument, true),
            Command::Helo(argument) => self.on_helo(argument, false),
            Command::Mail(argument) => self.on_mail(argument),
            Command::Recipient(argument) => self.on_recipient(argument),
            Command::Data => self.on_data_command(input),
            Command::Bdat(argument) => return self.on_bdat(argument),
            Command::Reset => {
                let bytes = reply::line(250, "2.0.0", "ok");
                if self.transaction.take().is_some() { Event::Reset(bytes) } else { Event::Reply(bytes) }
            }
            Command::Noop => Event::Reply(reply::line(250, "2.0.0", "ok")),
            Command::Quit => {
                self.end();
                Event::Quit(reply::line(221, "2.0.0", &format!("{} goodbye", self.settings.hostname)))
            }
            // RFC 5321 §7.3: neither tells who exists.
            Command::Verify => Event::Reply(reply::line(252, "2.0.0", "cannot verify, but will try to deliver")),
            Command::Expand => self.refuse(502, "5.5.1", "command not implemented"),
            Command::Help => Event::Reply(reply::line(214, "2.0.0", "see RFC 5321")),
            Command::StartTls => self.on_starttls(input),
            Command::Auth(argument) => self.on_auth(argument),
        };
        Some(event)
    }

    fn on_helo(&mut self, argument: &str, extended: bool) -> Event {
        let Some(name) = helo_name(argument) else {
            let verb = if extended { "EHLO" } else { "HELO" };
            return self.refuse(501, "5.5.4", &format!("syntax: {verb} domain"));
        };
        self.helo = Some(Helo { name: name.to_owned(), extended });
        let bytes = if extended {
            reply::lines(250, &self.extensions())
        } else {
            reply::line(250, "", &self.settings.hostname)
        };
        // RFC 5321 §4.1.4: as if RSET had been given.
        if self.transaction.take().is_some() { Event::Reset(bytes) } else { Event::Reply(bytes) }
    }

    fn extensions(&self) -> Vec<String> {
        let mut lines = vec![self.settings.hostname.clone()];
        let mut add = |line: &str| lines.push(line.to_owned());
        add("PIPELINING");
        add(&format!("SIZE {}", self.settings.size_max));
        add("8BITMIME");
        add("SMTPUTF8");
        add("ENHANCEDSTATUSCODES");
        add("CHUNKING");
        // RFC 3207 §4.2: not once TLS is active.
        if self.tls == Tls::Available {
            add("STARTTLS");
        }
        if self.auth_offered() && !self.authenticated {
            add("AUTH PLAIN LOGIN");
        }
        lines
    }

    pub(super) fn auth_offered(&self) -> bool {
        match self.settings.auth {
            AuthOffer::Never => false,
            AuthOffer::OverTls => self.tls == Tls::Active,
            AuthOffer::Always => true,
        }
    }

    fn on_mail(&mut self, argument: &str) -> Event {
        if self.helo.is_none() {
            return self.refuse(503, "5.5.1", "send EHLO first");
        }
        if self.settings.auth_required && !self.authenticated {
            return self.refuse(530, "5.7.0", "authentication required");
        }
        if self.transaction.is_some() {
            return self.refuse(503, "5.5.1", "nested MAIL command");
        }
        let (path, rest) = match parse_path(argument) {
            Ok(parsed) => parsed,
            Err(error) => return self.refuse_path(error, "5.1.7", MAIL_SYNTAX),
        };
        let reverse_path = match path {
            Path::Null => None,
            Path::Mailbox { mailbox, .. } => Some(mailbox),
            Path::Postmaster => return self.refuse_path(PathError::NoDomain, "5.1.7", MAIL_SYNTAX),
        };
        let parameters = match mail_parameters(rest, self.auth_offered()) {
            Ok(parameters) => parameters,
            Err(error) => return self.refuse_parameter(error, MAIL_SYNTAX),
        };
        if !parameters.smtputf8 && reverse_path.as_ref().is_some_and(|mailbox| !mailbox.is_ascii()) {
            return self.refuse(553, "5.6.7", "a non-ASCII address needs SMTPUTF8");
        }
        // RFC 1870 §6.1.
        if parameters.size.is_some_and(|size| size > self.settings.size_max) {
            return self.refuse(552, "5.3.4", "message is larger than the limit");
        }
        self.state = State::Ask(Question::Mail { smtputf8: parameters.smtputf8 });
        let (size, body, smtputf8) = (parameters.size, parameters.body, parameters.smtputf8);
        Event::Mail(Mail { reverse_path, size, body, smtputf8 })
    }

    fn on_recipient(&mut self, argument: &str) -> Event {
        let Some(transaction) = &self.transaction else {
            return self.refuse(503, "5.5.1", "send MAIL first");
        };
        if transaction.chunked {
            return self.refuse(503, "5.5.1", "RCPT after BDAT");
        }
        let smtputf8 = transaction.smtputf8;
        let full = transaction.recipients >= self.settings.recipients_max
            || transaction.refused >= self.settings.recipients_max;
        let (path, rest) = match parse_path(argument) {
            Ok(parsed) => parsed,
            Err(error) => return self.refuse_path(error, "5.1.3", RECIPIENT_SYNTAX),
        };
        let forward_path = match path {
            Path::Null => return self.refuse_path(PathError::LocalPart, "5.1.3", RECIPIENT_SYNTAX),
            Path::Postmaster => ForwardPath::Postmaster,
            // RFC 5321 §3.6.1, appendix C: read, but not followed. Whoever sends one wants to relay.
            Path::Mailbox { routed: true, .. } => return self.refuse(550, "5.7.1", "source routes are not accepted"),
            Path::Mailbox { mailbox, routed: false } => ForwardPath::Mailbox(mailbox),
        };
        if let Err(error) = recipient_parameters(rest) {
            return self.refuse_parameter(error, RECIPIENT_SYNTAX);
        }
        if !smtputf8 && matches!(&forward_path, ForwardPath::Mailbox(mailbox) if !mailbox.is_ascii()) {
            return self.refuse(553, "5.6.7", "a non-ASCII address needs SMTPUTF8");
        }
        if full {
            // RFC 5321 §4.5.3.1.10. Not an error of the client's: it sends the rest in another transaction.
            return Event::Reply(reply::line(452, "4.5.3", "too many recipients in one transaction"));
        }
        self.state = State::Ask(Question::Recipient);
        Event::Recipient(forward_path)
    }

    fn on_starttls(&mut self, input: &mut BytesMut) -> Event {
        match self.tls {
            Tls::Unavailable => return self.refuse(502, "5.5.1", "STARTTLS is not available"),
            Tls::Active => return self.refuse(503, "5.5.1", "TLS is already active"),
            Tls::Available => {}
        }
        if self.helo.is_none() {
            return self.refuse(503, "5.5.1", "send EHLO first");
        }
        input.clear();
        self.transaction = None;
        self.state = State::TlsHandshake;
        Event::StartTls(reply::line(220, "2.0.0", "ready to start TLS"))
    }

    fn refuse_path(&mut self, error: PathError, enhanced: &'static str, syntax: &str) -> Event {
        match error {
            PathError::NoBrackets => self.refuse(501, "5.5.4", &format!("syntax: {syntax}")),
            PathError::NoDomain | PathError::LocalPart | PathError::Domain | PathError::Route => {
                self.refuse(501, enhanced, &error.to_string())
            }
        }
    }

    fn refuse_parameter(&mut self, error: ParameterError, syntax: &str) -> Event {
        match error {
            ParameterError::Unknown => self.refuse(555, "5.5.4", "parameter not recognized or not implemented"),
            ParameterError::Invalid => self.refuse(501, "5.5.4", &format!("invalid parameter; syntax: {syntax}")),
        }
    }
}
