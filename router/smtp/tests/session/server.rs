//! A server without sockets: drives the session as the router does, with a few accounts, and keeps what was stored.

use std::collections::VecDeque;

use bytes::BytesMut;
use smtp::{Body, Event, ForwardPath, Session, Settings};
use types::{MailError, SmtpReply};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub reverse_path: String,
    pub recipients: Vec<String>,
    pub body: Body,
    pub content: Vec<u8>,
}

pub struct Server {
    pub session: Session,
    pub input: BytesMut,
    pub stored: Vec<Stored>,
    pub aborted: usize,
    pub resets: usize,
    pub handshakes: usize,
    pub closed: bool,
    current: Stored,
    out: Vec<u8>,
}

impl Server {
    pub fn new(settings: Settings) -> Server {
        Server {
            session: Session::new(settings),
            input: BytesMut::new(),
            stored: Vec::new(),
            aborted: 0,
            resets: 0,
            handshakes: 0,
            closed: false,
            current: empty(),
            out: Vec::new(),
        }
    }

    /// Sends bytes as one packet; returns the replies to it.
    pub fn send(&mut self, bytes: &[u8]) -> String {
        if !self.closed {
            self.input.extend_from_slice(bytes);
        }
        while let Some(event) = self.session.step(&mut self.input) {
            self.perform(event);
        }
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }

    /// Brings the session to an accepted RCPT.
    pub fn up_to_recipient(&mut self) {
        let replies = self.send(b"EHLO c.test\r\nMAIL FROM:<s@c.test>\r\nRCPT TO:<alice@example.test>\r\n");
        assert!(replies.ends_with("250 2.1.5 recipient ok\r\n"), "{replies}");
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Reply(bytes) => self.out.extend_from_slice(&bytes),
            Event::Reset(bytes) => {
                self.out.extend_from_slice(&bytes);
                self.current = empty();
                self.resets += 1;
            }
            Event::StartTls(bytes) => {
                self.out.extend_from_slice(&bytes);
                self.current = empty();
                self.handshakes += 1;
                assert_eq!(self.session.step(&mut self.input), None);
                self.session.tls_started();
            }
            Event::Mail(mail) => {
                self.current = Stored {
                    reverse_path: mail.reverse_path.map(|mailbox| mailbox.to_string()).unwrap_or_default(),
                    body: mail.body,
                    ..empty()
                };
                self.accept();
            }
            Event::Recipient(path) => match recipient_refusal(&path) {
                Some(reply) => self.answer(&reply),
                None => {
                    self.current.recipients.push(path.to_string());
                    self.accept();
                }
            },
            Event::Data => self.accept(),
            Event::Content(piece) => {
                assert!(!piece.is_empty());
                self.current.content.extend_from_slice(&piece);
            }
            Event::ContentAborted(_) => {
                self.current.content.clear();
                self.aborted += 1;
            }
            Event::ContentEnd { octets } => {
                assert_eq!(octets, self.current.content.len() as u64);
                self.stored.push(std::mem::replace(&mut self.current, empty()));
                self.accept();
            }
            Event::Auth(credentials) => match credentials.password.expose() == "sesame" {
                true => self.accept(),
                false => self.answer(&SmtpReply { code: 535, enhanced: "5.7.8", text: "no".to_owned() }),
            },
            Event::Quit(bytes) | Event::Close(bytes) => {
                self.out.extend_from_slice(&bytes);
                self.closed = true;
            }
        }
    }

    fn accept(&mut self) {
        assert!(self.session.is_asking());
        assert_eq!(self.session.step(&mut self.input), None);
        let event = self.session.accept();
        self.perform(event);
    }

    fn answer(&mut self, reply: &SmtpReply) {
        let event = self.session.answer(reply);
        self.perform(event);
    }
}

fn empty() -> Stored {
    Stored { reverse_path: String::new(), recipients: Vec::new(), body: Body::SevenBit, content: Vec::new() }
}

fn recipient_refusal(path: &ForwardPath) -> Option<SmtpReply> {
    let ForwardPath::Mailbox(mailbox) = path else { return None };
    let account = mailbox.account_name();
    let known = account.as_ref().is_some_and(|account| {
        account.domain() == "example.test"
            && (["alice", "bob"].contains(&account.local()) || account.local().starts_with('r'))
    });
    (!known).then(|| MailError::NoSuchAccount.smtp_reply())
}

/// Settings with small limits.
pub fn settings() -> Settings {
    Settings { size_max: 10_000, ..Settings::mx("mx.example.test") }
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
