//! Undoes base64 and quoted-printable (RFC 2045 §6.7, §6.8) piece by piece. Lies are tolerated: what is no base64 is
//! skipped, a bad escape is text.

use crate::part::Encoding;

/// The encoded rest of a body.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    encoding: Encoding,
    rest: &'a [u8],
    bits: u32,
    /// Base64 characters in `bits`, 0 to 3.
    characters: u8,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(encoding: Encoding, body: &'a [u8]) -> Decoder<'a> {
        Decoder { encoding, rest: body, bits: 0, characters: 0 }
    }

    /// Decodes about `octets` of the encoded text into `out`; false once there is no more.
    pub(crate) fn step(&mut self, octets: usize, out: &mut Vec<u8>) -> bool {
        let (piece, rest) = self.rest.split_at(octets.max(1).min(self.rest.len()));
        self.rest = rest;
        match self.encoding {
            Encoding::Identity => out.extend_from_slice(piece),
            Encoding::Base64 => self.base64(piece, out),
            Encoding::QuotedPrintable => self.quoted_printable(piece, out),
        }
        if self.rest.is_empty() && self.encoding == Encoding::Base64 {
            self.flush(out);
        }
        !self.rest.is_empty()
    }

    fn base64(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        for &byte in piece {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' => {
                    self.flush(out);
                    continue;
                }
                _ => continue,
            };
            self.bits = (self.bits << 6) | u32::from(value);
            self.characters += 1;
            if self.characters == 4 {
                let [_, decoded @ ..] = self.bits.to_be_bytes();
                out.extend_from_slice(&decoded);
                self.bits = 0;
                self.characters = 0;
            }
        }
    }

    /// The one or two octets that padding ends; one character alone is none.
    fn flush(&mut self, out: &mut Vec<u8>) {
        let [_, first, second, _] = (self.bits << (6 * (4 - u32::from(self.characters)).min(3))).to_be_bytes();
        match self.characters {
            2 => out.push(first),
            3 => out.extend_from_slice(&[first, second]),
            _ => {}
        }
        self.bits = 0;
        self.characters = 0;
    }

    fn quoted_printable(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        // An escape or a soft line break may go on beyond the piece.
        let whole = self.rest;
        let mut rest = piece;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte != b'=' {
                out.push(byte);
                continue;
            }
            let beyond = if rest.len() < 2 { whole } else { &[] };
            let mut next = rest.iter().chain(beyond).copied();
            let skip = match (next.next(), next.next()) {
                (Some(b'\n'), _) => 1,
                (Some(b'\r'), Some(b'\n')) => 2,
                (Some(high), Some(low)) => match (hex(high), hex(low)) {
                    (Some(high), Some(low)) => {
                        out.push((high << 4) | low);
                        2
                    }
                    _ => {
                        out.push(byte);
                        0
                    }
                },
                // RFC 2045 §6.7: a last "=" with nothing after it is taken for a soft line break.
                (None, _) => 0,
                (Some(_), None) => {
                    out.push(byte);
                    0
                }
            };
            let here = skip.min(rest.len());
            rest = rest.get(here..).unwrap_or_default();
            self.rest = self.rest.get(skip - here..).unwrap_or_default();
        }
    }
}

pub(crate) fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::Decoder;
    use crate::part::Encoding;

    /// Decoded in pieces of every small size, all of which must agree.
    fn decoded(encoding: Encoding, text: &[u8]) -> Vec<u8> {
        let with = |octets: usize| {
            let (mut decoder, mut out) = (Decoder::new(encoding, text), Vec::new());
            while decoder.step(octets, &mut out) {}
            out
        };
        let whole = with(usize::MAX);
        for octets in 1..10 {
            assert_eq!(with(octets), whole, "pieces of {octets}");
        }
        whole
    }

    #[test]
    fn base64_is_decoded_and_lies_are_skipped() {
        let base64 = |text: &str| decoded(Encoding::Base64, text.as_bytes());
        assert_eq!(base64("aGVs\r\nbG8="), b"hello");
        assert_eq!(base64("aGVsbG8"), b"hello");
        assert_eq!(base64("aGk=aGk="), b"hihi");
        assert_eq!(base64("aGV!s*b\0G8=\r\n"), b"hello");
        assert_eq!(base64("a"), b"");
        assert_eq!(base64("===="), b"");
        assert_eq!(base64(""), b"");
    }

    #[test]
    fn quoted_printable_is_decoded_and_bad_escapes_are_text() {
        let quoted = |text: &str| decoded(Encoding::QuotedPrintable, text.as_bytes());
        assert_eq!(quoted("a=3Db=\r\nc=\nd=e9"), b"a=bcd\xe9");
        assert_eq!(quoted("a=zz=4"), b"a=zz=4");
        assert_eq!(quoted("a="), b"a");
        assert_eq!(quoted("=\r"), b"=\r");
    }
}
