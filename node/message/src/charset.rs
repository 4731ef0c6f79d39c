//! Text in any charset to UTF-8, piece by piece. Unknown and missing charsets are guessed: UTF-8 if it is valid,
//! windows-1252 if not.

use encoding_rs::{CoderResult, Encoding, REPLACEMENT, WINDOWS_1252};
use mail_parser::decoders::charsets::map::charset_decoder;

/// Decodes one part's text.
pub(crate) enum Decoder {
    Known(Box<encoding_rs::Decoder>),
    /// Charsets that encoding_rs has not: UTF-7, code page 850 and their kin. Pieces are decoded apart.
    Other(fn(&[u8]) -> String),
    /// Holds a UTF-8 sequence that the last piece cut.
    Guess(Vec<u8>),
}

impl Decoder {
    pub(crate) fn new(charset: Option<&str>) -> Decoder {
        let Some(name) = charset else { return Decoder::Guess(Vec::new()) };
        // Senders that say us-ascii, by default or in error, mean anything.
        if matches!(name.to_ascii_lowercase().as_str(), "us-ascii" | "ascii" | "ansi_x3.4-1968") {
            return Decoder::Guess(Vec::new());
        }
        match Encoding::for_label(name.as_bytes()) {
            Some(encoding) if encoding != REPLACEMENT => Decoder::Known(Box::new(encoding.new_decoder())),
            Some(_) => Decoder::Guess(Vec::new()),
            None => charset_decoder(name.as_bytes()).map_or(Decoder::Guess(Vec::new()), Decoder::Other),
        }
    }

    /// Appends the text of the next piece; `last` flushes what is incomplete.
    pub(crate) fn step(&mut self, piece: &[u8], last: bool, out: &mut String) {
        match self {
            Decoder::Other(decode) => out.push_str(&decode(piece)),
            Decoder::Known(decoder) => {
                let mut rest = piece;
                loop {
                    let room = decoder.max_utf8_buffer_length(rest.len()).unwrap_or(0).max(64);
                    out.reserve(room);
                    let (result, read, _) = decoder.decode_to_string(rest, out, last);
                    rest = rest.get(read..).unwrap_or_default();
                    match result {
                        CoderResult::InputEmpty => break,
                        CoderResult::OutputFull => {}
                    }
                }
            }
            Decoder::Guess(cut) => {
                let joined;
                let text = if cut.is_empty() {
                    piece
                } else {
                    joined = [cut.as_slice(), piece].concat();
                    cut.clear();
                    &joined
                };
                match std::str::from_utf8(text) {
                    Ok(text) => out.push_str(text),
                    Err(error) if error.error_len().is_none() && !last => {
                        let (valid, rest) = text.split_at(error.valid_up_to());
                        out.push_str(&String::from_utf8_lossy(valid));
                        *cut = rest.to_vec();
                    }
                    Err(_) => out.push_str(&WINDOWS_1252.decode_without_bom_handling(text).0),
                }
            }
        }
    }
}

/// The whole of a short text.
pub(crate) fn decode(charset: Option<&str>, text: &[u8]) -> String {
    let mut out = String::new();
    Decoder::new(charset).step(text, true, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::{Decoder, decode};

    #[test]
    fn charsets_known_unknown_and_lying_all_give_text() {
        assert_eq!(decode(Some("ISO-8859-1"), b"gr\xfcn"), "grün");
        assert_eq!(decode(Some("utf-8"), "grün".as_bytes()), "grün");
        assert_eq!(decode(Some("iso-2022-jp"), b"\x1b$B%O%m\x1b(B"), "ハロ");
        assert_eq!(decode(Some("utf-7"), b"+ZYeB9FH6ckh5Pg-"), "文致出版社");
        assert_eq!(decode(Some("cp850"), b"\x9b"), "ø");
        assert_eq!(decode(Some("us-ascii"), "grün".as_bytes()), "grün");
        assert_eq!(decode(Some("no-such-charset"), b"gr\xfcn"), "grün");
        assert_eq!(decode(None, b"gr\xfcn"), "grün");
        assert_eq!(decode(Some("utf-8"), b"gr\xfcn"), "gr\u{fffd}n");
        assert_eq!(decode(Some("iso-2022-kr"), b"abc"), "abc");
    }

    #[test]
    fn characters_cut_between_pieces_are_whole_again() {
        for charset in [None, Some("utf-8")] {
            let (mut decoder, mut out) = (Decoder::new(charset), String::new());
            let text = "grün 文致".as_bytes();
            for (at, byte) in text.iter().enumerate() {
                decoder.step(&[*byte], at + 1 == text.len(), &mut out);
            }
            assert_eq!(out, "grün 文致", "{charset:?}");
        }
    }
}
