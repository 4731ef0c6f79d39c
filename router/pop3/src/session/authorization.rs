//! The AUTHORIZATION state: USER and PASS (RFC 1939 §7), AUTH (RFC 5034), STLS (RFC 2595).

use bytes::{Bytes, BytesMut};

use super::{Event, Session, State, Tls};
use crate::{
    command::Command,
    line::Line,
    maildrop::Maildrop,
    reply,
    sasl::{Credentials, Password, plain},
};

impl Session {
    /// Answers [`Event::Login`]: the maildrop is locked and is this.
    pub fn logged_in(&mut self, maildrop: Maildrop) -> Event {
        if !matches!(self.state, State::LoggingIn) {
            return self.close("not logging in");
        }
        let bytes = reply::ok(&format!("{} messages ({} octets)", maildrop.live(), maildrop.live_octets()));
        self.state = State::Transaction(maildrop);
        Event::Reply(bytes)
    }

    /// Answers [`Event::Login`]: unknown account or wrong password, not told apart (RFC 3206 §4).
    pub fn denied(&mut self) -> Event {
        let bytes = reply::err("AUTH", "invalid user name or password");
        if !matches!(self.state, State::LoggingIn) {
            return Event::Reply(bytes);
        }
        self.auth_failures = self.auth_failures.saturating_add(1);
        if self.auth_failures >= self.settings.auth_failures_max {
            self.state = State::Closed;
            return Event::Close(bytes);
        }
        self.state = State::Authorization { user: None };
        Event::Reply(bytes)
    }

    pub(super) fn on_authorization_command(&mut self, command: Command<'_>, input: &mut BytesMut) -> Event {
        match command {
            Command::User(name) => self.on_user(name),
            Command::Pass(password) => self.on_pass(password),
            Command::Auth { mechanism, initial } => self.on_auth(mechanism, initial),
            Command::StartTls => self.on_stls(input),
            Command::Capabilities => self.capabilities(true),
            Command::Quit => {
                self.state = State::Closed;
                Event::Quit(reply::ok("goodbye"))
            }
            Command::Apop => self.refuse("APOP is not supported"),
            Command::Stat
            | Command::List(_)
            | Command::Uidl(_)
            | Command::Retrieve(_)
            | Command::Top { .. }
            | Command::Delete(_)
            | Command::Noop
            | Command::Last
            | Command::Reset => self.refuse("log in first"),
        }
    }

    /// Whether the account exists is not told (RFC 1939 §13).
    fn on_user(&mut self, name: &str) -> Event {
        if !self.passwords_allowed() {
            return self.refuse(USE_STLS);
        }
        self.state = State::Authorization { user: Some(name.to_owned()) };
        Event::Reply(reply::ok("send PASS"))
    }

    fn on_pass(&mut self, password: &str) -> Event {
        if !self.passwords_allowed() {
            return self.refuse(USE_STLS);
        }
        let State::Authorization { user } = &mut self.state else { return self.refuse("send USER first") };
        let Some(user) = user.take() else { return self.refuse("send USER first") };
        self.state = State::LoggingIn;
        Event::Login(Credentials { authorization: None, user, password: Password::new(password) })
    }

    fn on_auth(&mut self, mechanism: &str, initial: Option<&str>) -> Event {
        if !mechanism.eq_ignore_ascii_case("PLAIN") {
            return self.refuse("unknown authentication mechanism");
        }
        if !self.passwords_allowed() {
            return self.refuse(USE_STLS);
        }
        self.state = State::Authorization { user: None };
        match initial {
            // RFC 5034 §4: `=` is an empty initial response, which PLAIN has no use for.
            Some("=") => self.on_sasl_response(b""),
            Some(initial) => self.on_sasl_response(initial.as_bytes()),
            None => {
                self.state = State::Sasl;
                Event::Reply(Bytes::from_static(b"+ \r\n"))
            }
        }
    }

    pub(super) fn on_sasl_line(&mut self, line: Line) -> Event {
        self.state = State::Authorization { user: None };
        match line {
            Line::Text(line) if &line[..] == b"*" => self.refuse("authentication cancelled"),
            Line::Text(line) => self.on_sasl_response(&line),
            Line::BadByte | Line::BareLf => self.refuse("authentication failed: not a line of base64"),
            Line::TooLong => self.refuse("authentication exchange line is too long"),
            Line::Endless => self.close("authentication exchange line is too long, closing"),
        }
    }

    fn on_sasl_response(&mut self, response: &[u8]) -> Event {
        match plain(response) {
            Some(credentials) => {
                self.state = State::LoggingIn;
                Event::Login(credentials)
            }
            None => self.refuse("malformed authentication response"),
        }
    }

    fn on_stls(&mut self, input: &mut BytesMut) -> Event {
        match self.tls {
            Tls::Unavailable => return self.refuse("STLS is not available"),
            Tls::Active => return self.refuse("TLS is already active"),
            Tls::Available => {}
        }
        input.clear();
        self.state = State::TlsHandshake;
        Event::StartTls(reply::ok("begin TLS"))
    }
}

const USE_STLS: &str = "no passwords in clear: use STLS first";
