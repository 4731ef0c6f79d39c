//! Arguments that many commands share: tags, secrets and mailbox names as the client wrote them.

use std::fmt;

use types::{InvalidName, MailboxName};

use crate::utf7;

/// Longest tag echoed, in octets. Clients use 4 to 12; a longer one is answered with an untagged BAD.
const TAG_OCTETS_MAX: usize = 256;

/// A command's tag. Its characters are safe to echo.
///
/// `tag = 1*<any ASTRING-CHAR except "+">`
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tag(String);

impl Tag {
    pub fn parse(octets: &[u8]) -> Option<Tag> {
        let tag_char = |b: &u8| b.is_ascii_graphic() && !b"(){%*\"\\+".contains(b);
        if octets.is_empty() || octets.len() > TAG_OCTETS_MAX || !octets.iter().all(tag_char) {
            return None;
        }
        std::str::from_utf8(octets).ok().map(|text| Tag(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Octets that must not reach a log: `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(octets: Vec<u8>) -> Secret {
        Secret(octets)
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A mailbox name as the client wrote it, decoded to UTF-8 but not yet held against the rules of
/// [`MailboxName`]: a name that breaks them is a matter for NO, not for BAD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailboxArg(String);

impl MailboxArg {
    /// Strict modified UTF-7 (RFC 3501 §5.1.3).
    pub fn decode(octets: &[u8]) -> Result<MailboxArg, utf7::InvalidUtf7> {
        utf7::decode(octets).map(MailboxArg)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// INBOX in any case (RFC 3501 §5.1).
    pub fn is_inbox(&self) -> bool {
        self.0.eq_ignore_ascii_case("INBOX")
    }

    pub fn name(&self) -> Result<MailboxName, InvalidName> {
        MailboxName::parse(&self.0)
    }

    /// The name that CREATE makes: a trailing separator only declares that names will be made under this one
    /// (RFC 3501 §6.3.3).
    pub fn name_to_create(&self) -> Result<MailboxName, InvalidName> {
        MailboxName::parse(self.0.strip_suffix(MailboxName::SEPARATOR).unwrap_or(&self.0))
    }
}
