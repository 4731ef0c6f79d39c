//! Names that users and operators write: domains, accounts, mailboxes; and the special uses of mailboxes.

use std::fmt;

/// RFC 5321 §4.5.3.1.1.
pub const LOCAL_PART_OCTETS_MAX: usize = 64;
/// RFC 5321 §4.5.3.1.2.
pub const DOMAIN_OCTETS_MAX: usize = 255;
/// Longest mailbox name in octets of UTF-8; keys stay small and a Maildir export fits a path.
pub const MAILBOX_NAME_OCTETS_MAX: usize = 500;
/// Deepest hierarchy of a mailbox name.
pub const MAILBOX_DEPTH_MAX: usize = 20;

/// Why a name was refused; the text is fit for a protocol reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub &'static str);

/// A domain in its normal form: lower case, no trailing dot; A-labels or U-labels as given.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainName(String);

impl DomainName {
    pub fn parse(text: &str) -> Result<DomainName, InvalidName> {
        // Lowered first: a character may become several, and what is checked must be what is kept.
        let text = text.to_lowercase();
        if text.is_empty() || text.len() > DOMAIN_OCTETS_MAX {
            return Err(InvalidName("domain is empty or too long"));
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63 * 4
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| {
                    c.is_ascii_alphanumeric() || c == '-' || c == '_' || (!c.is_ascii() && c.is_alphanumeric())
                })
        };
        if !text.split('.').all(label_ok) {
            return Err(InvalidName("domain has an empty label or a character that is not allowed"));
        }
        Ok(DomainName(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An account's or alias's name, `local@domain`, in its normal form: lower case throughout, because two
/// mailboxes that differ by case alone would only ever be a mistake.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AccountName {
    text: String,
    at: usize,
}

impl AccountName {
    pub fn parse(text: &str) -> Result<AccountName, InvalidName> {
        let (local, domain) = text.rsplit_once('@').ok_or(InvalidName("not of the form local@domain"))?;
        AccountName::new(local, &DomainName::parse(domain)?)
    }

    /// `local` is the unquoted local part: a dot-string of RFC 5321 §4.1.2 or RFC 6531 §3.3.
    pub fn new(local: &str, domain: &DomainName) -> Result<AccountName, InvalidName> {
        let local = local.to_lowercase();
        if local.is_empty() || local.len() > LOCAL_PART_OCTETS_MAX {
            return Err(InvalidName("local part is empty or too long"));
        }
        let atext = |c: char| {
            c.is_ascii_alphanumeric()
                || "!#$%&'*+-/=?^_`{|}~".contains(c)
                || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
        };
        if local.split('.').any(|atom| atom.is_empty() || !atom.chars().all(atext)) {
            return Err(InvalidName("local part has a character that is not allowed"));
        }
        Ok(AccountName { at: local.len(), text: format!("{local}@{domain}") })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn local(&self) -> &str {
        &self.text[..self.at]
    }

    pub fn domain(&self) -> &str {
        &self.text[self.at + 1..]
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A mailbox's name in UTF-8, levels parted by `/`. `INBOX` is always written in capitals, also as the first level.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MailboxName(String);

impl MailboxName {
    pub const SEPARATOR: char = '/';

    pub fn inbox() -> MailboxName {
        MailboxName("INBOX".to_owned())
    }

    pub fn parse(text: &str) -> Result<MailboxName, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName("mailbox name is empty"));
        }
        if text.len() > MAILBOX_NAME_OCTETS_MAX {
            return Err(InvalidName("mailbox name is too long"));
        }
        if text.chars().any(|c| c.is_control() || c == '*' || c == '%' || c == '\u{2028}' || c == '\u{2029}') {
            return Err(InvalidName("mailbox name has a character that is not allowed"));
        }
        if text.split('/').count() > MAILBOX_DEPTH_MAX {
            return Err(InvalidName("mailbox name has too many levels"));
        }
        if text.split('/').any(|level| level.is_empty() || level == "." || level == "..") {
            return Err(InvalidName("mailbox name has an empty level or one of dots"));
        }
        let (first, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
        if first.eq_ignore_ascii_case("INBOX") {
            return Ok(MailboxName(format!("INBOX{rest}")));
        }
        Ok(MailboxName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_inbox(&self) -> bool {
        self.0 == "INBOX"
    }

    /// The name one level up, if there is one.
    pub fn parent(&self) -> Option<MailboxName> {
        self.0.rsplit_once('/').map(|(parent, _)| MailboxName(parent.to_owned()))
    }

    pub fn is_under(&self, ancestor: &MailboxName) -> bool {
        self.0.strip_prefix(&ancestor.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for MailboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Special uses of mailboxes (RFC 6154 §2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum SpecialUse {
    Archive,
    Drafts,
    Flagged,
    Junk,
    Sent,
    Trash,
}

impl SpecialUse {
    pub const EVERY: [SpecialUse; 6] = [
        SpecialUse::Archive,
        SpecialUse::Drafts,
        SpecialUse::Flagged,
        SpecialUse::Junk,
        SpecialUse::Sent,
        SpecialUse::Trash,
    ];

    pub fn attribute(self) -> &'static str {
        match self {
            SpecialUse::Archive => "\\Archive",
            SpecialUse::Drafts => "\\Drafts",
            SpecialUse::Flagged => "\\Flagged",
            SpecialUse::Junk => "\\Junk",
            SpecialUse::Sent => "\\Sent",
            SpecialUse::Trash => "\\Trash",
        }
    }

    pub fn parse(attribute: &str) -> Option<SpecialUse> {
        Self::EVERY.into_iter().find(|special| special.attribute().eq_ignore_ascii_case(attribute))
    }
}

#[cfg(test)]
mod tests {
    use super::{AccountName, DomainName, MAILBOX_NAME_OCTETS_MAX, MailboxName};

    #[test]
    fn account_names_are_lowered_and_split_at_the_last_at() {
        let name = AccountName::parse("Alice.B+x@Example.TEST").unwrap();
        assert_eq!(
            (name.as_str(), name.local(), name.domain()),
            ("alice.b+x@example.test", "alice.b+x", "example.test")
        );
    }

    #[test]
    fn what_is_accepted_is_accepted_again_in_its_normal_form() {
        for text in ["İ.test", "ẞ.test", "STRASSE.test"] {
            if let Ok(name) = DomainName::parse(text) {
                assert_eq!(DomainName::parse(name.as_str()), Ok(name));
            }
        }
        let swells = format!("{}@example.test", "İ".repeat(32));
        assert!(AccountName::parse(&swells).is_err());
    }

    #[test]
    fn account_names_refuse_control_characters_routes_and_oversize() {
        let long = format!("{}@example.test", "a".repeat(65));
        for bad in [
            "",
            "a",
            "@example.test",
            "a@",
            "a b@x.test",
            "a\0@x.test",
            "a\r\n@x.test",
            "../x@x.test/",
            "a@b@x.test",
            "a..b@x.test",
            "a@x..test",
            &long,
        ] {
            assert!(AccountName::parse(bad).is_err(), "{bad}");
        }
        assert!(DomainName::parse(&"a.".repeat(200)).is_err());
    }

    #[test]
    fn inbox_is_one_mailbox_in_any_case() {
        assert!(MailboxName::parse("inBox").unwrap().is_inbox());
        assert_eq!(MailboxName::parse("inbox/Sub").unwrap().as_str(), "INBOX/Sub");
        assert_eq!(MailboxName::parse("Inboxes").unwrap().as_str(), "Inboxes");
    }

    #[test]
    fn mailbox_names_cannot_leave_the_account() {
        let long = "x".repeat(MAILBOX_NAME_OCTETS_MAX + 1);
        let deep = "x/".repeat(30) + "x";
        for bad in ["", "../../x", "/etc/x", "a/", "a//b", "a\r\nb", "a\0b", "a*", "%", &long, &deep] {
            assert!(MailboxName::parse(bad).is_err(), "{bad}");
        }
        let child = MailboxName::parse("a/b").unwrap();
        assert!(child.is_under(&child.parent().unwrap()));
        assert!(!MailboxName::parse("ab").unwrap().is_under(&MailboxName::parse("a").unwrap()));
    }
}
