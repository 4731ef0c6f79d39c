//! Modified UTF-7, the encoding of mailbox names in IMAP4rev1 (RFC 3501 §5.1.3).

use base64::Engine;
use base64::alphabet::IMAP_MUTF7;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};

/// Base64 with `,` for `/`, no padding, and no stray bits at the end.
const BASE64: GeneralPurpose = GeneralPurpose::new(&IMAP_MUTF7, NO_PAD);

/// Not modified UTF-7, or not its one canonical form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid modified UTF-7")]
pub struct InvalidUtf7;

/// Invariant: a name has one encoding only, so that `encode(decode(x)) == x`. RFC 3501 §5.1.3 forbids the others:
/// printable ASCII in BASE64 (`&AGE-`) and superfluous shifts (`&Jjo-&Jjo-`).
pub fn decode(octets: &[u8]) -> Result<String, InvalidUtf7> {
    let mut text = String::with_capacity(octets.len());
    let mut rest = std::str::from_utf8(octets).map_err(|_| InvalidUtf7)?;
    while let Some((plain, shifted)) = rest.split_once('&') {
        text.push_str(plain);
        let (encoded, after) = shifted.split_once('-').ok_or(InvalidUtf7)?;
        if encoded.is_empty() {
            text.push('&');
        } else {
            let utf16 = BASE64.decode(encoded).map_err(|_| InvalidUtf7)?;
            let (pairs, odd) = utf16.as_chunks::<2>();
            if !odd.is_empty() {
                return Err(InvalidUtf7);
            }
            for decoded in char::decode_utf16(pairs.iter().map(|pair| u16::from_be_bytes(*pair))) {
                text.push(decoded.map_err(|_| InvalidUtf7)?);
            }
        }
        rest = after;
    }
    text.push_str(rest);
    if encode(&text).as_bytes() == octets { Ok(text) } else { Err(InvalidUtf7) }
}

/// Printable ASCII throughout, whatever the text.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut utf16: Vec<u8> = Vec::new();
    for c in text.chars() {
        if !matches!(c, ' '..='~') {
            let mut units = [0u16; 2];
            utf16.extend(c.encode_utf16(&mut units).iter().flat_map(|unit| unit.to_be_bytes()));
            continue;
        }
        close(&mut out, &mut utf16);
        out.push(c);
        if c == '&' {
            out.push('-');
        }
    }
    close(&mut out, &mut utf16);
    out
}

fn close(out: &mut String, utf16: &mut Vec<u8>) {
    if !utf16.is_empty() {
        out.push('&');
        BASE64.encode_string(&utf16, out);
        out.push('-');
        utf16.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{decode, encode};

    #[test]
    fn the_examples_of_rfc_3501_decode_and_encode() {
        for (wire, text) in [
            ("~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
            ("&Jjo-!", "☺!"),
            ("a&-b", "a&b"),
            ("&Jjo-&-", "☺&"),
            ("&2D3eAA-", "😀"),
            ("Entw&APw-rfe", "Entwürfe"),
            ("", ""),
        ] {
            assert_eq!(decode(wire.as_bytes()).as_deref(), Ok(text));
            assert_eq!(encode(text), wire);
        }
    }

    #[test]
    fn other_forms_of_a_name_are_refused() {
        let bad: [&[u8]; 14] = [
            b"a&b",
            b"&Jjo!",
            b"&AGE-",
            b"&U,BTFw-&ZeVnLIqe-",
            b"&",
            b"a&",
            b"&2D0-",
            b"&3gA-",
            b"&Jj-",
            b"&Jjp-",
            b"&Jjo=-",
            b"Entw\xc3\xbcrfe",
            b"a\rb",
            b"\xff",
        ];
        for bad in bad {
            assert!(decode(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn every_text_survives_the_round_trip(text in any::<String>()) {
            let wire = encode(&text);
            assert!(wire.bytes().all(|b| (0x20..0x7f).contains(&b)));
            assert_eq!(decode(wire.as_bytes()), Ok(text));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_octets(octets in proptest::collection::vec(proptest::sample::select(&b"&-aAZzo09,+/J=!"[..]), 0..24)) {
            if let Ok(text) = decode(&octets) {
                assert_eq!(encode(&text).as_bytes(), octets);
            }
        }
    }
}
