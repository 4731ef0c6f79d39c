//! A digest's form on the disk: a version octet, then a protobuf record whose tables are packed as varints of
//! differences. Reading is bounded by the record's length and trusts nothing in it.

use bytes::Bytes;
use prost::Message;
use types::InternalDate;

use crate::digest::Digest;
use crate::limits::PARTS_MAX;
use crate::part::{Encoding, Part, PartKind, is_sound};

/// The form that this code writes.
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Written by a newer release, or no digest at all.
    #[error("digest has unknown version {0}")]
    Version(u8),
    #[error("digest is damaged: {0}")]
    Corrupt(&'static str),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(uint64, tag = "1")]
    size: u64,
    #[prost(bytes = "bytes", tag = "2")]
    envelope: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    body_structure: Bytes,
    /// Per extension: the distance from the end of the one before, and the length.
    #[prost(uint64, repeated, tag = "4")]
    extensions: Vec<u64>,
    /// Per part: depth, traits, distance of header_start from the one before, header length, body length, and the
    /// charset's number plus 1.
    #[prost(uint64, repeated, tag = "5")]
    parts: Vec<u64>,
    #[prost(string, repeated, tag = "6")]
    charsets: Vec<String>,
    #[prost(sint64, optional, tag = "7")]
    sent_unix_s: Option<i64>,
    #[prost(sint32, tag = "8")]
    sent_offset_min: i32,
    #[prost(bytes = "vec", repeated, tag = "9")]
    references: Vec<Vec<u8>>,
}

const NUMBERS_PER_PART: usize = 6;

impl Digest {
    pub fn encode(&self) -> Vec<u8> {
        let mut parts = Vec::with_capacity(self.parts.len() * NUMBERS_PER_PART);
        let mut before = 0;
        for part in &self.parts {
            parts.extend([
                part.depth as u64,
                traits(part),
                part.header_start - before,
                part.body_start - part.header_start,
                part.end - part.body_start,
                part.charset.map_or(0, |charset| u64::from(charset) + 1),
            ]);
            before = part.header_start;
        }
        let mut extensions = Vec::with_capacity(self.extensions.len() * 2);
        let mut before = 0;
        for extension in &self.extensions {
            extensions.extend([(extension.start - before) as u64, extension.len() as u64]);
            before = extension.end;
        }
        let record = Record {
            size: self.size,
            envelope: self.envelope.clone(),
            body_structure: self.body_structure.clone(),
            extensions,
            parts,
            charsets: self.charsets.clone(),
            sent_unix_s: self.sent.map(|sent| sent.unix_s),
            sent_offset_min: self.sent.map_or(0, |sent| i32::from(sent.offset_min)),
            references: self.references.clone(),
        };
        let mut encoded = Vec::with_capacity(1 + record.encoded_len());
        encoded.push(VERSION);
        encoded.append(&mut record.encode_to_vec());
        encoded
    }

    pub fn decode(encoded: &[u8]) -> Result<Digest, DigestError> {
        let (&version, record) = encoded.split_first().ok_or(DigestError::Corrupt("it is empty"))?;
        if version != VERSION {
            return Err(DigestError::Version(version));
        }
        let record = Record::decode(record).map_err(|_| DigestError::Corrupt("its record does not decode"))?;
        let parts = parts(&record.parts).ok_or(DigestError::Corrupt("its part table does not decode"))?;
        if !is_sound(&parts, record.size, record.charsets.len()) {
            return Err(DigestError::Corrupt("its parts are no tree"));
        }
        let mut extensions = Vec::with_capacity(record.extensions.len() / 2);
        let mut at = 0_usize;
        for pair in record.extensions.chunks(2) {
            let &[distance, length] = pair else { return Err(DigestError::Corrupt("half an extension")) };
            let add = |at: usize, more: u64| usize::try_from(more).ok().and_then(|more| at.checked_add(more));
            let start = add(at, distance);
            let end = start.and_then(|start| add(start, length));
            match (start, end) {
                (Some(start), Some(end)) if end <= record.body_structure.len() => {
                    extensions.push(start..end);
                    at = end;
                }
                _ => return Err(DigestError::Corrupt("its extensions lie outside")),
            }
        }
        let sent = match (record.sent_unix_s, i16::try_from(record.sent_offset_min)) {
            (None, _) => None,
            (Some(unix_s), Ok(offset_min)) => Some(InternalDate { unix_s, offset_min }),
            (Some(_), Err(_)) => return Err(DigestError::Corrupt("its date has no such zone")),
        };
        Ok(Digest {
            envelope: record.envelope,
            body_structure: record.body_structure,
            extensions,
            parts,
            charsets: record.charsets,
            sent,
            references: record.references,
            size: record.size,
        })
    }
}

/// Bits 0 and 1 the kind, 2 and 3 the encoding, 4 whether it is text.
fn traits(part: &Part) -> u64 {
    let kind = match part.kind {
        PartKind::Leaf => 0,
        PartKind::Multipart => 1,
        PartKind::Message => 2,
    };
    let encoding = match part.encoding {
        Encoding::Identity => 0,
        Encoding::QuotedPrintable => 1,
        Encoding::Base64 => 2,
    };
    kind | encoding << 2 | u64::from(part.is_text) << 4
}

fn parts(numbers: &[u64]) -> Option<Vec<Part>> {
    if !numbers.len().is_multiple_of(NUMBERS_PER_PART) || numbers.len() / NUMBERS_PER_PART > PARTS_MAX {
        return None;
    }
    let mut parts = Vec::with_capacity(numbers.len() / NUMBERS_PER_PART);
    let mut before = 0_u64;
    for part in numbers.chunks(NUMBERS_PER_PART) {
        let &[depth, traits, distance, header_length, body_length, charset] = part else { return None };
        let header_start = before.checked_add(distance)?;
        let body_start = header_start.checked_add(header_length)?;
        let end = body_start.checked_add(body_length)?;
        let kind = match traits & 3 {
            0 => PartKind::Leaf,
            1 => PartKind::Multipart,
            2 => PartKind::Message,
            _ => return None,
        };
        let encoding = match traits >> 2 & 3 {
            0 => Encoding::Identity,
            1 => Encoding::QuotedPrintable,
            2 => Encoding::Base64,
            _ => return None,
        };
        let is_text = match traits >> 4 {
            0 => false,
            1 => true,
            _ => return None,
        };
        let charset = charset.checked_sub(1).map(u32::try_from).transpose().ok()?;
        let depth = usize::try_from(depth).ok()?;
        parts.push(Part { depth, kind, header_start, body_start, end, is_text, encoding, charset });
        before = header_start;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{Digest, DigestError};

    const MESSAGE: &[u8] = b"Date: Mon, 1 Jan 2001 10:00:00 +0100\r\nReferences: <a@b> <c@d>\r\nSubject: x\r\n\
        Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; charset=koi8-r\r\n\r\nhi\r\n\
        --b\r\nContent-Type: message/rfc822\r\n\r\nSubject: y\r\n\r\nyo\r\n--b--\r\n";

    #[test]
    fn digests_come_back_as_they_were_written() {
        for message in [MESSAGE, b"", b"\r\n", b"x"] {
            let digest = Digest::of(message);
            assert_eq!(Digest::decode(&digest.encode()), Ok(digest));
        }
    }

    #[test]
    fn unknown_versions_and_cuts_are_told_apart_from_digests() {
        let mut encoded = Digest::of(MESSAGE).encode();
        assert_eq!(Digest::decode(&[]), Err(DigestError::Corrupt("it is empty")));
        for cut in 1..encoded.len() {
            if let Ok(digest) = Digest::decode(&encoded[..cut]) {
                assert_ne!(digest, Digest::of(MESSAGE), "cut at {cut}");
            }
        }
        encoded[0] = 9;
        assert_eq!(Digest::decode(&encoded), Err(DigestError::Version(9)));
    }

    proptest! {
        #[test]
        fn damaged_digests_never_panic_and_stay_within_the_message(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut encoded = Digest::of(MESSAGE).encode();
            for (at, value) in flips {
                let at = at.index(encoded.len());
                encoded[at] = value;
            }
            if let Ok(digest) = Digest::decode(&encoded) {
                digest.body();
                digest.base_subject();
                digest.thread_references();
                for part in &digest.parts {
                    assert!(part.end <= digest.size);
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Digest::decode(&bytes);
            let _ = Digest::decode(&[&[1], bytes.as_slice()].concat());
            let digest = Digest::of(&bytes);
            assert_eq!(Digest::decode(&digest.encode()), Ok(digest));
        }
    }
}
