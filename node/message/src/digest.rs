//! What is computed from a message's bytes once, at delivery, and stored beside it: reads are answered from this.

use std::ops::Range;

use bytes::Bytes;
use types::InternalDate;

use crate::address::Address;
use crate::body_structure;
use crate::date;
use crate::envelope::{self, EnvelopeItem};
use crate::limits::ENVELOPE_OCTETS_MAX;
use crate::part::{Part, octets};
use crate::scan::scan;
use crate::thread::{self, BaseSubject};
use crate::writer::Writer;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The value of ENVELOPE in IMAP syntax, from `(` to `)`. May hold literals.
    pub envelope: Bytes,
    /// The value of BODYSTRUCTURE, likewise.
    pub body_structure: Bytes,
    /// Where `body_structure` has extension data, ascending.
    pub(crate) extensions: Vec<Range<usize>>,
    /// The MIME tree in pre-order; the first is the message itself.
    pub parts: Vec<Part>,
    /// Charsets that parts name, lower case.
    pub(crate) charsets: Vec<String>,
    /// The Date field, if it makes sense.
    pub sent: Option<InternalDate>,
    /// Message ids of the References field, oldest first, without angle brackets.
    pub references: Vec<Vec<u8>>,
    /// Octets of the whole message.
    pub size: u64,
}

impl Digest {
    /// Never fails: what is broken is shown as plain text, what is too much is left out (see the limits). Linear in
    /// the octets; uses no stack to speak of.
    pub fn of(raw: &[u8]) -> Digest {
        let tree = scan(raw);
        let header = tree.nodes.first().map(|root| octets(raw, &root.part.header())).unwrap_or_default();
        let fields = envelope::Fields::read(header);
        let mut envelope = Writer::new(ENVELOPE_OCTETS_MAX);
        envelope::render(&mut envelope, &fields);
        let (body_structure, extensions) = body_structure::render(raw, &tree.nodes);
        Digest {
            envelope: envelope.out.into(),
            body_structure: body_structure.into(),
            extensions,
            sent: fields.date.and_then(date::sent),
            references: fields.references.map(thread::references).unwrap_or_default(),
            parts: tree.nodes.into_iter().map(|node| node.part).collect(),
            charsets: tree.charsets,
            size: raw.len() as u64,
        }
    }

    /// The value of BODY: BODYSTRUCTURE without extension data (RFC 3501 §7.4.2).
    pub fn body(&self) -> Bytes {
        let mut body = Vec::with_capacity(self.body_structure.len());
        let mut at = 0;
        for extension in &self.extensions {
            body.extend_from_slice(self.body_structure.get(at..extension.start).unwrap_or_default());
            at = extension.end;
        }
        body.extend_from_slice(self.body_structure.get(at..).unwrap_or_default());
        body.into()
    }

    /// The header with the empty line that ends it: what SEARCH of header fields must read.
    pub fn header(&self) -> Range<u64> {
        self.parts.first().map_or(0..0, Part::header)
    }

    /// A string of ENVELOPE as it is in the header, encoded words and all; none for NIL or a list of addresses.
    pub fn envelope_string(&self, item: EnvelopeItem) -> Option<Vec<u8>> {
        envelope::string_at(&self.envelope, item)
    }

    /// What SORT FROM, TO and CC compare (RFC 5256 §3): the first address or group of a list.
    pub fn first_address(&self, item: EnvelopeItem) -> Option<Address> {
        envelope::first_address(&self.envelope, item)
    }

    pub fn base_subject(&self) -> BaseSubject {
        thread::base_subject(&self.envelope_string(EnvelopeItem::Subject).unwrap_or_default())
    }

    /// The message's own id without angle brackets (RFC 5256 §2.2).
    pub fn message_id(&self) -> Option<Vec<u8>> {
        thread::message_ids(&self.envelope_string(EnvelopeItem::MessageId)?).next()
    }

    /// RFC 5256 §3, THREAD=REFERENCES: the ids of References or, if there are none, the first of In-Reply-To.
    pub fn thread_references(&self) -> Vec<Vec<u8>> {
        if !self.references.is_empty() {
            return self.references.clone();
        }
        let in_reply_to = self.envelope_string(EnvelopeItem::InReplyTo).unwrap_or_default();
        thread::message_ids(&in_reply_to).next().into_iter().collect()
    }

    /// The charset that a text part names.
    pub(crate) fn charset(&self, part: &Part) -> Option<&str> {
        self.charsets.get(usize::try_from(part.charset?).ok()?).map(String::as_str)
    }
}

/// Days since 1970-01-01 of the Date field as written, the zone disregarded: what SENTBEFORE, SENTON and SENTSINCE
/// compare (RFC 3501 §6.4.4).
pub fn date_day(digest: &Digest) -> Option<i64> {
    digest.sent.map(InternalDate::day)
}
