//! What is computed from a message's bytes once, at delivery, and stored beside it: reads are answered from this.

use std::ops::Range;

use bytes::Bytes;
use types::InternalDate;

use crate::address::Address;
use crate::body_structure;
use crate::date;
use crate::envelope::{self, EnvelopeItem};
use crate::limits::{
    DEPTH_MAX, DIGEST_OCTETS_MAX, ENVELOPE_OCTETS_MAX, PARTS_MAX, REFERENCES_MAX, STRUCTURE_OCTETS_MAX,
};
use crate::part::{Part, PartKind, octets};
use crate::scan::{Tree, scan};
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
        let mut tree = scan(raw);
        let mut limits = Limits::default();
        loop {
            let digest = Digest::within(raw, &tree, &limits);
            let fits = digest.encoded_octets_max() <= DIGEST_OCTETS_MAX || digest.encode().len() <= DIGEST_OCTETS_MAX;
            if fits || !limits.lower() {
                return digest;
            }
            cut(&mut tree, limits.parts);
        }
    }

    fn within(raw: &[u8], tree: &Tree<'_>, limits: &Limits) -> Digest {
        let header = tree.nodes.first().map(|root| octets(raw, &root.part.header())).unwrap_or_default();
        let fields = envelope::Fields::read(header);
        let mut envelope = Writer::new(limits.envelope_octets);
        envelope::render(&mut envelope, &fields);
        let (body_structure, extensions) = body_structure::render(raw, &tree.nodes, limits.structure_octets);
        let references = fields.references.map(|value| thread::references(value, limits.references));
        Digest {
            envelope: envelope.out.into(),
            body_structure: body_structure.into(),
            extensions,
            sent: fields.date.and_then(date::sent),
            references: references.unwrap_or_default(),
            parts: tree.nodes.iter().map(|node| node.part.clone()).collect(),
            charsets: tree.charsets.clone(),
            size: raw.len() as u64,
        }
    }

    /// No less than what [`Digest::encode`] gives, by how wide each number can be in a message below 32 GiB.
    fn encoded_octets_max(&self) -> usize {
        const HEAD: usize = 96;
        const LENGTH: usize = 6;
        const NUMBER: usize = 5;
        HEAD + self.envelope.len()
            + self.body_structure.len()
            + self.extensions.len() * 2 * NUMBER
            + self.parts.len() * 6 * NUMBER
            + self.charsets.iter().map(|charset| charset.len() + LENGTH).sum::<usize>()
            + self.references.iter().map(|id| id.len() + LENGTH).sum::<usize>()
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

/// How much of a message's structure is shown.
struct Limits {
    parts: usize,
    envelope_octets: usize,
    structure_octets: usize,
    references: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            parts: PARTS_MAX,
            envelope_octets: ENVELOPE_OCTETS_MAX,
            structure_octets: STRUCTURE_OCTETS_MAX,
            references: REFERENCES_MAX,
        }
    }
}

impl Limits {
    /// False once nothing would become smaller. That is never needed: what is left then has some 120 KiB.
    fn lower(&mut self) -> bool {
        let before = self.parts + self.envelope_octets + self.structure_octets + self.references;
        // A chain of containers and the part within the innermost: so that what is cut remains a tree.
        self.parts = (self.parts * 3 / 4).max(DEPTH_MAX + 2);
        self.envelope_octets = self.envelope_octets * 3 / 4;
        self.structure_octets = self.structure_octets * 3 / 4;
        // The first, which names the thread, and the last.
        self.references = (self.references * 3 / 4).max(2);
        before > self.parts + self.envelope_octets + self.structure_octets + self.references
    }
}

/// Leaves parts out from the end. A container whose parts would all be left out goes with them.
fn cut(tree: &mut Tree<'_>, parts_max: usize) {
    tree.nodes.truncate(parts_max);
    while tree.nodes.len() > 1 && tree.nodes.last().is_some_and(|node| node.part.kind != PartKind::Leaf) {
        tree.nodes.pop();
    }
    // Numbered in the order in which the parts name them.
    let named = tree.nodes.iter().filter_map(|node| node.part.charset).max().map_or(0, |last| last as usize + 1);
    tree.charsets.truncate(named);
}

/// Days since 1970-01-01 of the Date field as written, the zone disregarded: what SENTBEFORE, SENTON and SENTSINCE
/// compare (RFC 3501 §6.4.4).
pub fn date_day(digest: &Digest) -> Option<i64> {
    digest.sent.map(InternalDate::day)
}
