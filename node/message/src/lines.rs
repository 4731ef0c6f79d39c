//! Lines as mail stores hold them: ended by CRLF or by a bare LF. A bare CR is data.

use std::io::BufRead;

/// The offset after the next LF at or after `at`, or the length where there is none.
pub(crate) fn line_end(raw: &[u8], at: usize) -> usize {
    let mut rest = raw.get(at..).unwrap_or_default();
    // On a slice this cannot fail, and it is the fastest safe search for a byte that std has.
    at + rest.skip_until(b'\n').unwrap_or(0)
}

/// The line without its CRLF or LF.
pub(crate) fn without_break(line: &[u8]) -> &[u8] {
    match line {
        [text @ .., b'\r', b'\n'] | [text @ .., b'\n'] => text,
        _ => line,
    }
}

/// Octets of the line break that ends `before`: 0, 1 or 2.
pub(crate) fn break_len(before: &[u8]) -> usize {
    before.len() - without_break(before).len()
}

pub(crate) fn count_lf(text: &[u8]) -> u64 {
    text.iter().filter(|&&byte| byte == b'\n').count() as u64
}

pub(crate) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}
