//! Strings, names and numbers within responses (RFC 3501 §9).

use std::fmt::{Display, Write};

use bytes::{BufMut, BytesMut};
use types::Flags;

use crate::utf7;

/// Longer strings go as literals: some clients read quoted strings into small buffers.
const QUOTED_OCTETS_MAX: usize = 1_000;

/// `string = quoted / literal`: quoted if printable ASCII and short. NUL, which neither form can hold, becomes 0x80,
/// as Dovecot has it.
pub fn put_string(out: &mut BytesMut, octets: &[u8]) {
    if octets.len() <= QUOTED_OCTETS_MAX && octets.iter().all(|b| (0x20..0x7f).contains(b)) {
        put_quoted(out, octets);
        return;
    }
    put_display(out, format_args!("{{{}}}\r\n", octets.len()));
    for (i, run) in octets.split(|b| *b == 0).enumerate() {
        if i > 0 {
            out.put_u8(0x80);
        }
        out.put_slice(run);
    }
}

/// `nstring = string / nil`
pub fn put_nstring(out: &mut BytesMut, octets: Option<&[u8]>) {
    match octets {
        Some(octets) => put_string(out, octets),
        None => out.put_slice(b"NIL"),
    }
}

/// A mailbox's name in modified UTF-7, which is printable ASCII whatever the name.
pub fn put_mailbox(out: &mut BytesMut, name: &str) {
    put_quoted(out, utf7::encode(name).as_bytes());
}

/// `printable` is printable ASCII.
pub(super) fn put_quoted(out: &mut BytesMut, printable: &[u8]) {
    out.put_u8(b'"');
    for &octet in printable {
        if matches!(octet, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(octet);
    }
    out.put_u8(b'"');
}

/// `text = 1*TEXT-CHAR`, in ASCII. What is not printable becomes `?`; a bracket that would begin a response code is
/// kept from the beginning.
pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    if text.is_empty() || text.starts_with('[') {
        out.put_slice(b". ");
    }
    for c in text.chars() {
        out.put_u8(if matches!(c, ' '..='~') { c as u8 } else { b'?' });
    }
}

/// What becomes an atom though it came as text. Anything else than an atom's characters is left out.
pub(super) fn put_atom(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|b| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(b)));
}

pub(super) fn put_display(out: &mut BytesMut, value: impl Display) {
    // Writing to a buffer that grows does not fail.
    let _ = write!(out, "{value}");
}

/// `"(" [flag *(SP flag)] ")"`; `last` is `\Recent` or `\*`.
pub(super) fn put_flags(out: &mut BytesMut, flags: &Flags, last: Option<&str>) {
    out.put_u8(b'(');
    for (i, name) in flags.names().chain(last).enumerate() {
        if i > 0 {
            out.put_u8(b' ');
        }
        out.put_slice(name.as_bytes());
    }
    out.put_u8(b')');
}

/// `item *(SP item)`
pub(super) fn put_joined<T>(
    out: &mut BytesMut,
    items: impl IntoIterator<Item = T>,
    mut put: impl FnMut(&mut BytesMut, T),
) {
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.put_u8(b' ');
        }
        put(out, item);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::{any, proptest};

    use super::{put_atom, put_mailbox, put_nstring, put_string, put_text};

    fn written(put: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out);
        out.to_vec()
    }

    #[test]
    fn strings_are_quoted_when_that_is_safe_and_literals_otherwise() {
        assert_eq!(written(|out| put_string(out, br#"a "b" \c"#)), br#""a \"b\" \\c""#);
        assert_eq!(written(|out| put_string(out, b"a\r\nb")), b"{4}\r\na\r\nb");
        assert_eq!(written(|out| put_string(out, "ü".as_bytes())), b"{2}\r\n\xc3\xbc");
        assert_eq!(written(|out| put_string(out, b"a\0\0b")), b"{4}\r\na\x80\x80b");
        assert_eq!(written(|out| put_string(out, b"")), br#""""#);
        assert!(written(|out| put_string(out, &[b'x'; 1_001])).starts_with(b"{1001}\r\n"));
        assert_eq!(written(|out| put_nstring(out, None)), b"NIL");
        assert_eq!(written(|out| put_mailbox(out, "NIL")), br#""NIL""#);
        assert_eq!(written(|out| put_mailbox(out, "Entwürfe & \"x\"")), br#""Entw&APw-rfe &- \"x\"""#);
        assert_eq!(written(|out| put_atom(out, "A B\r\nC*")), b"ABC");
    }

    #[test]
    fn free_text_is_never_empty_nor_taken_for_a_code() {
        assert_eq!(written(|out| put_text(out, "")), b". ");
        assert_eq!(written(|out| put_text(out, "[ALERT] x\r\n* BYE\0")), b". [ALERT] x??* BYE?");
    }

    proptest! {
        #[test]
        fn no_text_or_name_ends_a_line(text in any::<String>()) {
            for octets in [written(|out| put_text(out, &text)), written(|out| put_mailbox(out, &text))] {
                assert!(octets.iter().all(|b| (0x20..0x7f).contains(b)));
            }
        }
    }
}
