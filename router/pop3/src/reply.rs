//! Replies as bytes (RFC 1939 §3, RFC 2449 §8).

use bytes::Bytes;

/// Text octets in a reply line; with status and code it stays below 512 (RFC 1939 §3).
const TEXT_OCTETS_MAX: usize = 480;

pub(crate) fn ok(text: &str) -> Bytes {
    status("+OK", text)
}

/// `code` without brackets; empty for none.
pub(crate) fn err(code: &str, text: &str) -> Bytes {
    if code.is_empty() { status("-ERR", text) } else { status(&format!("-ERR [{code}]"), text) }
}

/// Control and non-ASCII characters become `?`.
fn status(status: &str, text: &str) -> Bytes {
    let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String = text.chars().take(TEXT_OCTETS_MAX).map(printable).collect();
    format!("{status} {text}\r\n").into()
}

#[cfg(test)]
mod tests {
    use super::{err, ok};

    #[test]
    fn a_reply_cannot_be_split_by_its_text() {
        assert_eq!(&ok("a\r\n+OK b")[..], b"+OK a??+OK b\r\n");
        assert_eq!(&err("SYS/TEMP", "ü")[..], b"-ERR [SYS/TEMP] ?\r\n");
        assert!(err("", &"x".repeat(2_000)).len() <= 512);
    }
}
