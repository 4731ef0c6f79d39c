//! A message as the body of a multi-line response (RFC 1939 §3): byte-stuffed and terminated; and cut for TOP.

use bytes::{BufMut, BytesMut};

/// Encodes a message that comes in chunks of any length.
///
/// A line ends with CRLF (RFC 1939 §3). A bare LF, which mail that came by APPEND or BDAT may hold, becomes one: many
/// clients (Python's poplib, fetchmail, Thunderbird) take a LF alone for a line end, would unstuff dots behind it that
/// were never stuffed, and could take a dot there for the terminator. So all clients see the same lines.
#[derive(Clone, Debug, Default)]
pub struct DotStuffer {
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// At the start, or after a line end.
    #[default]
    LineStart,
    Text,
    /// After a CR.
    Cr,
}

impl DotStuffer {
    pub fn new() -> DotStuffer {
        DotStuffer::default()
    }

    /// Appends the encoded chunk to `out`.
    pub fn push(&mut self, chunk: &[u8], out: &mut BytesMut) {
        out.reserve(chunk.len());
        let mut rest = chunk;
        while let Some((&byte, after)) = rest.split_first() {
            if self.state == State::Text {
                let end = rest.iter().position(|&b| b == b'\r' || b == b'\n').unwrap_or(rest.len());
                if let Some((text, after)) = rest.split_at_checked(end).filter(|(text, _)| !text.is_empty()) {
                    out.put_slice(text);
                    rest = after;
                    continue;
                }
            }
            match (self.state, byte) {
                (State::LineStart, b'.') => out.put_u8(b'.'),
                (State::LineStart | State::Text, b'\n') => out.put_u8(b'\r'),
                (State::LineStart | State::Text | State::Cr, _) => {}
            }
            out.put_u8(byte);
            self.state = match byte {
                b'\r' => State::Cr,
                b'\n' => State::LineStart,
                _ => State::Text,
            };
            rest = after;
        }
    }

    /// Appends the terminator: `.` CRLF, after a CRLF where the message did not end with a line end.
    pub fn finish(self, out: &mut BytesMut) {
        match self.state {
            State::LineStart => {}
            State::Text | State::Cr => out.put_slice(b"\r\n"),
        }
        out.put_slice(b".\r\n");
    }
}

/// Cuts a message that comes in chunks to what TOP shows: the header, the empty line and so many lines of the body
/// (RFC 1939 §7). A LF ends a line, with or without CR: stored mail may hold bare ones.
#[derive(Clone, Debug)]
pub struct TopLimiter {
    /// Lines of the body still to come; `None` within the header.
    left: Option<u64>,
    lines: u64,
    /// The present line holds nothing but, perhaps, a CR.
    empty: bool,
}

impl TopLimiter {
    pub fn new(lines: u64) -> TopLimiter {
        TopLimiter { left: None, lines, empty: true }
    }

    /// The part of the chunk that is shown.
    pub fn take<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        let mut shown = 0;
        while !self.is_done() {
            let Some(rest) = chunk.get(shown..).filter(|rest| !rest.is_empty()) else { break };
            let line = rest.iter().position(|&b| b == b'\n');
            let text = rest.get(..line.unwrap_or(rest.len())).unwrap_or_default();
            self.empty &= text.iter().all(|&b| b == b'\r');
            shown += text.len();
            if line.is_some() {
                shown += 1;
                self.end_of_line();
            }
        }
        chunk.get(..shown).unwrap_or(chunk)
    }

    /// Nothing more will be shown; the caller need not read on.
    pub fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    fn end_of_line(&mut self) {
        self.left = match self.left {
            Some(left) => Some(left.saturating_sub(1)),
            None if self.empty => Some(self.lines),
            None => None,
        };
        self.empty = true;
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{DotStuffer, TopLimiter};

    fn stuffed(message: &[u8]) -> Vec<u8> {
        let run = |step: usize| {
            let (mut stuffer, mut out) = (DotStuffer::new(), BytesMut::new());
            message.chunks(step).for_each(|chunk| stuffer.push(chunk, &mut out));
            stuffer.finish(&mut out);
            out.to_vec()
        };
        assert_eq!(run(1), run(1_000));
        run(1)
    }

    #[test]
    fn dots_are_stuffed_at_line_starts_and_the_end_is_marked() {
        assert_eq!(stuffed(b"a\r\n.b\r\n..\r\nc.\r\n"), b"a\r\n..b\r\n...\r\nc.\r\n.\r\n");
        assert_eq!(stuffed(b"."), b"..\r\n.\r\n");
        assert_eq!(stuffed(b"a"), b"a\r\n.\r\n");
        assert_eq!(stuffed(b"a\r"), b"a\r\r\n.\r\n");
        assert_eq!(stuffed(b""), b".\r\n");
    }

    #[test]
    fn a_bare_lf_becomes_a_line_end_so_that_no_dot_behind_it_misleads() {
        assert_eq!(stuffed(b"a\n.\r\n+OK x\r\n"), b"a\r\n..\r\n+OK x\r\n.\r\n");
        assert_eq!(stuffed(b"a\n.\nb\n..\n"), b"a\r\n..\r\nb\r\n...\r\n.\r\n");
        assert_eq!(stuffed(b"a\n."), b"a\r\n..\r\n.\r\n");
        assert_eq!(stuffed(b"\n\n\r\r\n"), b"\r\n\r\n\r\r\n.\r\n");
    }

    #[test]
    fn top_shows_the_header_and_so_many_lines() {
        let top = |message: &[u8], lines: u64| {
            let run = |step: usize| {
                let mut limiter = TopLimiter::new(lines);
                message.chunks(step).flat_map(|chunk| limiter.take(chunk).to_vec()).collect::<Vec<u8>>()
            };
            assert_eq!(run(1), run(1_000));
            String::from_utf8(run(1)).unwrap()
        };
        let message = b"A: b\r\nC: d\r\n\r\n1\r\n\r\n3\r\n4";
        assert_eq!(top(message, 0), "A: b\r\nC: d\r\n\r\n");
        assert_eq!(top(message, 2), "A: b\r\nC: d\r\n\r\n1\r\n\r\n");
        assert_eq!(top(message, u64::MAX).as_bytes(), message);
        assert_eq!(top(b"A: b\n\n1\n2\n", 1), "A: b\n\n1\n");
        assert_eq!(top(b"\r\nbody\r\n", 0), "\r\n");
        assert_eq!(top(b"A: only\r\n", 5), "A: only\r\n");
    }
}
