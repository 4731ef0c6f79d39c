//! APPEND up to its message (RFC 3501 §6.3.11), which is streamed and never stands in the command's text.

use types::{Flags, InternalDate};

use super::cursor::Cursor;
use super::{Bad, Parsed, tag_and_name};
use crate::command::{MailboxArg, Tag};
use crate::date;

/// What the literal that has just been announced is.
#[derive(Debug)]
pub(crate) enum AppendPrefix {
    /// The command is not APPEND.
    NotAppend,
    /// The mailbox's name.
    Mailbox,
    Message {
        tag: Tag,
        mailbox: MailboxArg,
        flags: Flags,
        date: Option<InternalDate>,
    },
}

/// `append = "APPEND" SP mailbox [SP flag-list] [SP date-time] SP literal`; `text` ends before the literal's brace.
pub(crate) fn append_prefix(text: &[u8]) -> Parsed<AppendPrefix> {
    let mut c = Cursor::new(text);
    let (tag, name) = tag_and_name(&mut c)?;
    if name != "APPEND" {
        return Ok(AppendPrefix::NotAppend);
    }
    c.space()?;
    if c.at_end() {
        return Ok(AppendPrefix::Mailbox);
    }
    let mailbox = c.mailbox()?;
    c.space()?;
    let mut flags = Flags::default();
    if c.peek() == Some(b'(') {
        flags = c.flag_list()?;
        c.space()?;
    }
    let mut internal_date = None;
    if c.peek() == Some(b'"') {
        internal_date = Some(date::parse_date_time(&c.quoted()?).ok_or(Bad("invalid date-time"))?);
        c.space()?;
    }
    if !c.at_end() {
        return Err(Bad("invalid APPEND"));
    }
    Ok(AppendPrefix::Message { tag, mailbox, flags, date: internal_date })
}
