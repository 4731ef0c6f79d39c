//! Feeding the decoder as a session would.

#![allow(dead_code)] // each test binary uses a part of this

use bytes::BytesMut;
use imap::{Command, CommandBody, Decoder, Event, Limits};

/// All events of `octets`, messages being accepted.
pub fn events(limits: Limits, octets: &[u8]) -> Vec<Event> {
    events_in_pieces(limits, &[octets], true)
}

/// All events of the pieces fed one by one. Enters the modes that a session would after IDLE and AUTHENTICATE.
pub fn events_in_pieces(limits: Limits, pieces: &[&[u8]], accept: bool) -> Vec<Event> {
    let mut decoder = Decoder::new(limits);
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut input) {
            match &event {
                Event::AppendStart(_) if accept => decoder.accept_literal(),
                Event::AppendStart(_) => decoder.refuse_literal(),
                Event::Command(Command { body: CommandBody::Idle, .. }) => decoder.expect_done(),
                Event::Command(Command { body: CommandBody::Authenticate { .. }, .. }) => {
                    decoder.expect_sasl_response();
                }
                _ => {}
            }
            events.push(event);
        }
    }
    events
}

/// The one event that the line, given without its CRLF, makes after login.
pub fn one(line: &str) -> Event {
    let mut all = events(Limits::AFTER_LOGIN, format!("{line}\r\n").as_bytes());
    assert_eq!(all.len(), 1, "{line}: {all:?}");
    all.remove(0)
}

/// The command that the text, given without tag and CRLF, makes.
pub fn body(text: &str) -> CommandBody {
    match one(&format!("a {text}")) {
        Event::Command(command) => command.body,
        other => panic!("{text}: {other:?}"),
    }
}

/// `+`, `BAD`, `NO`, `BYE`, the tag before them, or the kind of the event.
pub fn answer(event: &Event) -> String {
    match event {
        Event::Command(command) => format!("{} command", command.tag),
        Event::Continue => "+".to_owned(),
        Event::AppendStart(start) => format!("{} append {}", start.tag, start.size),
        Event::AppendData(data) => format!("data {}", data.len()),
        Event::AppendEnd => "append end".to_owned(),
        Event::AppendBad { .. } => "append bad".to_owned(),
        Event::AuthenticateLine(response) => format!("sasl {response:?}"),
        Event::IdleDone => "done".to_owned(),
        Event::IdleBad { .. } => "idle bad".to_owned(),
        Event::Bad { tag: Some(tag), .. } => format!("{tag} BAD"),
        Event::Bad { tag: None, .. } => "* BAD".to_owned(),
        Event::TooBig { tag, .. } => format!("{tag} NO [TOOBIG]"),
        Event::Fatal { .. } => "* BYE".to_owned(),
    }
}

pub fn answers(limits: Limits, octets: &[u8]) -> Vec<String> {
    events(limits, octets).iter().map(answer).collect()
}

/// As [`answers`], with every message refused.
pub fn answers_refusing(limits: Limits, octets: &[u8]) -> Vec<String> {
    events_in_pieces(limits, &[octets], false).iter().map(answer).collect()
}
