//! FETCH and its data items (RFC 3501 §6.4.5).

use types::ModSeq;

use crate::SequenceSet;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    pub uid: bool,
    pub set: SequenceSet,
    /// Without duplicates, macros written out.
    pub items: Vec<FetchItem>,
    /// RFC 7162 §3.1.4.1.
    pub changed_since: Option<ModSeq>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FetchItem {
    Flags,
    InternalDate,
    Rfc822Size,
    Uid,
    ModSeq,
    Envelope,
    /// BODYSTRUCTURE without extension data.
    Body,
    BodyStructure,
    Section(BodySection),
}

/// `BODY[...]`, `BODY.PEEK[...]`, and `RFC822`, `RFC822.HEADER`, `RFC822.TEXT`, which are other names for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BodySection {
    /// What the response calls it.
    pub name: SectionName,
    /// The part specifier; empty for the message itself. Numbers start at 1.
    pub part: Vec<u32>,
    pub text: SectionText,
    pub partial: Option<Partial>,
    /// Whether reading it leaves \Seen alone.
    pub peek: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SectionName {
    Body,
    Rfc822,
    Rfc822Header,
    Rfc822Text,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SectionText {
    /// The whole of the message or part.
    All,
    Header,
    /// Field names as the client wrote them: printable ASCII, never empty.
    HeaderFields(Vec<String>),
    HeaderFieldsNot(Vec<String>),
    Text,
    /// Only with a part.
    Mime,
}

/// `<offset.octets_max>`; `octets_max` is at least 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    pub offset: u64,
    pub octets_max: u64,
}
