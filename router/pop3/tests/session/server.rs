//! A server without sockets: drives the session as the router does, with one account and its messages.

use std::collections::VecDeque;

use bytes::BytesMut;
use pop3::{DotStuffer, Event, Maildrop, Session, Settings, Tls, TopLimiter};
use types::MailError;

pub struct Server {
    pub session: Session,
    pub input: BytesMut,
    pub messages: Vec<Vec<u8>>,
    /// Answers to come instead of success.
    pub failures: VecDeque<MailError>,
    pub handshakes: usize,
    pub closed: bool,
    out: BytesMut,
}

impl Server {
    /// `alice` with the password `open sesame`.
    pub fn new(settings: Settings, messages: &[&[u8]]) -> Server {
        Server {
            session: Session::new(settings),
            input: BytesMut::new(),
            messages: messages.iter().map(|message| message.to_vec()).collect(),
            failures: VecDeque::new(),
            handshakes: 0,
            closed: false,
            out: BytesMut::new(),
        }
    }

    /// Logged in.
    pub fn open(messages: &[&[u8]]) -> Server {
        let mut server = Server::new(secure(), messages);
        let replies = server.send(b"USER alice\r\nPASS open sesame\r\n");
        assert_eq!(replies.matches("+OK ").count(), 2, "{replies}");
        server
    }

    /// Sends bytes as one packet; returns what comes back.
    pub fn exchange(&mut self, bytes: &[u8]) -> Vec<u8> {
        if !self.closed {
            self.input.extend_from_slice(bytes);
        }
        while let Some(event) = self.session.step(&mut self.input) {
            self.perform(event);
        }
        self.out.split().to_vec()
    }

    pub fn send(&mut self, bytes: &[u8]) -> String {
        String::from_utf8(self.exchange(bytes)).unwrap()
    }

    fn perform(&mut self, event: Event) {
        let asks = matches!(event, Event::Login(_) | Event::Retrieve(_) | Event::Update { .. });
        assert_eq!(self.session.is_asking(), asks);
        if asks {
            assert_eq!(self.session.step(&mut self.input), None);
            if let Some(error) = self.failures.pop_front() {
                let event = self.session.fail(&error);
                return self.perform(event);
            }
        }
        match event {
            Event::Reply(bytes) => self.out.extend_from_slice(&bytes),
            Event::StartTls(bytes) => {
                self.out.extend_from_slice(&bytes);
                self.handshakes += 1;
                assert_eq!(self.session.step(&mut self.input), None);
                self.session.tls_started();
            }
            Event::Login(credentials) => {
                let right = credentials.user == "alice" && credentials.password.expose() == "open sesame";
                let event = if right { self.session.logged_in(listing(&self.messages)) } else { self.session.denied() };
                self.perform(event);
            }
            Event::Retrieve(retrieve) => {
                self.out.extend_from_slice(&retrieve.ok);
                let mut stuffer = DotStuffer::new();
                let mut top = TopLimiter::new(retrieve.top.unwrap_or_default());
                for chunk in self.messages[retrieve.index].chunks(7) {
                    let shown = if retrieve.top.is_some() { top.take(chunk) } else { chunk };
                    stuffer.push(shown, &mut self.out);
                }
                stuffer.finish(&mut self.out);
                self.session.retrieved();
            }
            Event::Update { deleted } => {
                for index in deleted.into_iter().rev() {
                    self.messages.remove(index);
                }
                let event = self.session.updated();
                self.perform(event);
            }
            Event::Quit(bytes) | Event::Close(bytes) => {
                self.out.extend_from_slice(&bytes);
                self.closed = true;
                assert!(self.session.is_closed());
            }
        }
    }
}

fn listing(messages: &[Vec<u8>]) -> Maildrop {
    let mut maildrop = Maildrop::new();
    for (i, message) in messages.iter().enumerate() {
        maildrop.push(message.len() as u64, &format!("uid-{}", i + 1)).unwrap();
    }
    maildrop
}

/// As over TLS.
pub fn secure() -> Settings {
    Settings { tls: Tls::Active, ..Settings::default() }
}

/// Plays a transcript: `C:` lines are sent with CRLF, as one packet up to the next `S:` line; `S:` lines are the
/// replies, all of them, where `…` at a line's end stands for any text.
pub fn play(server: &mut Server, transcript: &str) {
    let mut packet: Vec<u8> = Vec::new();
    let mut replies: VecDeque<String> = VecDeque::new();
    for line in transcript.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
        if let Some(sent) = line.strip_prefix("C:") {
            assert!(replies.is_empty(), "unexpected {replies:?} before {line}");
            packet.extend_from_slice(sent.strip_prefix(' ').unwrap_or(sent).as_bytes());
            packet.extend_from_slice(b"\r\n");
        } else if let Some(expected) = line.strip_prefix("S:") {
            let expected = expected.strip_prefix(' ').unwrap_or(expected);
            if !packet.is_empty() {
                let out = server.send(&std::mem::take(&mut packet));
                replies = out.split_terminator("\r\n").map(str::to_owned).collect();
            }
            let reply = replies.pop_front().unwrap_or_else(|| panic!("no reply where {expected:?} was expected"));
            match expected.strip_suffix('…') {
                Some(start) => assert!(reply.starts_with(start), "{reply:?} where {expected:?} was expected"),
                None => assert_eq!(reply, expected),
            }
        } else {
            panic!("neither C: nor S: {line}");
        }
    }
    assert!(packet.is_empty() && replies.is_empty(), "left over: {packet:?} {replies:?}");
}
