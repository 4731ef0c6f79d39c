//! The part table: a message's MIME tree in pre-order, with the octet offsets of each part. What FETCH sections and
//! SEARCH need; what the parts are called is in BODYSTRUCTURE.

use std::ops::Range;

/// What a node of the tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// A part without parts.
    Leaf,
    /// Its children follow it, one level deeper. There is at least one.
    Multipart,
    /// message/rfc822: its one child is the message within, whose header begins where this body begins.
    Message,
}

/// The transfer encoding, as far as SEARCH must undo it (RFC 2045 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 7bit, 8bit, binary, or one that is not known.
    Identity,
    QuotedPrintable,
    Base64,
}

/// One node. Invariant: `header_start <= body_start <= end`, all within its parent's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// 0 is the message itself.
    pub depth: usize,
    pub kind: PartKind,
    /// The MIME header, with the empty line that ends it, is `header_start..body_start`.
    pub header_start: u64,
    pub body_start: u64,
    /// The body is `body_start..end`. The line break before a delimiter belongs to the delimiter (RFC 2046 §5.1.1).
    pub end: u64,
    /// text/*: SEARCH BODY looks into it.
    pub is_text: bool,
    pub encoding: Encoding,
    /// Which of the digest's charsets; none for no or a broken charset parameter.
    pub charset: Option<u32>,
}

impl Part {
    pub fn header(&self) -> Range<u64> {
        self.header_start..self.body_start
    }

    pub fn body(&self) -> Range<u64> {
        self.body_start..self.end
    }
}

/// Octets of a message; none of those that are not there.
pub(crate) fn octets<'a>(raw: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) => raw.get(start..end).unwrap_or_default(),
        _ => &[],
    }
}

/// The n-th child, from 1, of the part at `parent`.
pub(crate) fn child(parts: &[Part], parent: usize, n: u32) -> Option<usize> {
    let depth = parts.get(parent)?.depth + 1;
    let below = parts.iter().enumerate().skip(parent + 1).take_while(|(_, part)| part.depth >= depth);
    below.filter(|(_, part)| part.depth == depth).map(|(at, _)| at).nth(usize::try_from(n.checked_sub(1)?).ok()?)
}

/// Whether the table is a tree as described above, within a message of `size` octets.
pub(crate) fn is_sound(parts: &[Part], size: u64, charsets: usize) -> bool {
    // The open parents: index and how many children so far.
    let mut open: Vec<(&Part, u32)> = Vec::new();
    let has_its_children = |(part, children): &(&Part, u32)| match part.kind {
        PartKind::Leaf => *children == 0,
        PartKind::Multipart => *children >= 1,
        PartKind::Message => *children == 1,
    };
    for part in parts {
        while open.len() > part.depth {
            if !open.pop().is_some_and(|closed| has_its_children(&closed)) {
                return false;
            }
        }
        let within = match open.last_mut() {
            Some((parent, children)) => {
                *children += 1;
                parent.body()
            }
            None => 0..size,
        };
        let ordered = within.start <= part.header_start
            && part.header_start <= part.body_start
            && part.body_start <= part.end
            && part.end <= within.end;
        let charset_known = part.charset.is_none_or(|charset| (charset as usize) < charsets);
        if open.len() != part.depth || !ordered || !charset_known {
            return false;
        }
        open.push((part, 0));
    }
    parts.first().is_some_and(|root| root.header_start == 0)
        && parts.iter().filter(|part| part.depth == 0).count() == 1
        && open.iter().all(has_its_children)
}
