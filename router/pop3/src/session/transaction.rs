//! The TRANSACTION and UPDATE states (RFC 1939 §5, §6).

use std::fmt::Write;

use bytes::Bytes;

use super::{Event, Listed, Retrieve, Session, State};
use crate::{command::Command, maildrop::Maildrop, reply};

/// A long listing comes in replies of about this many octets, so that it is never whole in memory.
const LISTING_OCTETS: usize = 32 * 1024;

impl Session {
    /// Answers [`Event::Retrieve`]: the message and its terminator are written.
    pub fn retrieved(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Retrieving(maildrop) => State::Transaction(maildrop),
            other => other,
        };
    }

    /// Answers [`Event::Update`]: the messages are deleted for good.
    pub fn updated(&mut self) -> Event {
        self.state = State::Closed;
        Event::Quit(reply::ok("goodbye"))
    }

    pub(super) fn on_transaction_command(&mut self, command: Command<'_>) -> Event {
        match command {
            Command::List(None) => return self.begin_listing(Listed::Octets),
            Command::Uidl(None) => return self.begin_listing(Listed::UniqueIds),
            Command::Retrieve(number) => return self.on_retrieve(number, None),
            Command::Top { number, lines } => return self.on_retrieve(number, Some(lines)),
            Command::Capabilities => return self.capabilities(false),
            Command::Noop => return Event::Reply(reply::ok("")),
            Command::User(_) | Command::Pass(_) | Command::Apop | Command::Auth { .. } | Command::StartTls => {
                return self.refuse("already logged in");
            }
            Command::Quit
            | Command::Stat
            | Command::List(Some(_))
            | Command::Uidl(Some(_))
            | Command::Delete(_)
            | Command::Last
            | Command::Reset => {}
        }
        let State::Transaction(maildrop) = &mut self.state else { return self.refuse("log in first") };
        let reply = match command {
            Command::Quit => {
                let deleted = maildrop.deleted();
                self.state = State::Updating;
                return Event::Update { deleted };
            }
            Command::List(Some(number)) => listed(maildrop, number, Listed::Octets).map(|line| reply::ok(&line)),
            Command::Uidl(Some(number)) => listed(maildrop, number, Listed::UniqueIds).map(|line| reply::ok(&line)),
            Command::Delete(number) => maildrop.delete(number).then(|| reply::ok(&format!("message {number} deleted"))),
            Command::Last => Some(reply::ok(&maildrop.last().to_string())),
            Command::Reset => {
                maildrop.reset();
                Some(reply::ok(&totals(maildrop)))
            }
            // RFC 1939 §5: number and octets, and nothing else, for the clients that parse it.
            _ => Some(reply::ok(&format!("{} {}", maildrop.live(), maildrop.live_octets()))),
        };
        Event::Reply(reply.unwrap_or_else(no_such_message))
    }

    fn on_retrieve(&mut self, number: usize, top: Option<u64>) -> Event {
        let State::Transaction(maildrop) = &mut self.state else { return self.refuse("log in first") };
        let (Some(octets), Some(index)) = (maildrop.octets(number), number.checked_sub(1)) else {
            return Event::Reply(no_such_message());
        };
        maildrop.touch(number);
        let ok = match top {
            Some(_) => reply::ok("top of message follows"),
            None => reply::ok(&format!("{octets} octets")),
        };
        self.state = State::Retrieving(std::mem::take(maildrop));
        Event::Retrieve(Retrieve { index, top, ok })
    }

    fn begin_listing(&mut self, what: Listed) -> Event {
        let State::Transaction(maildrop) = &mut self.state else { return self.refuse("log in first") };
        let maildrop = std::mem::take(maildrop);
        let bytes = reply::ok(&totals(&maildrop));
        self.state = State::Listing { maildrop, next: 1, what };
        Event::Reply(bytes)
    }

    pub(super) fn go_on_listing(&mut self) -> Event {
        let State::Listing { maildrop, next, what } = &mut self.state else { return self.refuse("nothing to list") };
        let mut out = String::new();
        while *next <= maildrop.len() && out.len() < LISTING_OCTETS {
            if let Some(line) = listed(maildrop, *next, *what) {
                out.push_str(&line);
                out.push_str("\r\n");
            }
            *next += 1;
        }
        if *next > maildrop.len() {
            out.push_str(".\r\n");
            self.state = State::Transaction(std::mem::take(maildrop));
        }
        Event::Reply(out.into())
    }
}

/// A message's scan listing or unique-id listing (RFC 1939 §5, §7).
fn listed(maildrop: &Maildrop, number: usize, what: Listed) -> Option<String> {
    let mut line = format!("{number} ");
    match what {
        Listed::Octets => write!(line, "{}", maildrop.octets(number)?).ok()?,
        Listed::UniqueIds => line.push_str(maildrop.uidl(number)?),
    }
    Some(line)
}

fn totals(maildrop: &Maildrop) -> String {
    format!("{} messages ({} octets)", maildrop.live(), maildrop.live_octets())
}

/// Not counted as an error: a client may work from an old listing.
fn no_such_message() -> Bytes {
    reply::err("", "no such message")
}
