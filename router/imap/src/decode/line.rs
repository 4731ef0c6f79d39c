//! What can be told from a line alone: whether a literal follows it, and whether it is IMAP at all.

/// A literal announced by the end of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Announced {
    /// Where its brace stands in the line.
    pub at: usize,
    /// `u64::MAX` for any number that does not fit.
    pub size: u64,
    /// Whether the client waits to be told to go on (RFC 3501 §4.3), rather than sending at once (RFC 7888 §4).
    pub synchronising: bool,
}

/// `"{" number ["+"] "}"` at the end of `line` (which has no CRLF) and outside quotes.
pub(super) fn announced_literal(line: &[u8]) -> Option<Announced> {
    let inner = line.strip_suffix(b"}")?;
    let at = inner.iter().rposition(|b| *b == b'{')?;
    let (text, braced) = (line.get(..at)?, inner.get(at + 1..)?);
    let (digits, synchronising) = match braced.strip_suffix(b"+") {
        Some(digits) => (digits, false),
        None => (braced, true),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) || ends_in_quotes(text) {
        return None;
    }
    let size = digits.iter().fold(0u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0')));
    Some(Announced { at, size, synchronising })
}

/// Whether a quoted string is open at the end of `text`.
fn ends_in_quotes(text: &[u8]) -> bool {
    let mut octets = text.iter();
    let mut open = false;
    while let Some(octet) = octets.next() {
        match octet {
            b'"' => open = !open,
            b'\\' if open => {
                octets.next();
            }
            _ => {}
        }
    }
    open
}

/// A browser, or a page that makes one speak to this port, must not get further lines of its request executed.
pub(super) fn is_http_request(line: &[u8]) -> bool {
    const METHODS: [&[u8]; 10] =
        [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT", b"TRACE", b"PATCH", b"PRI"];
    let mut words = line.split(|b| *b == b' ');
    words.next().is_some_and(|first| METHODS.contains(&first))
        && words.next_back().is_some_and(|last| last.starts_with(b"HTTP/"))
}

#[cfg(test)]
mod tests {
    use super::{announced_literal, is_http_request};

    fn announced(line: &str) -> Option<(u64, bool)> {
        announced_literal(line.as_bytes()).map(|literal| (literal.size, literal.synchronising))
    }

    #[test]
    fn a_literal_is_announced_by_the_end_of_a_line_outside_quotes() {
        assert_eq!(announced("a LOGIN {5}"), Some((5, true)));
        assert_eq!(announced("a LOGIN {5+}"), Some((5, false)));
        assert_eq!(announced(r#"a LOGIN "x\"" {0}"#), Some((0, true)));
        assert_eq!(announced("a X {18446744073709551616}"), Some((u64::MAX, true)));
        for not in
            ["", "a", "{}", "{+}", "{-1}", "{abc}", "{5", "5}", "{5+} ", "{5 }", r#"a "x{5}"#, r#"a "\"{5+}"#, "{+5}"]
        {
            assert_eq!(announced(not), None, "{not}");
        }
    }

    #[test]
    fn http_is_told_by_method_and_version() {
        assert!(is_http_request(b"GET / HTTP/1.1"));
        assert!(is_http_request(b"PRI * HTTP/2.0"));
        assert!(!is_http_request(b"GET NOOP"));
        assert!(!is_http_request(b"a NOOP HTTP/1.1"));
    }
}
