//! Renders ENVELOPE (RFC 3501 §7.4.2) from a header, and reads single items back out of what was rendered, for SORT
//! and THREAD.

use crate::address::{self, Address};
use crate::header::{Field, fields, unfold};
use crate::limits::{ADDRESSES_MAX, STRING_OCTETS_MAX};
use crate::writer::Writer;

/// The values of the fields that ENVELOPE shows, and of References, folded as they came.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a> {
    pub date: Option<&'a [u8]>,
    subject: Option<&'a [u8]>,
    from: Option<&'a [u8]>,
    sender: Option<&'a [u8]>,
    reply_to: Option<&'a [u8]>,
    to: Vec<&'a [u8]>,
    cc: Vec<&'a [u8]>,
    bcc: Vec<&'a [u8]>,
    in_reply_to: Option<&'a [u8]>,
    message_id: Option<&'a [u8]>,
    pub references: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    pub(crate) fn read(header: &'a [u8]) -> Fields<'a> {
        let mut found = Fields::default();
        for field in fields(header) {
            found.take(&field);
        }
        found
    }

    fn take(&mut self, field: &Field<'a>) {
        // RFC 822 allowed several fields of recipients.
        let several = [("to", &mut self.to), ("cc", &mut self.cc), ("bcc", &mut self.bcc)];
        for (name, values) in several {
            if field.is(name) {
                if values.len() < ADDRESSES_MAX {
                    values.push(field.value);
                }
                return;
            }
        }
        // Of the others the first counts.
        let one = [
            ("date", &mut self.date),
            ("subject", &mut self.subject),
            ("from", &mut self.from),
            ("sender", &mut self.sender),
            ("reply-to", &mut self.reply_to),
            ("in-reply-to", &mut self.in_reply_to),
            ("message-id", &mut self.message_id),
            ("references", &mut self.references),
        ];
        if let Some((_, value)) = one.into_iter().find(|(name, _)| field.is(name)) {
            value.get_or_insert(field.value);
        }
    }
}

/// `"(" date SP subject SP from SP sender SP reply-to SP to SP cc SP bcc SP in-reply-to SP message-id ")"`
pub(crate) fn render(writer: &mut Writer, found: &Fields<'_>) {
    writer.raw(b"(");
    string(writer, found.date);
    writer.space();
    string(writer, found.subject);
    let from = addresses(found.from.as_slice());
    list(writer, &from);
    // RFC 3501 §7.4.2: an absent or empty Sender or Reply-To is shown as From.
    for or_from in [&found.sender, &found.reply_to] {
        let own = addresses(or_from.as_slice());
        list(writer, if own.is_empty() { &from } else { &own });
    }
    for recipients in [&found.to, &found.cc, &found.bcc] {
        list(writer, &addresses(recipients));
    }
    writer.space();
    string(writer, found.in_reply_to);
    writer.space();
    string(writer, found.message_id);
    writer.raw(b")");
}

fn string(writer: &mut Writer, value: Option<&[u8]>) {
    writer.nstring(value.map(|value| unfold(value, STRING_OCTETS_MAX)).as_deref());
}

fn addresses(values: &[&[u8]]) -> Vec<Address> {
    let mut list = Vec::new();
    for value in values {
        if list.len() >= ADDRESSES_MAX {
            break;
        }
        address::read(value, &mut list, ADDRESSES_MAX);
    }
    list
}

/// ` ((name adl mailbox host) ...)` or ` NIL`.
fn list(writer: &mut Writer, list: &[Address]) {
    writer.space();
    if list.is_empty() || writer.is_full() {
        return writer.nil();
    }
    let mut in_group = false;
    writer.raw(b"(");
    for address in list {
        if writer.is_full() {
            // Whole addresses only: half of one would read as a group.
            break;
        }
        match address {
            Address::Mailbox { name, route, mailbox, host } => {
                writer.raw(b"(");
                for part in [name, route] {
                    match part {
                        Some(text) => writer.string(text),
                        None => writer.nil(),
                    }
                    writer.space();
                }
                writer.string(mailbox);
                writer.space();
                writer.string(host);
                writer.raw(b")");
            }
            // RFC 3501 §7.4.2: NIL as the host marks a group's start; NIL as the mailbox too, its end.
            Address::GroupStart(name) => {
                in_group = true;
                writer.raw(b"(NIL NIL ");
                writer.string(name);
                writer.raw(b" NIL)");
            }
            Address::GroupEnd => {
                in_group = false;
                writer.raw(b"(NIL NIL NIL NIL)");
            }
        }
    }
    if in_group {
        writer.raw(b"(NIL NIL NIL NIL)");
    }
    writer.raw(b")");
}

/// An item of ENVELOPE by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeItem {
    Date,
    Subject,
    From,
    Sender,
    ReplyTo,
    To,
    Cc,
    Bcc,
    InReplyTo,
    MessageId,
}

/// The string that stands at an item; none for NIL and for a list.
pub(crate) fn string_at(rendered: &[u8], item: EnvelopeItem) -> Option<Vec<u8>> {
    match item_at(rendered, item)? {
        (Token::Text(text), _) => Some(text),
        _ => None,
    }
}

/// The first address of a list that is no group's end.
pub(crate) fn first_address(rendered: &[u8], item: EnvelopeItem) -> Option<Address> {
    let (Token::Open, mut rest) = item_at(rendered, item)? else { return None };
    let mut strings = [None, None, None, None];
    let Token::Open = token(&mut rest)? else { return None };
    for string in &mut strings {
        *string = match token(&mut rest)? {
            Token::Text(text) => Some(text),
            Token::Nil => None,
            Token::Open | Token::Close => return None,
        };
    }
    match strings {
        [name, route, Some(mailbox), Some(host)] => Some(Address::Mailbox { name, route, mailbox, host }),
        [_, _, Some(name), None] => Some(Address::GroupStart(name)),
        _ => None,
    }
}

enum Token {
    Open,
    Close,
    Nil,
    Text(Vec<u8>),
}

/// The first token of an item, and what follows it.
fn item_at(mut rest: &[u8], item: EnvelopeItem) -> Option<(Token, &[u8])> {
    let Token::Open = token(&mut rest)? else { return None };
    let mut depth = 0_usize;
    let mut before = item as usize;
    loop {
        let found = token(&mut rest)?;
        if before == 0 {
            return Some((found, rest));
        }
        match found {
            Token::Open => depth += 1,
            Token::Close => depth = depth.checked_sub(1)?,
            Token::Nil | Token::Text(_) => {}
        }
        before -= usize::from(depth == 0);
    }
}

fn token(rest: &mut &[u8]) -> Option<Token> {
    let text = rest.trim_ascii_start();
    let (&first, mut after) = text.split_first()?;
    let found = match first {
        b'(' => Token::Open,
        b')' => Token::Close,
        b'N' => {
            after = after.strip_prefix(b"IL")?;
            Token::Nil
        }
        b'"' => {
            let mut text = Vec::new();
            loop {
                let (&byte, next) = after.split_first()?;
                after = next;
                match byte {
                    b'"' => break,
                    b'\\' => {
                        let (&escaped, next) = after.split_first()?;
                        after = next;
                        text.push(escaped);
                    }
                    _ => text.push(byte),
                }
            }
            Token::Text(text)
        }
        b'{' => {
            let digits = after.iter().position(|&byte| byte == b'}')?;
            let length: usize = std::str::from_utf8(after.get(..digits)?).ok()?.parse().ok()?;
            let (text, next) = after.get(digits + 3..)?.split_at_checked(length)?;
            after = next;
            Token::Text(text.to_vec())
        }
        _ => return None,
    };
    *rest = after;
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::{EnvelopeItem, Fields, first_address, render, string_at};
    use crate::address::Address;
    use crate::writer::Writer;

    #[test]
    fn items_are_read_back_from_what_was_rendered() {
        let mut writer = Writer::new(usize::MAX);
        let header = "Subject: gr\u{fc}n \"x\"\r\nFrom: a b <c@d>\r\nTo: G: x@y;\r\nMessage-ID: <1@x>\r\n\r\n";
        render(&mut writer, &Fields::read(header.as_bytes()));
        let rendered = writer.out;
        assert_eq!(string_at(&rendered, EnvelopeItem::Subject).as_deref(), Some("gr\u{fc}n \"x\"".as_bytes()));
        assert_eq!(string_at(&rendered, EnvelopeItem::MessageId).as_deref(), Some(b"<1@x>".as_slice()));
        assert_eq!(string_at(&rendered, EnvelopeItem::InReplyTo), None);
        assert_eq!(string_at(&rendered, EnvelopeItem::From), None);
        let (name, mailbox, host) = (Some(b"a b".to_vec()), b"c".to_vec(), b"d".to_vec());
        let address = Address::Mailbox { name, route: None, mailbox, host };
        assert_eq!(first_address(&rendered, EnvelopeItem::Sender), Some(address));
        assert_eq!(first_address(&rendered, EnvelopeItem::To), Some(Address::GroupStart(b"G".to_vec())));
        assert_eq!(first_address(&rendered, EnvelopeItem::Cc), None);
        for cut in 0..rendered.len() {
            assert_eq!(string_at(&rendered[..cut.min(rendered.len() - 2)], EnvelopeItem::MessageId), None);
        }
    }
}
