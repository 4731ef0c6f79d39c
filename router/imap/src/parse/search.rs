//! The arguments of SEARCH (RFC 3501 §6.4.4, RFC 7162 §3.1.5).

use types::{ModSeq, SystemFlags};

use super::cursor::Cursor;
use super::{Bad, Parsed};
use crate::command::{Search, SearchCharset, SearchKey};
use crate::date;

/// How deep NOT, OR and parentheses may nest. Recursion follows the nesting here and in all that walks the tree.
const DEPTH_MAX: usize = 100;

/// `search = "SEARCH" [SP "CHARSET" SP astring] 1*(SP search-key)`
pub(super) fn search(c: &mut Cursor<'_>, uid: bool) -> Parsed<Search> {
    let mut charset = SearchCharset::Default;
    if c.take_word("CHARSET ") {
        charset = match c.astring()?.to_ascii_uppercase().as_slice() {
            b"US-ASCII" | b"ASCII" => SearchCharset::UsAscii,
            b"UTF-8" => SearchCharset::Utf8,
            _ => SearchCharset::Unsupported,
        };
        c.space()?;
    }
    let keys = Keys { strict: charset != SearchCharset::Unsupported };
    let mut all = vec![keys.key(c, 0)?];
    while c.another()? {
        all.push(keys.key(c, 0)?);
    }
    Ok(Search { uid, charset, key: and(all) })
}

/// One key needs no AND around it.
fn and(mut keys: Vec<SearchKey>) -> SearchKey {
    match keys.pop() {
        Some(key) if keys.is_empty() => key,
        last => {
            keys.extend(last);
            SearchKey::And(keys)
        }
    }
}

struct Keys {
    /// Strings must be UTF-8; otherwise their charset is unknown and the search will be refused.
    strict: bool,
}

impl Keys {
    fn key(&self, c: &mut Cursor<'_>, depth: usize) -> Parsed<SearchKey> {
        if depth > DEPTH_MAX {
            return Err(Bad("search nested too deep"));
        }
        match c.peek() {
            Some(b'(') => self.parenthesised(c, depth),
            Some(b'0'..=b'9' | b'*') => c.sequence_set().map(SearchKey::SequenceSet),
            _ => self.named(c, depth),
        }
    }

    /// `"(" search-key *(SP search-key) ")"`
    fn parenthesised(&self, c: &mut Cursor<'_>, depth: usize) -> Parsed<SearchKey> {
        c.expect(b'(', "expected a search key")?;
        let mut keys = vec![self.key(c, depth + 1)?];
        while !c.take(b')') {
            c.space()?;
            keys.push(self.key(c, depth + 1)?);
        }
        Ok(and(keys))
    }

    fn named(&self, c: &mut Cursor<'_>, depth: usize) -> Parsed<SearchKey> {
        let key = match c.word().map_err(|_| Bad("expected a search key"))?.as_str() {
            "ALL" => SearchKey::All,
            "ANSWERED" => SearchKey::Has(SystemFlags::ANSWERED),
            "DELETED" => SearchKey::Has(SystemFlags::DELETED),
            "DRAFT" => SearchKey::Has(SystemFlags::DRAFT),
            "FLAGGED" => SearchKey::Has(SystemFlags::FLAGGED),
            "SEEN" => SearchKey::Has(SystemFlags::SEEN),
            "UNANSWERED" => SearchKey::Lacks(SystemFlags::ANSWERED),
            "UNDELETED" => SearchKey::Lacks(SystemFlags::DELETED),
            "UNDRAFT" => SearchKey::Lacks(SystemFlags::DRAFT),
            "UNFLAGGED" => SearchKey::Lacks(SystemFlags::FLAGGED),
            "UNSEEN" => SearchKey::Lacks(SystemFlags::SEEN),
            "RECENT" => SearchKey::Recent,
            "NEW" => SearchKey::New,
            "OLD" => SearchKey::Old,
            name => {
                c.space().map_err(|_| Bad("unknown search key or missing argument"))?;
                return self.with_argument(c, name, depth);
            }
        };
        Ok(key)
    }

    fn with_argument(&self, c: &mut Cursor<'_>, name: &str, depth: usize) -> Parsed<SearchKey> {
        let key = match name {
            "KEYWORD" => SearchKey::Keyword(c.flag_keyword()?),
            "UNKEYWORD" => SearchKey::Unkeyword(c.flag_keyword()?),
            "BCC" => SearchKey::Bcc(self.text(c)?),
            "BODY" => SearchKey::Body(self.text(c)?),
            "CC" => SearchKey::Cc(self.text(c)?),
            "FROM" => SearchKey::From(self.text(c)?),
            "SUBJECT" => SearchKey::Subject(self.text(c)?),
            "TEXT" => SearchKey::Text(self.text(c)?),
            "TO" => SearchKey::To(self.text(c)?),
            "HEADER" => {
                let field = self.text(c)?;
                c.space()?;
                SearchKey::Header { field, value: self.text(c)? }
            }
            "BEFORE" => SearchKey::Before(day(c)?),
            "ON" => SearchKey::On(day(c)?),
            "SINCE" => SearchKey::Since(day(c)?),
            "SENTBEFORE" => SearchKey::SentBefore(day(c)?),
            "SENTON" => SearchKey::SentOn(day(c)?),
            "SENTSINCE" => SearchKey::SentSince(day(c)?),
            "LARGER" => SearchKey::Larger(c.number()?),
            "SMALLER" => SearchKey::Smaller(c.number()?),
            "UID" => SearchKey::Uid(c.sequence_set()?),
            "MODSEQ" => modseq(c)?,
            "NOT" => SearchKey::Not(Box::new(self.key(c, depth + 1)?)),
            "OR" => {
                let first = self.key(c, depth + 1)?;
                c.space()?;
                SearchKey::Or(Box::new(first), Box::new(self.key(c, depth + 1)?))
            }
            _ => return Err(Bad("unknown search key")),
        };
        Ok(key)
    }

    fn text(&self, c: &mut Cursor<'_>) -> Parsed<String> {
        let octets = c.astring()?;
        match std::str::from_utf8(&octets) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) if self.strict => Err(Bad("search string is not UTF-8")),
            Err(_) => Ok(String::from_utf8_lossy(&octets).into_owned()),
        }
    }
}

/// `date = date-text / DQUOTE date-text DQUOTE`
fn day(c: &mut Cursor<'_>) -> Parsed<i64> {
    let day =
        if c.peek() == Some(b'"') { date::parse_date(&c.quoted()?) } else { date::parse_date(c.atom()?.as_bytes()) };
    day.ok_or(Bad("invalid date"))
}

/// `search-modsequence = "MODSEQ" [search-modseq-ext] SP mod-sequence-valzer`,
/// `search-modseq-ext = SP entry-name SP entry-type-req`, `entry-name = DQUOTE "/flags/" attr-flag DQUOTE`
/// (RFC 7162 §7)
fn modseq(c: &mut Cursor<'_>) -> Parsed<SearchKey> {
    let mut entry = None;
    if c.peek() == Some(b'"') {
        let name = String::from_utf8_lossy(&c.quoted()?).into_owned();
        if !name.starts_with("/flags/") {
            return Err(Bad("invalid MODSEQ entry"));
        }
        entry = Some(name);
        c.space()?;
        if !matches!(c.word()?.as_str(), "PRIV" | "SHARED" | "ALL") {
            return Err(Bad("invalid MODSEQ entry type"));
        }
        c.space()?;
    }
    Ok(SearchKey::ModSeq { entry, at_least: ModSeq(c.number()?) })
}
