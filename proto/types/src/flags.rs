//! Message flags (RFC 9051 §2.3.2): the system flags as bits, keywords as names.

use std::fmt;

/// The longest keyword accepted, in octets; Cyrus and Dovecot allow about as much.
pub const KEYWORD_OCTETS_MAX: usize = 100;
/// Distinct keywords in one mailbox: they are stored as bits of a u128.
pub const KEYWORDS_PER_MAILBOX_MAX: usize = 128;

/// The settable system flags as a bit set. `\Recent` is not stored: it belongs to a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct SystemFlags(u8);

impl SystemFlags {
    pub const SEEN: SystemFlags = SystemFlags(1);
    pub const ANSWERED: SystemFlags = SystemFlags(2);
    pub const FLAGGED: SystemFlags = SystemFlags(4);
    pub const DELETED: SystemFlags = SystemFlags(8);
    pub const DRAFT: SystemFlags = SystemFlags(16);
    pub const NONE: SystemFlags = SystemFlags(0);
    pub const ALL: SystemFlags = SystemFlags(31);

    const NAMES: [(SystemFlags, &'static str); 5] = [
        (SystemFlags::ANSWERED, "\\Answered"),
        (SystemFlags::FLAGGED, "\\Flagged"),
        (SystemFlags::DELETED, "\\Deleted"),
        (SystemFlags::SEEN, "\\Seen"),
        (SystemFlags::DRAFT, "\\Draft"),
    ];

    pub fn bits(self) -> u8 {
        self.0
    }

    /// Unknown bits are dropped.
    pub fn from_bits(bits: u8) -> SystemFlags {
        SystemFlags(bits & Self::ALL.0)
    }

    /// Parses `\Seen` and its kin, in any case.
    pub fn parse(name: &str) -> Option<SystemFlags> {
        Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(flag, _)| *flag)
    }

    pub fn contains(self, other: SystemFlags) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn union(self, other: SystemFlags) -> SystemFlags {
        SystemFlags(self.0 | other.0)
    }

    pub fn without(self, other: SystemFlags) -> SystemFlags {
        SystemFlags(self.0 & !other.0)
    }

    /// The names of the flags that are set, such as `\Seen`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| *name)
    }
}

/// A flag that does not begin with a backslash: an IMAP atom of at most [`KEYWORD_OCTETS_MAX`] octets.
/// Compared without regard to ASCII case, shown as first written.
#[derive(Clone, Debug)]
pub struct Keyword(String);

/// The text is not an IMAP atom, or is too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid keyword")]
pub struct InvalidKeyword;

impl Keyword {
    pub fn parse(text: &str) -> Result<Keyword, InvalidKeyword> {
        let atom_char = |b: u8| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(&b);
        if text.is_empty() || text.len() > KEYWORD_OCTETS_MAX || !text.bytes().all(atom_char) {
            return Err(InvalidKeyword);
        }
        Ok(Keyword(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Keyword {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Keyword {}

impl fmt::Display for Keyword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All of a message's flags.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    pub system: SystemFlags,
    /// Without duplicates.
    pub keywords: Vec<Keyword>,
}

impl Flags {
    pub fn system(system: SystemFlags) -> Flags {
        Flags { system, keywords: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.system.is_empty() && self.keywords.is_empty()
    }

    /// Adds a keyword unless it is there.
    pub fn insert_keyword(&mut self, keyword: Keyword) {
        if !self.keywords.contains(&keyword) {
            self.keywords.push(keyword);
        }
    }

    /// Every name, system flags first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        fn shorten<'a>(name: &'static str) -> &'a str {
            name
        }
        self.system.names().map(shorten).chain(self.keywords.iter().map(Keyword::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, KEYWORD_OCTETS_MAX, Keyword, SystemFlags};

    #[test]
    fn system_flags_are_parsed_in_any_case_and_named_as_the_rfc_writes_them() {
        assert_eq!(SystemFlags::parse("\\sEEN"), Some(SystemFlags::SEEN));
        assert_eq!(SystemFlags::parse("\\Recent"), None);
        let both = SystemFlags::SEEN.union(SystemFlags::DRAFT);
        assert_eq!(both.names().collect::<Vec<_>>(), ["\\Seen", "\\Draft"]);
        assert_eq!(both.without(SystemFlags::SEEN), SystemFlags::DRAFT);
    }

    #[test]
    fn keywords_are_atoms_and_compare_without_case() {
        assert_eq!(Keyword::parse("$Forwarded").unwrap(), Keyword::parse("$forwarded").unwrap());
        for bad in ["", "a b", "\\Foo", "a]", "ü", "(", &"x".repeat(KEYWORD_OCTETS_MAX + 1)] {
            assert!(Keyword::parse(bad).is_err(), "{bad}");
        }
        let mut flags = Flags::default();
        flags.insert_keyword(Keyword::parse("Junk").unwrap());
        flags.insert_keyword(Keyword::parse("junk").unwrap());
        assert_eq!(flags.names().collect::<Vec<_>>(), ["Junk"]);
    }
}
