//! Writes the IMAP forms of strings: quoted where they are short and safe, literals elsewhere (RFC 3501 §4.3).

use crate::limits::{QUOTED_OCTETS_MAX, STRING_OCTETS_MAX};

/// Bytes in IMAP syntax, with an allowance for what may be left out.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub out: Vec<u8>,
    allowance_end: usize,
}

impl Writer {
    /// `octets_max` is soft: what is begun within it is written whole.
    pub(crate) fn new(octets_max: usize) -> Writer {
        Writer { out: Vec::with_capacity(256), allowance_end: octets_max }
    }

    /// The allowance is used up: whatever may be NIL should be.
    pub(crate) fn is_full(&self) -> bool {
        self.out.len() >= self.allowance_end
    }

    /// What is not optional does not count against the allowance of what is.
    pub(crate) fn uncounted(&mut self, write: impl FnOnce(&mut Writer)) {
        let before = self.out.len();
        write(self);
        self.allowance_end = self.allowance_end.saturating_add(self.out.len() - before);
    }

    pub(crate) fn raw(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.raw(number.to_string().as_bytes());
    }

    /// A string, cut after STRING_OCTETS_MAX. NULs are left out: neither form may hold one. Octets above 127 make it a
    /// literal, in which RFC 3501 clients survive them.
    pub(crate) fn string(&mut self, text: &[u8]) {
        let text = text.get(..STRING_OCTETS_MAX).unwrap_or(text);
        if text.contains(&0) {
            let kept: Vec<u8> = text.iter().copied().filter(|&byte| byte != 0).collect();
            return self.string(&kept);
        }
        let quotable = |&byte: &u8| byte != b'\r' && byte != b'\n' && byte < 128;
        if text.len() > QUOTED_OCTETS_MAX || !text.iter().all(quotable) {
            self.raw(format!("{{{}}}\r\n", text.len()).as_bytes());
            return self.raw(text);
        }
        self.out.push(b'"');
        for &byte in text {
            if byte == b'"' || byte == b'\\' {
                self.out.push(b'\\');
            }
            self.out.push(byte);
        }
        self.out.push(b'"');
    }

    pub(crate) fn nil(&mut self) {
        self.raw(b"NIL");
    }

    /// NIL also where the allowance is used up.
    pub(crate) fn nstring(&mut self, text: Option<&[u8]>) {
        match text {
            Some(text) if !self.is_full() => self.string(text),
            _ => self.nil(),
        }
    }

    pub(crate) fn space(&mut self) {
        self.out.push(b' ');
    }
}

#[cfg(test)]
mod tests {
    use super::Writer;
    use crate::limits::{QUOTED_OCTETS_MAX, STRING_OCTETS_MAX};

    fn written(text: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(usize::MAX);
        writer.string(text);
        writer.out
    }

    #[test]
    fn strings_are_quoted_where_safe_and_literals_elsewhere() {
        assert_eq!(written(b"a \"b\" \\c"), br#""a \"b\" \\c""#);
        assert_eq!(written(b""), b"\"\"");
        assert_eq!(written(b"a\0b"), b"\"ab\"");
        assert_eq!(written(b"a\rb"), b"{3}\r\na\rb");
        assert_eq!(written("ü".as_bytes()), b"{2}\r\n\xc3\xbc");
        assert!(written(&[b'x'; QUOTED_OCTETS_MAX]).starts_with(b"\""));
        assert!(written(&[b'x'; QUOTED_OCTETS_MAX + 1]).starts_with(b"{1025}\r\nx"));
        assert!(written(&[b'x'; STRING_OCTETS_MAX + 1]).starts_with(b"{8192}\r\nx"));
    }
}
