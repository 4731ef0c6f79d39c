//! Header text with its encoded words decoded (RFC 2047), tolerantly: anywhere in a value, of any length, also where a
//! character is cut between two of them. One pass: an encoded word's text cannot hold the `?` that would make the
//! search begin again.

use crate::charset;
use crate::limits::TOKEN_OCTETS_MAX;
use crate::part::Encoding;
use crate::transfer::{Decoder, hex};

/// The text of an unfolded value. Raw octets above 127 count as UTF-8 or, if they are not valid, windows-1252.
pub(crate) fn decode(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len());
    // Encoded words that follow each other in one charset, decoded as one.
    let mut pending: Option<(&[u8], Vec<u8>)> = None;
    let mut rest = value;
    while !rest.is_empty() {
        let begin = rest.windows(2).position(|pair| pair == b"=?").unwrap_or(rest.len());
        let (plain, from_word) = rest.split_at(begin);
        match encoded_word(from_word) {
            Some(word) => {
                // RFC 2047 §6.2: blanks between encoded words are not shown.
                let adjacent = pending.is_some() && plain.trim_ascii().is_empty();
                if !adjacent {
                    flush(&mut pending, &mut out);
                    out.push_str(&charset::decode(None, plain));
                }
                match &mut pending {
                    Some((charset, text)) if charset.eq_ignore_ascii_case(word.charset) => text.extend(word.text),
                    _ => {
                        flush(&mut pending, &mut out);
                        pending = Some((word.charset, word.text));
                    }
                }
                rest = word.after;
            }
            None => {
                flush(&mut pending, &mut out);
                // No encoded word here: its "=?" is text.
                let (text, after) = rest.split_at((begin + 2).min(rest.len()));
                out.push_str(&charset::decode(None, text));
                rest = after;
            }
        }
    }
    flush(&mut pending, &mut out);
    out
}

fn flush(pending: &mut Option<(&[u8], Vec<u8>)>, out: &mut String) {
    if let Some((name, text)) = pending.take() {
        out.push_str(&charset::decode(std::str::from_utf8(name).ok(), &text));
    }
}

struct Word<'a> {
    charset: &'a [u8],
    text: Vec<u8>,
    after: &'a [u8],
}

/// `"=?" charset ["*" language] "?" encoding "?" encoded-text "?="` (RFC 2047 §2, RFC 2231 §5)
fn encoded_word(text: &[u8]) -> Option<Word<'_>> {
    let rest = text.strip_prefix(b"=?")?;
    let name_end = rest.iter().take(TOKEN_OCTETS_MAX).position(|byte| *byte == b'?' || !byte.is_ascii_graphic())?;
    let (charset, rest) = rest.split_at(name_end);
    let charset = charset.split(|&byte| byte == b'*').next().filter(|charset| !charset.is_empty())?;
    let (encoding, rest) = match rest {
        [b'?', encoding, b'?', rest @ ..] => (encoding.to_ascii_lowercase(), rest),
        _ => return None,
    };
    let (encoded, rest) = rest.split_at(rest.iter().position(|&byte| byte == b'?')?);
    let after = rest.strip_prefix(b"?=")?;
    let text = match encoding {
        b'b' => {
            let mut text = Vec::new();
            Decoder::new(Encoding::Base64, encoded).step(usize::MAX, &mut text);
            text
        }
        b'q' => q_text(encoded),
        _ => return None,
    };
    Some(Word { charset, text, after })
}

/// RFC 2047 §4.2.
fn q_text(encoded: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'_', _) => text.push(b' '),
            (b'=', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    text.push((high << 4) | low);
                    rest = after;
                }
                _ => text.push(byte),
            },
            _ => text.push(byte),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn the_examples_of_rfc_2047_are_decoded() {
        for (value, expected) in [
            ("=?US-ASCII?Q?Keith_Moore?= <moore@cs.utk.edu>", "Keith Moore <moore@cs.utk.edu>"),
            ("=?ISO-8859-1?Q?Keld_J=F8rn_Simonsen?=", "Keld Jørn Simonsen"),
            (
                "=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?= =?ISO-8859-2?B?dSB1bmRlcnN0YW5kIHRoZSBleGFtcGxlLg==?=",
                "If you can read this you understand the example.",
            ),
            ("(=?ISO-8859-1?Q?a?= b)", "(a b)"),
            ("(=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=)", "(ab)"),
            ("(=?ISO-8859-1?Q?a_b?=)", "(a b)"),
            ("=?US-ASCII*EN?Q?Keith_Moore?=", "Keith Moore"),
        ] {
            assert_eq!(decode(value.as_bytes()), expected);
        }
    }

    #[test]
    fn what_is_no_encoded_word_stays() {
        for value in
            ["=?", "=?x", "=?utf-8?q?", "=?utf-8?q?a?b?=", "=?utf-8?x?a?=", "=?\u{fc}?q?a?=", "a =? b ?=", "=??q?a?="]
        {
            assert_eq!(decode(value.as_bytes()), value);
        }
        assert_eq!(decode(b"gr\xfcn"), "grün");
    }

    #[test]
    fn a_character_cut_between_words_is_whole_again() {
        assert_eq!(decode(b"=?utf-8?q?J=C3?= =?UTF-8?q?=BCrgen?="), "Jürgen");
    }
}
