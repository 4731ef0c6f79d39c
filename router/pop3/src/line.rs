//! Framing of command lines: CRLF ends one (RFC 1939 §3). Knows no commands.

use bytes::{Buf, Bytes, BytesMut};

/// A command with its CRLF. RFC 2449 §4 asks for 255; long pass phrases get some more.
pub const LINE_OCTETS_MAX: usize = 512;
/// As RFC 4954 §4.5 has it for SMTP; RFC 5034 names no number.
pub const AUTH_LINE_OCTETS_MAX: usize = 12_288;
/// An overlong line is read to its end and answered -ERR, so that the session lives; past this it is closed.
pub const OVERLONG_LINE_OCTETS_MAX: usize = 8 * 1024 * 1024;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// Without its CRLF; holds no CR, LF or NUL.
    Text(Bytes),
    /// Ended by CRLF but holds a bare CR or a NUL.
    BadByte,
    /// Over the limit; its bytes are gone.
    TooLong,
    /// Over [`OVERLONG_LINE_OCTETS_MAX`], and not yet at its end.
    Endless,
    /// Ended by a LF without CR. No mail client is known to send that.
    BareLf,
}

/// Splits lines off the front of a buffer that only grows at its end.
#[derive(Default, Debug)]
pub struct LineReader {
    /// How much of the input was already searched for a LF.
    searched: usize,
    /// Octets of an overlong line that were dropped.
    dropped: usize,
    /// The last octet dropped was a CR.
    dropped_cr: bool,
}

impl LineReader {
    /// The next octet of the input begins a line.
    pub fn is_at_line_start(&self) -> bool {
        self.dropped == 0
    }

    /// The next line, or `None` where the input does not hold its end. `limit` counts the CRLF.
    pub fn next(&mut self, input: &mut BytesMut, limit: usize) -> Option<Line> {
        let unsearched = input.get(self.searched..).unwrap_or_default();
        let Some(found) = unsearched.iter().position(|&b| b == b'\n') else {
            self.searched = input.len();
            return self.unfinished(input, limit);
        };
        let end = self.searched + found;
        let mut line = input.split_to(end + 1);
        let (overlong, total) = (self.dropped > 0, self.dropped + line.len());
        let cr = match end.checked_sub(1) {
            Some(before) => line.get(before) == Some(&b'\r'),
            None => self.dropped_cr,
        };
        *self = LineReader::default();
        if !cr {
            return Some(Line::BareLf);
        }
        if total > OVERLONG_LINE_OCTETS_MAX {
            return Some(Line::Endless);
        }
        if overlong || total > limit {
            return Some(Line::TooLong);
        }
        line.truncate(end.saturating_sub(1));
        if line.iter().any(|&b| b == b'\r' || b == 0) {
            return Some(Line::BadByte);
        }
        Some(Line::Text(line.freeze()))
    }

    fn unfinished(&mut self, input: &mut BytesMut, limit: usize) -> Option<Line> {
        if self.dropped + input.len() > limit {
            self.dropped += input.len();
            self.dropped_cr = input.last().map_or(self.dropped_cr, |&b| b == b'\r');
            input.advance(input.len());
            self.searched = 0;
        }
        (self.dropped > OVERLONG_LINE_OCTETS_MAX).then_some(Line::Endless)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::{Line, LineReader, OVERLONG_LINE_OCTETS_MAX};

    fn lines(chunks: &[&[u8]], limit: usize) -> Vec<Line> {
        let (mut reader, mut input, mut lines) = (LineReader::default(), BytesMut::new(), Vec::new());
        for chunk in chunks {
            input.extend_from_slice(chunk);
            while let Some(line) = reader.next(&mut input, limit) {
                lines.push(line);
            }
        }
        lines
    }

    fn text(line: &'static str) -> Line {
        Line::Text(Bytes::from_static(line.as_bytes()))
    }

    #[test]
    fn only_crlf_ends_a_line() {
        assert_eq!(lines(&[b"a\r\n\r\nb"], 512), [text("a"), text("")]);
        assert_eq!(lines(&[b"a\n"], 512), [Line::BareLf]);
        assert_eq!(lines(&[b"\n"], 512), [Line::BareLf]);
        assert_eq!(lines(&[b"a\rb\r\n", b"a\0b\r\n", b"a\r\r\n"], 512), [Line::BadByte, Line::BadByte, Line::BadByte]);
    }

    #[test]
    fn an_overlong_line_is_dropped_whole_however_it_comes() {
        let long = [b"x".repeat(11).as_slice(), b"\r\nnext\r\n"].concat();
        let expected = [Line::TooLong, text("next")];
        assert_eq!(lines(&[&long], 12), expected);
        let single: Vec<&[u8]> = long.chunks(1).collect();
        assert_eq!(lines(&single, 12), expected);
        assert_eq!(lines(&[&long], 13), [text("xxxxxxxxxxx"), text("next")]);
    }

    #[test]
    fn the_rest_of_an_overlong_line_is_no_line_of_its_own() {
        let (mut reader, mut input) = (LineReader::default(), BytesMut::from(&b"xxxxxxxxx"[..]));
        assert_eq!(reader.next(&mut input, 8), None);
        input.extend_from_slice(b"AUTH PLAIN\r\n");
        // A caller that judges by the buffer may well allow more now.
        assert_eq!(reader.next(&mut input, 1_000), Some(Line::TooLong));
    }

    #[test]
    fn a_line_without_end_is_noticed_in_bounded_memory() {
        let (mut reader, mut input) = (LineReader::default(), BytesMut::new());
        let mut rounds = 0;
        loop {
            input.extend_from_slice(&[b'x'; 65_536]);
            if let Some(line) = reader.next(&mut input, 512) {
                assert_eq!(line, Line::Endless);
                break;
            }
            assert!(input.is_empty());
            rounds += 1;
            assert!(rounds <= OVERLONG_LINE_OCTETS_MAX / 65_536);
        }
    }
}
