//! Paths of MAIL and RCPT (RFC 5321 §4.1.2, RFC 6531 §3.3). Knows no accounts: whether a mailbox exists is the
//! caller's question, so `%`-hacks, bang paths and quoted forms are just local parts that nobody has.
//!
//! ```text
//! Reverse-path   = Path / "<>"
//! Forward-path   = "<Postmaster>" / Path
//! Path           = "<" [ At-domain *( "," At-domain ) ":" ] Mailbox ">"
//! Mailbox        = Local-part "@" ( Domain / address-literal )
//! Local-part     = Dot-string / Quoted-string
//! ```
//!
//! Deviations: dots at the ends of an unquoted local part, or side by side in it, are read (Japanese mobile carriers
//! send such addresses) and shown quoted; a local part may have [`LOCAL_PART_OCTETS_MAX`] octets instead of 64
//! (bounce addresses of mailing lists and bulk senders are that long).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use types::{AccountName, DomainName};

/// As long as the path itself may be (RFC 5321 §4.5.3.1.3), quotes not counted.
pub const LOCAL_PART_OCTETS_MAX: usize = 255;

/// Why a path was refused; the text is fit for a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PathError {
    #[error("the path must be in angle brackets")]
    NoBrackets,
    #[error("the address has no domain")]
    NoDomain,
    #[error("the local part is empty, too long or has a character that is not allowed")]
    LocalPart,
    #[error("the domain is empty, too long or has a character that is not allowed")]
    Domain,
    #[error("the source route is malformed")]
    Route,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Domain {
    Name(DomainName),
    /// `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Address(IpAddr),
    /// `[tag:content]` with a tag other than IPv6 (RFC 5321 §4.1.3), without the brackets.
    Literal(String),
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Name(name) => name.fmt(f),
            Domain::Address(IpAddr::V4(address)) => write!(f, "[{address}]"),
            Domain::Address(IpAddr::V6(address)) => write!(f, "[IPv6:{address}]"),
            Domain::Literal(text) => write!(f, "[{text}]"),
        }
    }
}

/// *Invariant: neither part holds a control character; CR, LF and NUL least of all.*
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Mailbox {
    local: String,
    domain: Domain,
}

impl Mailbox {
    /// Unquoted, in the case in which it was sent: `"alice"@x` and `alice@x` are the same (RFC 5321 §4.1.2).
    pub fn local(&self) -> &str {
        &self.local
    }

    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// `None` where no account can have that name: an address literal, or a local part that needs quotes.
    pub fn account_name(&self) -> Option<AccountName> {
        match &self.domain {
            Domain::Name(domain) => AccountName::new(&self.local, domain).ok(),
            Domain::Address(_) | Domain::Literal(_) => None,
        }
    }

    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii() && self.domain.to_string().is_ascii()
    }
}

/// As a path writes it, without the angle brackets, quoted where it must be.
impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext)) {
            return write!(f, "{}@{}", self.local, self.domain);
        }
        f.write_str("\"")?;
        for c in self.local.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        write!(f, "\"@{}", self.domain)
    }
}

/// A recipient as RCPT names it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ForwardPath {
    /// `<postmaster>` without a domain, in any case (RFC 5321 §4.1.1.3): the receiving system's own.
    Postmaster,
    Mailbox(Mailbox),
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardPath::Postmaster => f.write_str("postmaster"),
            ForwardPath::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

/// What stands between the angle brackets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    Null,
    Postmaster,
    Mailbox {
        mailbox: Mailbox,
        /// There was a source route; it is ignored (RFC 5321 §4.1.1.3, appendix C).
        routed: bool,
    },
}

/// Reads a path off the front of `text`; returns it with what follows `>`.
pub(crate) fn parse_path(text: &str) -> Result<(Path, &str), PathError> {
    let text = text.strip_prefix('<').ok_or(PathError::NoBrackets)?;
    if let Some(rest) = text.strip_prefix('>') {
        return Ok((Path::Null, rest));
    }
    let (routed, text) = match text.strip_prefix('@') {
        Some(route) => (true, after_route(route)?),
        None => (false, text),
    };
    let (local, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_string(quoted)?,
        None => unquoted_local_part(text)?,
    };
    if local.is_empty() || local.len() > LOCAL_PART_OCTETS_MAX {
        return Err(PathError::LocalPart);
    }
    if let Some(rest) = rest.strip_prefix('>') {
        let postmaster = !routed && local.eq_ignore_ascii_case("postmaster");
        return if postmaster { Ok((Path::Postmaster, rest)) } else { Err(PathError::NoDomain) };
    }
    let rest = rest.strip_prefix('@').ok_or(PathError::LocalPart)?;
    let (domain, rest) = rest.split_once('>').ok_or(PathError::NoBrackets)?;
    Ok((Path::Mailbox { mailbox: Mailbox { local, domain: parse_domain(domain)? }, routed }, rest))
}

/// `A-d-l = At-domain *( "," At-domain )`, then a colon; the first `@` is gone.
fn after_route(text: &str) -> Result<&str, PathError> {
    let (route, rest) = text.split_once(':').ok_or(PathError::Route)?;
    for (i, hop) in route.split(',').enumerate() {
        let domain = if i == 0 { Some(hop) } else { hop.strip_prefix('@') };
        domain.and_then(|domain| DomainName::parse(domain).ok()).ok_or(PathError::Route)?;
    }
    Ok(rest)
}

/// `QcontentSMTP = %d32-33 / %d35-91 / %d93-126 / UTF8-non-ascii / "\" %d32-126`; the first quote is gone.
fn quoted_string(text: &str) -> Result<(String, &str), PathError> {
    let mut local = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            Some('"') => return Ok((local, chars.as_str())),
            Some('\\') => match chars.next() {
                Some(c @ ' '..='~') => local.push(c),
                _ => return Err(PathError::LocalPart),
            },
            Some(c) if !c.is_control() => local.push(c),
            _ => return Err(PathError::LocalPart),
        }
    }
}

/// `Dot-string`, more leniently: see the module's head.
fn unquoted_local_part(text: &str) -> Result<(String, &str), PathError> {
    let end = text.find(|c| !is_atext(c) && c != '.').ok_or(PathError::NoBrackets)?;
    let (local, rest) = text.split_at(end);
    Ok((local.to_owned(), rest))
}

fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~".contains(c)
        || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
}

/// RFC 5321 §4.1.3 for the literals.
fn parse_domain(text: &str) -> Result<Domain, PathError> {
    let Some(literal) = text.strip_prefix('[') else {
        return DomainName::parse(text).map(Domain::Name).map_err(|_| PathError::Domain);
    };
    let literal = literal.strip_suffix(']').ok_or(PathError::Domain)?;
    if let Ok(address) = literal.parse::<Ipv4Addr>() {
        return Ok(Domain::Address(IpAddr::V4(address)));
    }
    let (tag, content) = literal.split_once(':').ok_or(PathError::Domain)?;
    if tag.eq_ignore_ascii_case("IPv6") {
        let address = content.parse::<Ipv6Addr>().map_err(|_| PathError::Domain)?;
        return Ok(Domain::Address(IpAddr::V6(address)));
    }
    let tag_ok = !tag.is_empty() && !tag.ends_with('-') && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let content_ok = !content.is_empty() && content.bytes().all(|b| matches!(b, 33..=90 | 94..=126));
    if !tag_ok || !content_ok || literal.len() > types::DOMAIN_OCTETS_MAX {
        return Err(PathError::Domain);
    }
    Ok(Domain::Literal(literal.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Path, PathError, parse_path};

    fn shown(text: &str) -> Result<String, PathError> {
        match parse_path(text)? {
            (Path::Null, rest) => Ok(format!("null{rest}")),
            (Path::Postmaster, rest) => Ok(format!("postmaster{rest}")),
            (Path::Mailbox { mailbox, routed }, rest) => {
                Ok(format!("{mailbox}{}{rest}", if routed { " routed" } else { "" }))
            }
        }
    }

    #[test]
    fn paths_are_read_and_shown_in_their_normal_form() {
        for (text, expected) in [
            ("<>", "null"),
            ("<> SIZE=1", "null SIZE=1"),
            ("<PostMaster>", "postmaster"),
            ("<Alice@Example.TEST>", "Alice@example.test"),
            ("<\"alice\"@x.test>", "alice@x.test"),
            ("<\"al\\ice\"@x.test>", "alice@x.test"),
            ("<\"a.b\"@x.test>", "a.b@x.test"),
            ("<\"a b\"@x.test>", "\"a b\"@x.test"),
            ("<\"a@b>c\"@x.test>", "\"a@b>c\"@x.test"),
            ("<\"a\\\"\\\\b\"@x.test>", "\"a\\\"\\\\b\"@x.test"),
            ("<a..b.@docomo.test>", "\"a..b.\"@docomo.test"),
            ("<user%else@x.test>", "user%else@x.test"),
            ("<host!user@x.test>", "host!user@x.test"),
            ("<@a.test,@b.test:user@x.test>", "user@x.test routed"),
            ("<u@[192.0.2.1]>", "u@[192.0.2.1]"),
            ("<u@[ipv6:2001:DB8::1]>", "u@[IPv6:2001:db8::1]"),
            ("<u@[x-tag:any!thing]>", "u@[x-tag:any!thing]"),
            ("<jörg@exämple.test>", "jörg@exämple.test"),
        ] {
            assert_eq!(shown(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        let (long_local, long_domain) =
            (format!("<{}@x.test>", "a".repeat(1_000)), format!("<a@{}test>", "b.".repeat(200)));
        for text in [
            "",
            "a@x.test",
            "<a@x.test",
            "<a>",
            "<@>",
            "<@x.test>",
            "<a@>",
            "<a@x@y.test>",
            "<a b@x.test>",
            "<a\t@x.test>",
            "<a@x..test>",
            "<a@-x.test>",
            "<a@x.test.>",
            "<a@[1.2.3]>",
            "<a@[IPv6:zz]>",
            "<a@[:x]>",
            "<a@[1.2.3.4>",
            "<a@x y>",
            "<\"a@x.test>",
            "<\"\"@x.test>",
            "<\"a\"b@x.test>",
            "<\"a\u{7f}\"@x.test>",
            "<\"a\u{85}\"@x.test>",
            "<\"a\\\u{e9}\"@x.test>",
            "<@:u@x.test>",
            "<@a.test,b.test:u@x.test>",
            "<@a.test,@b.test>",
            "<<a@x.test>>",
            "< a@x.test>",
            "<\"postmaster",
            &long_local,
            &long_domain,
        ] {
            assert!(shown(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_plain_addresses_can_be_accounts() {
        let account = |text| match parse_path(text) {
            Ok((Path::Mailbox { mailbox, .. }, _)) => mailbox.account_name().map(|name| name.to_string()),
            _ => None,
        };
        assert_eq!(account("<\"Alice\"@X.test>").as_deref(), Some("alice@x.test"));
        assert_eq!(account("<alice@[192.0.2.1]>"), None);
        assert_eq!(account("<\"alice@y.test\"@x.test>"), None);
        assert_eq!(account("<a..b@x.test>"), None);
    }
}
