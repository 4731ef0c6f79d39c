//! The header as a list of fields: where each begins and ends, its unfolded value, and the subset of lines that
//! `HEADER.FIELDS` asks for. Knows nothing of what the fields mean.

use std::borrow::Cow;

use crate::lines::{break_len, is_blank, line_end, without_break};
use crate::words;

/// One field with its folded lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// Empty for a line that is no field: no colon, or blanks within the name.
    pub name: &'a [u8],
    /// After the colon, folded as it came, without the last line break.
    pub value: &'a [u8],
    /// Every octet of the field, line breaks included.
    pub raw: &'a [u8],
}

impl Field<'_> {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The fields up to the first empty line or the end.
pub(crate) fn fields(header: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let mut end = line_end(header, at);
        if without_break(header.get(at..end)?).is_empty() {
            return None;
        }
        // RFC 5322 §2.2.3: a line that begins with a blank goes on with the field.
        while header.get(end).copied().is_some_and(is_blank) {
            end = line_end(header, end);
        }
        let raw = header.get(at..end)?;
        at = end;
        Some(field(raw))
    })
}

fn field(raw: &[u8]) -> Field<'_> {
    let text = without_break(raw);
    // The name ends at the first colon, which stands on the first line.
    let name_end = text.iter().position(|byte| matches!(byte, b':' | b'\n'));
    if let Some((name, [b':', value @ ..])) = name_end.and_then(|end| text.split_at_checked(end)) {
        // RFC 5322 §4.5: obsolete syntax has blanks before the colon.
        let name = trim_end(name);
        if !name.is_empty() && name.iter().all(|byte| (33..127).contains(byte)) {
            return Field { name, value, raw };
        }
    }
    Field { name: b"", value: text, raw }
}

fn trim_end(text: &[u8]) -> &[u8] {
    let blanks = text.iter().rev().take_while(|&&byte| is_blank(byte)).count();
    &text[..text.len() - blanks]
}

/// The value on one line: line breaks and NULs removed (RFC 5322 §2.2.3, RFC 3501 §9: no string holds a NUL), blanks
/// trimmed at both ends, cut after `octets_max`.
pub(crate) fn unfold(value: &[u8], octets_max: usize) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    let plain = value.get(..octets_max).unwrap_or(value);
    if !plain.iter().any(|&byte| byte == b'\n' || byte == 0) {
        return Cow::Borrowed(plain);
    }
    let mut text = Vec::with_capacity(plain.len());
    for (at, &byte) in value.iter().enumerate() {
        let folds = byte == b'\n' || byte == 0 || (byte == b'\r' && value.get(at + 1) == Some(&b'\n'));
        if !folds {
            text.push(byte);
            if text.len() == octets_max {
                break;
            }
        }
    }
    Cow::Owned(text)
}

/// The values of every field of this name, unfolded and decoded to text (RFC 2047).
pub fn header_values<'a>(header: &'a [u8], name: &'a str) -> impl Iterator<Item = String> + 'a {
    fields(header).filter(move |field| field.is(name)).map(|field| words::decode(&unfold(field.value, usize::MAX)))
}

/// The lines of `HEADER.FIELDS` or, with `not`, of `HEADER.FIELDS.NOT`, byte-exact, with the empty line that ends them
/// (RFC 3501 §6.4.5). A line that is no field has no name to ask for, so only `not` gives it.
pub fn header_fields(header: &[u8], names: &[String], not: bool) -> Vec<u8> {
    let mut lines = Vec::new();
    for field in fields(header) {
        let listed = !field.name.is_empty() && names.iter().any(|name| field.is(name));
        if listed != not {
            lines.extend_from_slice(field.raw);
        }
    }
    // A header that ends in the middle of a line.
    if !lines.is_empty() && break_len(&lines) == 0 {
        lines.extend_from_slice(b"\r\n");
    }
    lines.extend_from_slice(b"\r\n");
    lines
}

#[cfg(test)]
mod tests {
    use super::{fields, header_fields, header_values, unfold};

    const HEADER: &[u8] =
        b"From x@y Mon Jan  1 10:00:00 2001\r\nSubject: a\r\n  b\r\nTO : c\r\njunk\r\nto:d\r\n\r\nX: no\r\n";

    #[test]
    fn fields_keep_their_folded_lines() {
        let found: Vec<_> = fields(HEADER).map(|field| (field.name, field.value)).collect();
        let expected: [(&[u8], &[u8]); 5] = [
            (b"", b"From x@y Mon Jan  1 10:00:00 2001"),
            (b"Subject", b" a\r\n  b"),
            (b"TO", b" c"),
            (b"", b"junk"),
            (b"to", b"d"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn header_fields_are_byte_exact_and_end_with_an_empty_line() {
        let names = ["subject".to_owned(), "TO".to_owned()];
        assert_eq!(header_fields(HEADER, &names, false), b"Subject: a\r\n  b\r\nTO : c\r\nto:d\r\n\r\n");
        assert_eq!(header_fields(HEADER, &names, true), b"From x@y Mon Jan  1 10:00:00 2001\r\njunk\r\n\r\n");
        assert_eq!(header_fields(HEADER, &["X".to_owned(), String::new()], false), b"\r\n");
        assert_eq!(header_fields(b"A: 1\nB: 2", &["b".to_owned()], false), b"B: 2\r\n\r\n");
        assert_eq!(header_fields(b"", &[], true), b"\r\n");
    }

    #[test]
    fn values_are_unfolded_trimmed_and_cut() {
        assert_eq!(&*unfold(b" a\r\n\tb\0c\n d\re \r\n", 100), b"a\tbc d\re");
        assert_eq!(&*unfold(b" abcdef", 3), b"abc");
        assert_eq!(&*unfold(b"a\r\n bcdef", 4), b"a bc");
        assert_eq!(header_values(HEADER, "To").collect::<Vec<_>>(), ["c", "d"]);
    }
}
