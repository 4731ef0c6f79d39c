//! Replies as bytes (RFC 5321 §4.2) with enhanced status codes (RFC 2034).

use bytes::Bytes;
use types::SmtpReply;

/// Text octets in one reply line; with code, enhanced code and CRLF this stays below 512 (RFC 5321 §4.5.3.1.5).
const TEXT_OCTETS_MAX: usize = 480;

/// The reply's bytes. Text that is too long for a line goes on in the next; control and non-ASCII characters become `?`.
pub fn render(reply: &SmtpReply) -> Bytes {
    line(reply.code, reply.enhanced, &reply.text)
}

/// `enhanced` is empty for the greeting, EHLO, HELO, 334 and 354 (RFC 2034 §4).
pub(crate) fn line(code: u16, enhanced: &str, text: &str) -> Bytes {
    let text: Vec<u8> = text.chars().map(printable).collect();
    let mut out = Vec::with_capacity(text.len() + 16);
    let mut pieces = text.chunks(TEXT_OCTETS_MAX).peekable();
    if pieces.peek().is_none() {
        push(&mut out, code, true, enhanced, b"");
    }
    while let Some(piece) = pieces.next() {
        push(&mut out, code, pieces.peek().is_none(), enhanced, piece);
    }
    out.into()
}

/// A multi-line reply without enhanced codes, for EHLO.
pub(crate) fn lines(code: u16, texts: &[String]) -> Bytes {
    let mut out = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let text: Vec<u8> = text.chars().map(printable).collect();
        push(&mut out, code, i + 1 == texts.len(), "", &text);
    }
    out.into()
}

fn push(out: &mut Vec<u8>, code: u16, last: bool, enhanced: &str, text: &[u8]) {
    out.extend_from_slice(code.to_string().as_bytes());
    out.push(if last { b' ' } else { b'-' });
    if !enhanced.is_empty() {
        out.extend_from_slice(enhanced.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

fn printable(c: char) -> u8 {
    u8::try_from(c).ok().filter(|byte| matches!(byte, b' '..=b'~')).unwrap_or(b'?')
}

#[cfg(test)]
mod tests {
    use types::SmtpReply;

    use super::render;

    #[test]
    fn a_reply_cannot_be_split_by_its_text() {
        let reply = SmtpReply { code: 550, enhanced: "5.1.1", text: "no\r\n250 such ü".to_owned() };
        assert_eq!(&render(&reply)[..], b"550 5.1.1 no??250 such ?\r\n");
    }

    #[test]
    fn long_text_goes_on_in_further_lines_below_512_octets() {
        let reply = SmtpReply { code: 451, enhanced: "4.3.0", text: "x".repeat(1_000) };
        let bytes = render(&reply);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() <= 512));
        assert!(lines[0].starts_with(b"451-4.3.0 x") && lines[2].starts_with(b"451 4.3.0 x"));
    }
}
