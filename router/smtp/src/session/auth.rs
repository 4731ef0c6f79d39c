//! AUTH (RFC 4954): from the command to credentials. Verifies nothing.

use super::{Event, Question, SaslStep, Session, State};
use crate::{
    line::Line,
    reply,
    sasl::{Credentials, Mechanism, decode, login, plain},
    settings::AuthOffer,
};

/// `Username:` and `Password:`, which LOGIN clients expect.
const LOGIN_USER: &str = "VXNlcm5hbWU6";
const LOGIN_PASSWORD: &str = "UGFzc3dvcmQ6";

impl Session {
    pub(super) fn on_auth(&mut self, argument: &str) -> Event {
        if self.settings.auth == AuthOffer::Never {
            return self.refuse(503, "5.5.1", "AUTH is not available here");
        }
        if self.helo.is_none() {
            return self.refuse(503, "5.5.1", "send EHLO first");
        }
        // RFC 4954 §4: once, and not within a transaction.
        if self.authenticated {
            return self.refuse(503, "5.5.1", "already authenticated");
        }
        if self.transaction.is_some() {
            return self.refuse(503, "5.5.1", "AUTH within a mail transaction");
        }
        if !self.auth_offered() {
            return self.refuse(538, "5.7.11", "encryption required: use STARTTLS first");
        }
        let (name, initial) = match argument.split_once(' ') {
            Some((name, initial)) => (name, Some(initial)),
            None => (argument, None),
        };
        if name.is_empty() {
            return self.refuse(501, "5.5.4", "syntax: AUTH mechanism [initial-response]");
        }
        let Some(mechanism) = Mechanism::parse(name) else {
            return self.refuse(504, "5.5.4", "unrecognized authentication mechanism");
        };
        self.state = State::Sasl(match mechanism {
            Mechanism::Plain => SaslStep::Plain,
            Mechanism::Login => SaslStep::LoginUser,
        });
        match (initial, mechanism) {
            // RFC 4954 §4: `=` is an empty initial response.
            (Some("="), _) => self.on_sasl_response(""),
            (Some(initial), _) => self.on_encoded_response(initial.as_bytes()),
            (None, Mechanism::Plain) => Event::Reply(reply::line(334, "", "")),
            (None, Mechanism::Login) => Event::Reply(reply::line(334, "", LOGIN_USER)),
        }
    }

    pub(super) fn on_sasl_line(&mut self, line: Line) -> Event {
        match line {
            Line::Text(line) if &line[..] == b"*" => {
                self.state = State::Command;
                self.refuse(501, "5.7.0", "authentication cancelled")
            }
            Line::Text(line) => self.on_encoded_response(&line),
            Line::BadByte => self.on_encoded_response(b"\0"),
            Line::TooLong => {
                self.state = State::Command;
                self.refuse(500, "5.5.6", "authentication exchange line is too long")
            }
            Line::Endless => self.close(500, "5.5.6", "authentication exchange line is too long, closing"),
            Line::BareLf => self.close(500, "5.5.2", "lines end with CRLF, not with a bare LF; closing"),
        }
    }

    fn on_encoded_response(&mut self, encoded: &[u8]) -> Event {
        match decode(encoded) {
            Some(response) => self.on_sasl_response(&response),
            None => {
                self.state = State::Command;
                self.refuse(501, "5.5.2", "not base64, or not text")
            }
        }
    }

    fn on_sasl_response(&mut self, response: &str) -> Event {
        let state = std::mem::replace(&mut self.state, State::Command);
        let credentials: Option<Credentials> = match state {
            State::Sasl(SaslStep::Plain) => plain(response),
            State::Sasl(SaslStep::LoginUser) => {
                self.state = State::Sasl(SaslStep::LoginPassword { user: response.to_owned() });
                return Event::Reply(reply::line(334, "", LOGIN_PASSWORD));
            }
            State::Sasl(SaslStep::LoginPassword { user }) => login(&user, response),
            _ => None,
        };
        match credentials {
            Some(credentials) => {
                self.state = State::Ask(Question::Auth);
                Event::Auth(credentials)
            }
            None => self.refuse(501, "5.5.2", "malformed authentication response"),
        }
    }
}
