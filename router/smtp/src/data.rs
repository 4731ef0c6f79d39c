//! Message content between 354 and the end mark (RFC 5321 §4.1.1.4, §4.5.2).
//!
//! The one end of data is `CRLF . CRLF`; a stuffed dot is taken away only after a true CRLF; every other byte comes
//! out as it went in. A dot that stands alone between things which *some* software takes for line ends, but which
//! are not CRLF, is a smuggling mark (VU#302671): `[CR LF] NUL* . NUL* [CR LF]` other than the true end. It makes
//! the whole message refused, and what follows it up to the true end is part of that message, never a command.

use bytes::{Buf, Bytes, BytesMut};

/// What becomes of a CR without LF, or a LF without CR, inside DATA. CHUNKING carries any byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BareNewlines {
    /// Kept as sent: much real mail has them. Smuggling marks are refused all the same.
    #[default]
    Keep,
    /// The message is refused (RFC 5321 §2.3.8).
    Refuse,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded {
    Piece(Bytes),
    /// The end mark was read.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Within a line.
    Text,
    /// After a CR that may begin a CRLF.
    Cr,
    /// After a true CRLF, or at the start.
    LineStart,
    /// After something that some would take for a line's end: a bare LF or CR, with NULs after it, or NULs at a line's start.
    LooseStart,
    /// After `CRLF .`: the dot is held back.
    Dot,
    /// After `CRLF . CR`: dot and CR are held back.
    DotCr,
    /// After a dot at a loose start, or `CRLF . NUL`.
    LooseDot,
}

/// What a byte is, apart from where it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Content,
    /// A stuffed dot, or part of the end mark.
    Framing,
    /// Content; the byte before it, or it itself, was a bare newline.
    Bare,
    /// A smuggling mark is complete.
    Mark,
    End,
}

/// Takes content off the front of a buffer.
#[derive(Debug)]
pub struct DataDecoder {
    state: State,
    bare_newlines: BareNewlines,
    refused: bool,
}

impl DataDecoder {
    pub fn new(bare_newlines: BareNewlines) -> DataDecoder {
        DataDecoder { state: State::LineStart, bare_newlines, refused: false }
    }

    /// The content holds a smuggling mark, or a bare newline where those are refused.
    pub fn refused(&self) -> bool {
        self.refused
    }

    /// The next piece of content, or its end; `None` where more input is needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Option<Decoded> {
        let mut at = 0;
        while let Some(rest) = input.get(at..) {
            if self.state == State::Text {
                at += rest.iter().position(|&b| b == b'\r' || b == b'\n').unwrap_or(rest.len());
            }
            let Some(&byte) = input.get(at) else { break };
            let (state, kind) = self.state.after(byte);
            match kind {
                Kind::Content => at += 1,
                Kind::Bare => {
                    self.refused |= self.bare_newlines == BareNewlines::Refuse;
                    at += 1;
                }
                Kind::Mark => {
                    self.refused = true;
                    at += 1;
                }
                // The content before it goes out first; the byte is looked at again in the next call.
                Kind::Framing | Kind::End if at > 0 => return Some(Decoded::Piece(input.split_to(at).freeze())),
                Kind::Framing => input.advance(1),
                Kind::End => {
                    input.advance(1);
                    return Some(Decoded::End);
                }
            }
            self.state = state;
        }
        (!input.is_empty()).then(|| Decoded::Piece(input.split().freeze()))
    }
}

impl State {
    fn after(self, byte: u8) -> (State, Kind) {
        let plain = match byte {
            b'\r' => (State::Cr, Kind::Content),
            b'\n' => (State::LooseStart, Kind::Bare),
            _ => (State::Text, Kind::Content),
        };
        match (self, byte) {
            (State::Text, _) => plain,

            (State::Cr, b'\n') => (State::LineStart, Kind::Content),
            (State::Cr, b'\r') => (State::Cr, Kind::Bare),
            (State::Cr, b'.') => (State::LooseDot, Kind::Bare),
            (State::Cr, 0) => (State::LooseStart, Kind::Bare),
            (State::Cr, _) => (State::Text, Kind::Bare),

            (State::LineStart, b'.') => (State::Dot, Kind::Framing),
            (State::LooseStart, b'.') => (State::LooseDot, Kind::Content),
            (State::LineStart | State::LooseStart, 0) => (State::LooseStart, Kind::Content),
            (State::LineStart | State::LooseStart, _) => plain,

            (State::Dot, b'\r') => (State::DotCr, Kind::Framing),
            (State::Dot | State::LooseDot, 0) => (State::LooseDot, Kind::Content),
            (State::Dot | State::LooseDot, b'\n') => (State::LooseStart, Kind::Mark),
            (State::LooseDot, b'\r') => (State::Cr, Kind::Mark),
            (State::Dot | State::LooseDot, _) => (State::Text, Kind::Content),

            (State::DotCr, b'\n') => (State::LineStart, Kind::End),
            (State::DotCr, b'\r') => (State::Cr, Kind::Mark),
            (State::DotCr, b'.') => (State::LooseDot, Kind::Mark),
            (State::DotCr, 0) => (State::LooseStart, Kind::Mark),
            (State::DotCr, _) => (State::Text, Kind::Mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{BareNewlines, DataDecoder, Decoded};

    /// Content, whether refused, and what is left after the end mark (`None`: no end).
    fn decode(chunks: &[&[u8]], rule: BareNewlines) -> (Vec<u8>, bool, Option<Vec<u8>>) {
        let (mut decoder, mut input, mut content) = (DataDecoder::new(rule), BytesMut::new(), Vec::new());
        let mut chunks = chunks.iter();
        while let Some(chunk) = chunks.next() {
            input.extend_from_slice(chunk);
            while let Some(decoded) = decoder.next(&mut input) {
                match decoded {
                    Decoded::Piece(piece) => content.extend_from_slice(&piece),
                    Decoded::End => {
                        let rest = [&input[..], &chunks.copied().collect::<Vec<_>>().concat()].concat();
                        return (content, decoder.refused(), Some(rest));
                    }
                }
            }
        }
        (content, decoder.refused(), None)
    }

    /// The same in one piece and octet by octet.
    fn both(bytes: &[u8], rule: BareNewlines) -> (Vec<u8>, bool, Option<Vec<u8>>) {
        let whole = decode(&[bytes], rule);
        assert_eq!(whole, decode(&bytes.chunks(1).collect::<Vec<_>>(), rule));
        whole
    }

    #[test]
    fn dots_are_unstuffed_at_line_starts_alone() {
        let (content, refused, rest) = both(b"..a\r\nb..\r\n...\r\n.c\r\n.\r\nQUIT\r\n", BareNewlines::Refuse);
        assert_eq!(content, b".a\r\nb..\r\n..\r\nc\r\n");
        assert!(!refused);
        assert_eq!(rest.unwrap(), b"QUIT\r\n");
    }

    #[test]
    fn an_empty_message_is_a_dot_alone() {
        assert_eq!(both(b".\r\n", BareNewlines::Keep), (vec![], false, Some(vec![])));
    }

    #[test]
    fn bare_newlines_are_kept_byte_for_byte_or_refused_as_set() {
        let bytes = b"a\nb\rc\r\r\nd\n\n.e\r.f\n..\r\n\0x\0\r\n.\r\n";
        let (content, refused, rest) = both(bytes, BareNewlines::Keep);
        assert_eq!(content, &bytes[..bytes.len() - 3]);
        assert!(!refused && rest.is_some());
        assert!(both(bytes, BareNewlines::Refuse).1);
        for (bytes, refused) in [(&b"a\r\nb\r\n.\r\n"[..], false), (b"a\nb\r\n.\r\n", true), (b"a\rb\r\n.\r\n", true)] {
            assert_eq!(both(bytes, BareNewlines::Refuse).1, refused);
        }
    }

    #[test]
    fn every_smuggling_mark_refuses_the_message_and_ends_nothing() {
        let marks: [&[u8]; 16] = [
            b"\n.\n",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r\n",
            b"\r.\r",
            b"\r\n.\r",
            b"\r\n\0.\r\n",
            b"\n.\r",
            b"\r\r\n.\r\r\n",
            b"\r.\n",
            b"\r\n.\0\r\n",
            b"\n\0.\r\n",
            b"\r\n.\r\0\n",
            b"\n\n.\n\n",
            b"\r\n.\r.\r\n",
            b"\r\0.\0\n",
        ];
        for mark in marks {
            let bytes = [b"text", mark, b"MAIL FROM:<evil@x.test>\r\nmore\r\n.\r\nNOOP\r\n"].concat();
            let (_, refused, rest) = both(&bytes, BareNewlines::Keep);
            assert!(refused, "{}", mark.escape_ascii());
            assert_eq!(rest.unwrap(), b"NOOP\r\n", "{}", mark.escape_ascii());
        }
    }

    #[test]
    fn a_mark_at_the_very_start_is_seen() {
        for bytes in [&b".\nx\r\n.\r\n"[..], b".\rx\r\n.\r\n", b"\0.\r\n\r\n.\r\n"] {
            let (_, refused, rest) = both(bytes, BareNewlines::Keep);
            assert!(refused && rest == Some(vec![]), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_true_end_is_found_right_after_a_mark() {
        for bytes in [&b"a\r\n.\r\r\n.\r\n"[..], b"a\r\n.\n\r\n.\r\n", b"a\n.\r\n.\r\n"] {
            let (_, refused, rest) = both(bytes, BareNewlines::Keep);
            assert!(refused && rest == Some(vec![]), "{}", bytes.escape_ascii());
        }
    }
}
