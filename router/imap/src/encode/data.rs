//! Untagged data about the server, mailboxes and their sizes (RFC 3501 §7.2 to §7.4).

use bytes::{BufMut, BytesMut};
use types::{Flags, MailboxName, ModSeq, SpecialUse};

use super::string::{put_atom, put_display, put_flags, put_joined, put_mailbox, put_nstring, put_quoted, put_string};
use crate::command::StatusItem;

/// `mbx-list-flags`, with CHILDREN (RFC 3348), SPECIAL-USE (RFC 6154) and what RFC 5258 §3.4 and §3.5 add.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailboxAttribute {
    NoInferiors,
    NoSelect,
    Marked,
    Unmarked,
    HasChildren,
    HasNoChildren,
    NonExistent,
    Subscribed,
    SpecialUse(SpecialUse),
}

impl MailboxAttribute {
    fn name(self) -> &'static str {
        match self {
            MailboxAttribute::NoInferiors => "\\Noinferiors",
            MailboxAttribute::NoSelect => "\\Noselect",
            MailboxAttribute::Marked => "\\Marked",
            MailboxAttribute::Unmarked => "\\Unmarked",
            MailboxAttribute::HasChildren => "\\HasChildren",
            MailboxAttribute::HasNoChildren => "\\HasNoChildren",
            MailboxAttribute::NonExistent => "\\NonExistent",
            MailboxAttribute::Subscribed => "\\Subscribed",
            MailboxAttribute::SpecialUse(special_use) => special_use.attribute(),
        }
    }
}

/// `names` as `rules::capabilities` gives them.
pub fn capability(out: &mut BytesMut, names: &str) {
    put_line(out, "* CAPABILITY ", |out| out.put_slice(names.as_bytes()));
}

/// RFC 5161 §3.2; without names if nothing was enabled.
pub fn enabled<'a>(out: &mut BytesMut, names: impl IntoIterator<Item = &'a str>) {
    put_line(out, "* ENABLED", |out| {
        for name in names {
            out.put_u8(b' ');
            put_atom(out, name);
        }
    });
}

/// RFC 2971 §3.2; NIL without fields.
pub fn id(out: &mut BytesMut, fields: &[(&str, Option<&str>)]) {
    put_line(out, "* ID ", |out| {
        if fields.is_empty() {
            out.put_slice(b"NIL");
            return;
        }
        out.put_u8(b'(');
        put_joined(out, fields, |out, (field, value)| {
            put_string(out, field.as_bytes());
            out.put_u8(b' ');
            put_nstring(out, value.map(str::as_bytes));
        });
        out.put_u8(b')');
    });
}

/// The one personal namespace, and no other (RFC 2342 §5).
pub fn namespace(out: &mut BytesMut) {
    put_line(out, "* NAMESPACE ((\"\" ", |out| {
        put_separator(out);
        out.put_slice(b")) NIL NIL");
    });
}

/// The flags in use in the mailbox.
pub fn flags(out: &mut BytesMut, flags: &Flags) {
    put_line(out, "* FLAGS ", |out| put_flags(out, flags, None));
}

pub fn exists(out: &mut BytesMut, count: u32) {
    put_display(out, format_args!("* {count} EXISTS\r\n"));
}

pub fn recent(out: &mut BytesMut, count: u32) {
    put_display(out, format_args!("* {count} RECENT\r\n"));
}

pub fn expunge(out: &mut BytesMut, seq: u32) {
    put_display(out, format_args!("* {seq} EXPUNGE\r\n"));
}

/// An empty name answers the question for the separator (RFC 3501 §6.3.8).
pub fn list(out: &mut BytesMut, attributes: &[MailboxAttribute], name: &str) {
    mailbox_list(out, "* LIST (", attributes, name);
}

pub fn lsub(out: &mut BytesMut, attributes: &[MailboxAttribute], name: &str) {
    mailbox_list(out, "* LSUB (", attributes, name);
}

pub fn status(out: &mut BytesMut, name: &str, values: &[(StatusItem, u64)]) {
    put_line(out, "* STATUS ", |out| {
        put_mailbox(out, name);
        out.put_slice(b" (");
        put_joined(out, values, |out, (item, value)| {
            let word = StatusItem::NAMES.iter().find(|(known, _)| known == item).map_or("", |(_, word)| word);
            put_display(out, format_args!("{word} {value}"));
        });
        out.put_u8(b')');
    });
}

/// Sequence numbers, or UIDs for UID SEARCH. `modseq` is the highest of the messages found, given if the keys named
/// MODSEQ and anything was found (RFC 7162 §3.1.5).
pub fn search(out: &mut BytesMut, numbers: impl IntoIterator<Item = u32>, modseq: Option<ModSeq>) {
    put_line(out, "* SEARCH", |out| {
        for number in numbers {
            put_display(out, format_args!(" {number}"));
        }
        if let Some(modseq) = modseq {
            put_display(out, format_args!(" (MODSEQ {modseq})"));
        }
    });
}

/// `mailbox-list = "(" [mbx-list-flags] ")" SP (DQUOTE QUOTED-CHAR DQUOTE / nil) SP mailbox`
fn mailbox_list(out: &mut BytesMut, head: &str, attributes: &[MailboxAttribute], name: &str) {
    put_line(out, head, |out| {
        put_joined(out, attributes, |out, attribute| out.put_slice(attribute.name().as_bytes()));
        out.put_slice(b") ");
        put_separator(out);
        out.put_u8(b' ');
        put_mailbox(out, name);
    });
}

fn put_separator(out: &mut BytesMut) {
    put_quoted(out, MailboxName::SEPARATOR.encode_utf8(&mut [0; 4]).as_bytes());
}

fn put_line(out: &mut BytesMut, head: &str, body: impl FnOnce(&mut BytesMut)) {
    out.put_slice(head.as_bytes());
    body(out);
    out.put_slice(b"\r\n");
}
