//! SEARCH and its keys (RFC 3501 §6.4.4, RFC 7162 §3.1.5).

use types::{Keyword, ModSeq, SystemFlags};

use crate::SequenceSet;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Search {
    pub uid: bool,
    pub charset: SearchCharset,
    pub key: SearchKey,
}

/// How the strings of a search came. They are UTF-8 by now, unless the charset is unsupported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SearchCharset {
    Default,
    UsAscii,
    Utf8,
    /// `NO [BADCHARSET (US-ASCII UTF-8)]`; the strings of the keys mean nothing.
    Unsupported,
}

/// Days are counted from 1970-01-01, as `InternalDate::day` does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SearchKey {
    All,
    /// ANSWERED, DELETED, DRAFT, FLAGGED, SEEN.
    Has(SystemFlags),
    /// UNANSWERED, UNDELETED, UNDRAFT, UNFLAGGED, UNSEEN.
    Lacks(SystemFlags),
    Keyword(Keyword),
    Unkeyword(Keyword),
    Recent,
    /// Recent and unseen.
    New,
    Old,
    Bcc(String),
    Body(String),
    Cc(String),
    From(String),
    Subject(String),
    Text(String),
    To(String),
    /// An empty value asks for the field's presence.
    Header {
        field: String,
        value: String,
    },
    Before(i64),
    On(i64),
    Since(i64),
    SentBefore(i64),
    SentOn(i64),
    SentSince(i64),
    Larger(u64),
    Smaller(u64),
    SequenceSet(SequenceSet),
    Uid(SequenceSet),
    /// At least this MODSEQ. The metadata entry, if any, may be ignored (RFC 7162 §3.1.5).
    ModSeq {
        entry: Option<String>,
        at_least: ModSeq,
    },
    Not(Box<SearchKey>),
    Or(Box<SearchKey>, Box<SearchKey>),
    And(Vec<SearchKey>),
}

impl SearchKey {
    /// Whether any key asks for MODSEQ, which makes the command CONDSTORE-enabling (RFC 7162 §3.1) and adds the
    /// highest MODSEQ to the result.
    pub fn names_modseq(&self) -> bool {
        match self {
            SearchKey::ModSeq { .. } => true,
            SearchKey::Not(key) => key.names_modseq(),
            SearchKey::Or(a, b) => a.names_modseq() || b.names_modseq(),
            SearchKey::And(keys) => keys.iter().any(SearchKey::names_modseq),
            _ => false,
        }
    }
}
