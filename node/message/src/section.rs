//! Which octets a FETCH section names (RFC 3501 §6.4.5). Answers from the part table alone, so that only those octets
//! need be read from the disk.

use std::ops::Range;

use crate::digest::Digest;
use crate::part::{PartKind, child};

/// What stands after the part numbers in `BODY[...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SectionText {
    /// `BODY[]`, `BODY[1.2]`
    Full,
    Header,
    /// HEADER.FIELDS or, with `not`, HEADER.FIELDS.NOT.
    HeaderFields {
        names: Vec<String>,
        not: bool,
    },
    Text,
    Mime,
}

/// Octets of the raw message, within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Section {
    /// The section's text.
    Octets(Range<u64>),
    /// The header of which `header_fields` gives the section's text.
    Fields(Range<u64>),
}

impl Digest {
    /// None if there is no such section: FETCH answers NIL.
    pub fn section(&self, path: &[u32], text: &SectionText) -> Option<Section> {
        let Some(at) = self.part_at(path)? else {
            // The message itself: as if it were a message/rfc822 part without a MIME header.
            let root = self.parts.first()?;
            return match text {
                SectionText::Full => Some(Section::Octets(0..self.size)),
                SectionText::Header => Some(Section::Octets(root.header())),
                SectionText::HeaderFields { .. } => Some(Section::Fields(root.header())),
                SectionText::Text => Some(Section::Octets(root.body())),
                SectionText::Mime => None,
            };
        };
        let part = self.parts.get(at)?;
        // HEADER and TEXT are those of the message within: only a message/rfc822 part has them.
        let inner = || match part.kind {
            PartKind::Message => self.parts.get(at + 1),
            PartKind::Leaf | PartKind::Multipart => None,
        };
        Some(match text {
            SectionText::Full => Section::Octets(part.body()),
            SectionText::Mime => Section::Octets(part.header()),
            SectionText::Header => Section::Octets(inner()?.header()),
            SectionText::HeaderFields { .. } => Section::Fields(inner()?.header()),
            SectionText::Text => Section::Octets(inner()?.body()),
        })
    }

    /// The part that the numbers name; `Some(None)` for no numbers.
    fn part_at(&self, path: &[u32]) -> Option<Option<usize>> {
        let mut named: Option<usize> = None;
        for &number in path {
            // Where the number counts: in a multipart, or in a message, be it the whole or a message/rfc822 part.
            let within = match named {
                None => 0,
                Some(at) => match self.parts.get(at)?.kind {
                    PartKind::Multipart => at,
                    PartKind::Message => at + 1,
                    PartKind::Leaf => return None,
                },
            };
            named = match self.parts.get(within)?.kind {
                PartKind::Multipart => Some(child(&self.parts, within, number)?),
                // RFC 3501 §6.4.5: every message has at least one part number.
                PartKind::Leaf | PartKind::Message if number == 1 => Some(within),
                PartKind::Leaf | PartKind::Message => return None,
            };
        }
        Some(named)
    }
}

/// `<offset.count>` of a section: what of it there is (RFC 3501 §6.4.5: beyond the end it is empty).
pub fn partial(range: Range<u64>, offset: u64, count: u64) -> Range<u64> {
    let start = range.start.saturating_add(offset).min(range.end);
    start..start.saturating_add(count).min(range.end)
}

#[cfg(test)]
mod tests {
    use super::partial;

    #[test]
    fn partials_stay_within_the_section() {
        assert_eq!(partial(10..20, 0, 5), 10..15);
        assert_eq!(partial(10..20, 8, 5), 18..20);
        assert_eq!(partial(10..20, 10, 5), 20..20);
        assert_eq!(partial(10..20, u64::MAX, u64::MAX), 20..20);
        assert_eq!(partial(10..10, 0, 1), 10..10);
    }
}
