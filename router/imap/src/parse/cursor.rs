//! The words of the grammar: atoms, strings, numbers, flags and mailbox names, read from a slice that is never
//! overrun. Every name is the ABNF's (RFC 3501 §9).

use std::borrow::Cow;

use types::{Flags, KEYWORDS_PER_MAILBOX_MAX, Keyword, SystemFlags};

use super::{Bad, Parsed};
use crate::SequenceSet;
use crate::command::MailboxArg;

pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

/// `ATOM-CHAR = <any CHAR except atom-specials>`
fn is_atom_char(b: u8) -> bool {
    b.is_ascii_graphic() && !b"(){%*\"\\]".contains(&b)
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: text }
    }

    pub(super) fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Whether `octet` stood here; if so it is passed.
    pub(super) fn take(&mut self, octet: u8) -> bool {
        match self.rest.split_first() {
            Some((&first, rest)) if first == octet => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    pub(super) fn expect(&mut self, octet: u8, otherwise: &'static str) -> Parsed<()> {
        if self.take(octet) { Ok(()) } else { Err(Bad(otherwise)) }
    }

    pub(super) fn space(&mut self) -> Parsed<()> {
        self.expect(b' ', "missing argument or space")
    }

    pub(super) fn end(&mut self) -> Parsed<()> {
        self.while_true(|b| b == b' ');
        if self.at_end() { Ok(()) } else { Err(Bad("unexpected text after the command")) }
    }

    /// Whether another space-parted argument follows, rather than the end.
    pub(super) fn another(&mut self) -> Parsed<bool> {
        if self.rest.iter().all(|b| *b == b' ') {
            return Ok(false);
        }
        self.space().map(|()| true)
    }

    /// Whether the text goes on with `word` in any case; if so it is passed.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        match self.rest.split_at_checked(word.len()) {
            Some((head, rest)) if head.eq_ignore_ascii_case(word.as_bytes()) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    pub(super) fn while_true(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.rest.iter().position(|b| !wanted(*b)).unwrap_or(self.rest.len());
        let (head, rest) = self.rest.split_at(length);
        self.rest = rest;
        head
    }

    pub(super) fn until_space(&mut self) -> &'a [u8] {
        self.while_true(|b| b != b' ')
    }

    /// `atom = 1*ATOM-CHAR`
    pub(super) fn atom(&mut self) -> Parsed<&'a str> {
        let atom = std::str::from_utf8(self.while_true(is_atom_char)).unwrap_or_default();
        if atom.is_empty() { Err(Bad("expected an atom")) } else { Ok(atom) }
    }

    /// An atom in capitals: the name of a command, item or option.
    pub(super) fn word(&mut self) -> Parsed<String> {
        self.atom().map(str::to_ascii_uppercase)
    }

    /// `astring = 1*ASTRING-CHAR / string`, `ASTRING-CHAR = ATOM-CHAR / resp-specials`
    pub(super) fn astring(&mut self) -> Parsed<Cow<'a, [u8]>> {
        match self.peek() {
            Some(b'"' | b'{') => self.string(),
            _ => {
                let text = self.while_true(|b| is_atom_char(b) || b == b']');
                if text.is_empty() { Err(Bad("expected a string")) } else { Ok(Cow::Borrowed(text)) }
            }
        }
    }

    /// `string = quoted / literal`
    pub(super) fn string(&mut self) -> Parsed<Cow<'a, [u8]>> {
        match self.peek() {
            Some(b'"') => self.quoted(),
            Some(b'{') => self.literal().map(Cow::Borrowed),
            _ => Err(Bad("expected a string")),
        }
    }

    /// `nstring = string / nil`
    pub(super) fn nstring(&mut self) -> Parsed<Option<Cow<'a, [u8]>>> {
        match self.peek() {
            Some(b'"' | b'{') => self.string().map(Some),
            _ if self.take_word("NIL") => Ok(None),
            _ => Err(Bad("expected a string or NIL")),
        }
    }

    /// `quoted = DQUOTE *QUOTED-CHAR DQUOTE`. Octets above 127 pass, because clients write UTF-8 passwords and
    /// search strings so, and other servers take them.
    pub(super) fn quoted(&mut self) -> Parsed<Cow<'a, [u8]>> {
        self.expect(b'"', "expected a quoted string")?;
        let mut text = Cow::Borrowed(self.while_true(|b| !matches!(b, b'"' | b'\\' | b'\r' | b'\n' | 0)));
        loop {
            match self.rest {
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    return Ok(text);
                }
                // quoted-specials = DQUOTE / "\"
                [b'\\', special @ (b'"' | b'\\'), rest @ ..] => {
                    self.rest = rest;
                    text.to_mut().push(*special);
                }
                _ => return Err(Bad("invalid or unterminated quoted string")),
            }
            let more = self.while_true(|b| !matches!(b, b'"' | b'\\' | b'\r' | b'\n' | 0));
            text.to_mut().extend_from_slice(more);
        }
    }

    /// `literal = "{" number ["+"] "}" CRLF *CHAR8`, `CHAR8 = %x01-ff` (RFC 7888 §8)
    fn literal(&mut self) -> Parsed<&'a [u8]> {
        const INVALID: Bad = Bad("invalid literal");
        self.expect(b'{', INVALID.0)?;
        let length = usize::try_from(self.number()?).map_err(|_| INVALID)?;
        self.take(b'+');
        self.rest = self.rest.strip_prefix(b"}\r\n").ok_or(INVALID)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(INVALID)?;
        if text.contains(&0) {
            return Err(Bad("NUL in a literal"));
        }
        self.rest = rest;
        Ok(text)
    }

    /// `number = 1*DIGIT`, to 2^63-1: sizes (RFC 9051 §9, number64) and mod-sequences (RFC 7162 §7).
    pub(super) fn number(&mut self) -> Parsed<u64> {
        let digits = self.while_true(|b| b.is_ascii_digit());
        let number: Option<i64> = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
        number.and_then(|n| u64::try_from(n).ok()).ok_or(Bad("invalid number"))
    }

    /// `nz-number = digit-nz *DIGIT`, below 2^32.
    pub(super) fn nz_number(&mut self) -> Parsed<u32> {
        if self.peek() == Some(b'0') {
            return Err(Bad("invalid number"));
        }
        self.number().and_then(|n| u32::try_from(n).map_err(|_| Bad("invalid number")))
    }

    pub(super) fn sequence_set(&mut self) -> Parsed<SequenceSet> {
        let text = self.while_true(|b| b.is_ascii_digit() || matches!(b, b':' | b',' | b'*'));
        SequenceSet::parse(text).ok_or(Bad("invalid message set"))
    }

    /// `mailbox = "INBOX" / astring`, in modified UTF-7 (RFC 3501 §5.1.3).
    pub(super) fn mailbox(&mut self) -> Parsed<MailboxArg> {
        MailboxArg::decode(&self.astring()?).map_err(|_| Bad("mailbox name is not valid modified UTF-7"))
    }

    /// `flag-list = "(" [flag *(SP flag)] ")"`
    pub(super) fn flag_list(&mut self) -> Parsed<Flags> {
        self.expect(b'(', "expected a list of flags")?;
        let mut flags = Flags::default();
        if self.take(b')') {
            return Ok(flags);
        }
        loop {
            self.flag(&mut flags)?;
            if self.take(b')') {
                return Ok(flags);
            }
            self.space()?;
        }
    }

    /// `flag = "\Answered" / "\Flagged" / "\Deleted" / "\Seen" / "\Draft" / flag-keyword`. \Recent and unknown
    /// system flags cannot be stored (RFC 3501 §2.3.2).
    pub(super) fn flag(&mut self, flags: &mut Flags) -> Parsed<()> {
        if self.take(b'\\') {
            let system = SystemFlags::parse(&format!("\\{}", self.atom()?)).ok_or(Bad("no such system flag"))?;
            flags.system = flags.system.union(system);
            return Ok(());
        }
        flags.insert_keyword(self.flag_keyword()?);
        if flags.keywords.len() > KEYWORDS_PER_MAILBOX_MAX {
            return Err(Bad("too many keywords"));
        }
        Ok(())
    }

    /// `flag-keyword = atom`
    pub(super) fn flag_keyword(&mut self) -> Parsed<Keyword> {
        Keyword::parse(self.atom()?).map_err(|_| Bad("invalid keyword"))
    }
}
