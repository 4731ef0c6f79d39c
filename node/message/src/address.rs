//! Address lists as ENVELOPE shows them (RFC 5322 §3.4, RFC 3501 §7.4.2): names as they came, encoded words
//! untouched, quoting removed. Reads what senders write rather than what the grammar allows; never fails.

use std::iter::Peekable;
use std::slice::Iter;

use crate::limits::STRING_OCTETS_MAX;

/// One entry of ENVELOPE's address lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Mailbox {
        name: Option<Vec<u8>>,
        /// The source route, `@a,@b`.
        route: Option<Vec<u8>>,
        mailbox: Vec<u8>,
        /// Empty where the sender gave none: NIL would make it a group.
        host: Vec<u8>,
    },
    GroupStart(Vec<u8>),
    GroupEnd,
}

/// Appends the addresses of one field's value until the list holds `count_max`; an open group is ended all the same.
pub(crate) fn read(value: &[u8], list: &mut Vec<Address>, count_max: usize) {
    let mut reader = Reader { list, entry: Entry::default(), in_group: false };
    let mut bytes = value.iter().peekable();
    while reader.list.len() < count_max {
        let Some(token) = next_token(&mut bytes) else { break };
        reader.take(token);
    }
    if reader.list.len() < count_max {
        reader.finish_entry();
    }
    if reader.in_group {
        reader.list.push(Address::GroupEnd);
    }
}

enum Token {
    /// A run of ordinary characters.
    Atom {
        text: Vec<u8>,
        after_blank: bool,
    },
    Quoted {
        text: Vec<u8>,
        after_blank: bool,
    },
    Comment(Vec<u8>),
    /// `< > , : ; @ .`
    Special {
        byte: u8,
        after_blank: bool,
    },
}

const SPECIALS: &[u8] = b"<>,:;@.";

fn next_token(bytes: &mut Peekable<Iter<'_, u8>>) -> Option<Token> {
    let mut after_blank = false;
    while bytes.next_if(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0)).is_some() {
        after_blank = true;
    }
    let &first = bytes.next()?;
    Some(match first {
        b'(' => Token::Comment(comment(bytes)),
        b'"' => Token::Quoted { text: delimited(bytes, b'"'), after_blank },
        b'[' => {
            // RFC 5322 §3.4.1: a domain literal keeps its brackets.
            let mut text = vec![b'['];
            text.append(&mut delimited(bytes, b']'));
            text.push(b']');
            Token::Atom { text, after_blank }
        }
        _ if SPECIALS.contains(&first) => Token::Special { byte: first, after_blank },
        _ => {
            let mut text = vec![first];
            let ordinary = |byte: &&u8| **byte > b' ' && !SPECIALS.contains(byte) && !b"(\"[".contains(byte);
            while let Some(&byte) = bytes.next_if(ordinary) {
                push(&mut text, byte);
            }
            Token::Atom { text, after_blank }
        }
    })
}

fn push(text: &mut Vec<u8>, byte: u8) {
    if text.len() < STRING_OCTETS_MAX {
        text.push(byte);
    }
}

fn push_all(text: &mut Vec<u8>, more: &[u8]) {
    let room = STRING_OCTETS_MAX.saturating_sub(text.len());
    text.extend_from_slice(more.get(..room).unwrap_or(more));
}

/// Up to the closing character, backslashes undone, line breaks removed.
fn delimited(bytes: &mut Peekable<Iter<'_, u8>>, close: u8) -> Vec<u8> {
    let mut text = Vec::new();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => {
                if let Some(&byte) = bytes.next() {
                    push(&mut text, byte);
                }
            }
            b'\r' | b'\n' | 0 => {}
            _ if byte == close => break,
            _ => push(&mut text, byte),
        }
    }
    text
}

/// A comment's text, inner parentheses kept.
fn comment(bytes: &mut Peekable<Iter<'_, u8>>) -> Vec<u8> {
    let (mut text, mut depth) = (Vec::new(), 1_usize);
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => {
                if let Some(&byte) = bytes.next() {
                    push(&mut text, byte);
                }
                continue;
            }
            b'\r' | b'\n' | 0 => continue,
            b'(' => depth += 1,
            b')' if depth == 1 => break,
            b')' => depth -= 1,
            _ => {}
        }
        push(&mut text, byte);
    }
    text
}

/// What has been read of the address at hand.
#[derive(Default)]
struct Entry {
    /// The words with the blanks between them: the name if an angle bracket follows, or a group's name.
    phrase: Vec<u8>,
    /// The same without blanks: the address if none does.
    plain: Vec<u8>,
    /// Where the last @ stands in `plain`.
    at_sign: Option<usize>,
    comment: Option<Vec<u8>>,
    angle: Angle,
    /// Within the angle brackets.
    route: Vec<u8>,
    spec: Vec<u8>,
    spec_at_sign: Option<usize>,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum Angle {
    #[default]
    Before,
    /// `<` seen, nothing yet.
    Begun,
    InRoute,
    InSpec,
    After,
}

struct Reader<'a> {
    list: &'a mut Vec<Address>,
    entry: Entry,
    in_group: bool,
}

impl Reader<'_> {
    fn take(&mut self, token: Token) {
        let entry = &mut self.entry;
        match (token, entry.angle) {
            (Token::Comment(text), _) => {
                if !text.is_empty() {
                    entry.comment = Some(text);
                }
            }
            (Token::Special { byte: b'<', .. }, Angle::Before) => entry.angle = Angle::Begun,
            (Token::Special { byte: b'<', .. }, Angle::After) => {
                // A comma is missing between two addresses.
                self.finish_entry();
                self.entry.angle = Angle::Begun;
            }
            (Token::Special { byte: b'>', .. }, Angle::Begun | Angle::InRoute | Angle::InSpec) => {
                entry.angle = Angle::After;
            }
            // RFC 5322 §4.4: obs-route = obs-domain-list ":"
            (Token::Special { byte: b'@', .. }, Angle::Begun) => {
                entry.angle = Angle::InRoute;
                entry.route.push(b'@');
            }
            (Token::Special { byte: b':', .. }, Angle::InRoute) => entry.angle = Angle::InSpec,
            (Token::Special { byte, .. }, Angle::InRoute) => push(&mut entry.route, byte),
            (Token::Atom { text, .. } | Token::Quoted { text, .. }, Angle::InRoute) => {
                push_all(&mut entry.route, &text);
            }
            (Token::Special { byte: b',', .. }, _) => self.finish_entry(),
            (Token::Special { byte: b';', .. }, _) => {
                self.finish_entry();
                if std::mem::take(&mut self.in_group) {
                    self.list.push(Address::GroupEnd);
                }
            }
            (Token::Special { byte: b':', .. }, Angle::Before) if !self.in_group && entry.at_sign.is_none() => {
                let name = std::mem::take(&mut self.entry).phrase;
                self.in_group = true;
                self.list.push(Address::GroupStart(name));
            }
            (Token::Special { byte, after_blank }, Angle::Before) => {
                if byte == b'@' {
                    entry.at_sign = Some(entry.plain.len());
                }
                entry.word(&[byte], after_blank);
            }
            (Token::Atom { text, after_blank } | Token::Quoted { text, after_blank }, Angle::Before) => {
                entry.word(&text, after_blank);
            }
            (Token::Special { byte, .. }, Angle::Begun | Angle::InSpec) => {
                entry.angle = Angle::InSpec;
                if byte == b'@' {
                    entry.spec_at_sign = Some(entry.spec.len());
                }
                push(&mut entry.spec, byte);
            }
            (Token::Atom { text, .. } | Token::Quoted { text, .. }, Angle::Begun | Angle::InSpec) => {
                entry.angle = Angle::InSpec;
                push_all(&mut entry.spec, &text);
            }
            // Words after the angle bracket mean nothing.
            (Token::Special { .. } | Token::Atom { .. } | Token::Quoted { .. }, Angle::After) => {}
        }
    }

    fn finish_entry(&mut self) {
        let entry = std::mem::take(&mut self.entry);
        let has_angle = entry.angle != Angle::Before;
        let (spec, at_sign) = if has_angle { (entry.spec, entry.spec_at_sign) } else { (entry.plain, entry.at_sign) };
        let name = if has_angle && !entry.phrase.is_empty() { Some(entry.phrase) } else { entry.comment };
        // The null address `<>` is one; nothing at all, as between two commas, is none.
        if !has_angle && spec.is_empty() {
            return;
        }
        let (mailbox, host) = match at_sign {
            Some(at) => {
                let (mailbox, host) = spec.split_at(at.min(spec.len()));
                (mailbox.to_vec(), host.get(1..).unwrap_or_default().to_vec())
            }
            None => (spec, Vec::new()),
        };
        let route = (!entry.route.is_empty()).then_some(entry.route);
        self.list.push(Address::Mailbox { name, route, mailbox, host });
    }
}

impl Entry {
    fn word(&mut self, text: &[u8], after_blank: bool) {
        if after_blank && !self.phrase.is_empty() {
            push(&mut self.phrase, b' ');
        }
        push_all(&mut self.phrase, text);
        push_all(&mut self.plain, text);
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, read};

    fn shown(value: &str) -> Vec<String> {
        let mut list = Vec::new();
        read(value.as_bytes(), &mut list, 1_000);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let show = |address: &Address| match address {
            Address::GroupStart(name) => format!("{}:", text(name)),
            Address::GroupEnd => ";".to_owned(),
            Address::Mailbox { name, route, mailbox, host } => {
                let [name, route] = [name, route].map(|part| part.as_deref().map_or("-".to_owned(), text));
                format!("{name}|{route}|{}|{}", text(mailbox), text(host))
            }
        };
        list.iter().map(show).collect()
    }

    #[test]
    fn the_forms_of_rfc_5322_appendix_a_are_read() {
        assert_eq!(
            shown("\"Joe Q. Public\" <john.q.public@example.com>"),
            ["Joe Q. Public|-|john.q.public|example.com"]
        );
        assert_eq!(
            shown("Mary Smith <mary@x.test>, jdoe@example.org, Who? <one@y.test>"),
            ["Mary Smith|-|mary|x.test", "-|-|jdoe|example.org", "Who?|-|one|y.test"]
        );
        assert_eq!(
            shown("<boss@nil.test>, \"Giant; \\\"Big\\\" Box\" <sysservices@example.net>"),
            ["-|-|boss|nil.test", "Giant; \"Big\" Box|-|sysservices|example.net"]
        );
        assert_eq!(
            shown("A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;"),
            ["A Group:", "Ed Jones|-|c|a.test", "-|-|joe|where.test", "John|-|jdoe|one.test", ";"]
        );
        assert_eq!(shown("Undisclosed recipients:;"), ["Undisclosed recipients:", ";"]);
        assert_eq!(shown("Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>"), ["Pete|-|pete|silly.test"]);
        assert_eq!(
            shown("A Group(Some people)\r\n     :Chris Jones <c@(Chris's host.)public.example>,\r\n joe@example.org;"),
            ["A Group:", "Chris Jones|-|c|public.example", "-|-|joe|example.org", ";"]
        );
        assert_eq!(
            shown("Mary Smith <@node.test,@b.test:mary@example.net>, , jdoe@test  . example"),
            ["Mary Smith|@node.test,@b.test|mary|example.net", "-|-|jdoe|test.example"]
        );
        assert_eq!(shown("Joe Q. Public <john.q.public@example.com>"), ["Joe Q. Public|-|john.q.public|example.com"]);
    }

    #[test]
    fn odd_addresses_still_give_something() {
        assert_eq!(shown("gray@cac.washington.edu (Terry (T.) Gray)"), ["Terry (T.) Gray|-|gray|cac.washington.edu"]);
        assert_eq!(shown("root"), ["-|-|root|"]);
        assert_eq!(shown("\"john doe\"@[127.0.0.1]"), ["-|-|john doe|[127.0.0.1]"]);
        assert_eq!(shown("\"a@b\"@c"), ["-|-|a@b|c"]);
        assert_eq!(shown("a@x.test <a@y.test>"), ["a@x.test|-|a|y.test"]);
        assert_eq!(shown("a@b; c@d"), ["-|-|a|b", "-|-|c|d"]);
        assert_eq!(shown("<a@b> <c@d>"), ["-|-|a|b", "-|-|c|d"]);
        assert_eq!(shown("<>"), ["-|-||"]);
        assert_eq!(shown("X <a@b"), ["X|-|a|b"]);
        assert_eq!(shown("=?utf-8?q?J=C3=BCrgen?= <a@b>"), ["=?utf-8?q?J=C3=BCrgen?=|-|a|b"]);
        assert_eq!(shown("G: a@b, c@d"), ["G:", "-|-|a|b", "-|-|c|d", ";"]);
        assert_eq!(shown(" , ;,"), Vec::<String>::new());
        assert_eq!(shown("\"never closed <a@b>"), ["-|-|never closed <a@b>|"]);
    }

    #[test]
    fn the_count_is_bounded_and_groups_are_closed() {
        let mut list = Vec::new();
        read("G: ".bytes().chain("a@b,".bytes().cycle().take(4_000)).collect::<Vec<_>>().as_slice(), &mut list, 10);
        assert_eq!(list.len(), 11);
        assert_eq!(list.last(), Some(&Address::GroupEnd));
    }
}
