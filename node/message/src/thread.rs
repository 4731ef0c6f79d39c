//! What THREAD and SORT compare: message ids and base subjects (RFC 5256 §2.1, §2.2).

use crate::header::unfold;
use crate::limits::STRING_OCTETS_MAX;
use crate::words;

/// Octets of one message id; RFC 5322 §2.1.1 allows no longer line.
const MESSAGE_ID_OCTETS_MAX: usize = 998;

/// The message ids in a field's value, without angle brackets and quoting (RFC 5256 §2.2: they are compared so).
pub(crate) fn message_ids(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let pieces = value.split(|&byte| byte == b'<').skip(1);
    pieces.filter_map(|piece| {
        let id = piece.get(..piece.iter().position(|&byte| byte == b'>')?)?;
        let kept = |&byte: &u8| byte > b' ' && byte != b'"' && byte != b'\\';
        let id: Vec<u8> = id.iter().copied().filter(kept).collect();
        (!id.is_empty() && id.len() <= MESSAGE_ID_OCTETS_MAX).then_some(id)
    })
}

/// The ids of a References field's value, oldest first: the first, which names the thread, and the last ones.
pub(crate) fn references(value: &[u8], ids_max: usize) -> Vec<Vec<u8>> {
    let mut ids: Vec<_> = message_ids(value).collect();
    if ids.len() > ids_max {
        ids.drain(1..ids.len() - ids_max.saturating_sub(1));
    }
    ids
}

/// A subject without what replies and forwards put around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseSubject {
    pub text: String,
    /// Something was taken away: the message is a reply or a forward (RFC 5256 §2.1).
    pub is_reply: bool,
}

/// RFC 5256 §2.1, steps 1 to 6; `subject` as in the header.
pub(crate) fn base_subject(subject: &[u8]) -> BaseSubject {
    let decoded = words::decode(&unfold(subject, STRING_OCTETS_MAX));
    let whole = decoded.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut text = whole.as_str();
    let mut is_reply = false;
    loop {
        // (2) trailing "(fwd)" and blanks
        while let Some(shorter) = strip_end(text.trim_end(), "(fwd)") {
            text = shorter;
            is_reply = true;
        }
        text = text.trim();
        // (3) to (5)
        loop {
            if let Some(shorter) = strip_leader(text) {
                text = shorter;
                is_reply = true;
            } else if let Some(shorter) = strip_blob(text).filter(|shorter| !shorter.is_empty()) {
                text = shorter;
            } else {
                break;
            }
        }
        // (6) "[fwd:" ... "]"
        match strip_start(text, "[fwd:").and_then(|inner| inner.strip_suffix(']')) {
            Some(inner) => {
                text = inner;
                is_reply = true;
            }
            None => return BaseSubject { text: text.to_owned(), is_reply },
        }
    }
}

/// `subj-leader = (*subj-blob subj-refwd) / WSP`, `subj-refwd = ("re" / ("fw" ["d"])) *WSP [subj-blob] ":"`
fn strip_leader(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some(shorter) = strip_blob(rest) {
        rest = shorter;
    }
    let rest = ["re", "fwd", "fw"].iter().find_map(|word| strip_start(rest, word))?.trim_start();
    let rest = strip_blob(rest).unwrap_or(rest);
    Some(rest.strip_prefix(':')?.trim_start())
}

/// `subj-blob = "[" *BLOBCHAR "]" *WSP`
fn strip_blob(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[')?;
    let end = inner.find(['[', ']'])?;
    Some(inner.get(end..)?.strip_prefix(']')?.trim_start())
}

fn strip_start<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(word.len())?;
    start.eq_ignore_ascii_case(word).then_some(rest)
}

fn strip_end<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (rest, end) = text.split_at_checked(text.len().checked_sub(word.len())?)?;
    end.eq_ignore_ascii_case(word).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::{base_subject, message_ids, references};
    use crate::limits::REFERENCES_MAX;

    #[test]
    fn base_subjects_lose_what_replies_add() {
        for (subject, base, is_reply) in [
            ("Hello", "Hello", false),
            ("Re: Hello", "Hello", true),
            ("re [2]: FWD: fw : Hello (fwd) (FWD) ", "Hello", true),
            ("[list] Re: [list] Hello", "Hello", true),
            ("[list] Hello", "Hello", false),
            ("[list]", "[list]", false),
            ("[Fwd: Re: Hello]", "Hello", true),
            ("=?utf-8?q?Re=3A_gr=C3=BCn?=", "grün", true),
            ("a\r\n\t b", "a b", false),
            ("Re:", "", true),
            ("Reply: x", "Reply: x", false),
            ("", "", false),
        ] {
            let found = base_subject(subject.as_bytes());
            assert_eq!((found.text.as_str(), found.is_reply), (base, is_reply), "{subject}");
        }
    }

    #[test]
    fn hostile_subjects_end() {
        for piece in ["[", "[a]", "Re:", "(fwd)", "[fwd:", "]"] {
            base_subject(piece.repeat(100_000).as_bytes());
        }
    }

    #[test]
    fn message_ids_are_compared_without_quoting() {
        let ids: Vec<_> = message_ids(b"junk <\"01KF8\"@xxx.test>\r\n <a@b> <> <unclosed <c@d>").collect();
        assert_eq!(ids, [b"01KF8@xxx.test".to_vec(), b"a@b".to_vec(), b"c@d".to_vec()]);
    }

    #[test]
    fn the_first_reference_and_the_last_ones_are_kept() {
        let value: String = (0..10_000).map(|n| format!(" <{n}@x>\r\n")).collect();
        let ids = references(value.as_bytes(), REFERENCES_MAX);
        assert_eq!(ids.len(), REFERENCES_MAX);
        assert_eq!(ids.first(), Some(&b"0@x".to_vec()));
        assert_eq!(ids.get(1), Some(&b"9901@x".to_vec()));
        assert_eq!(ids.last(), Some(&b"9999@x".to_vec()));
    }
}
