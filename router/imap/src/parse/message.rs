//! The arguments of STORE, COPY and MOVE.

use types::{Flags, ModSeq};

use super::cursor::Cursor;
use super::{Bad, Parsed};
use crate::SequenceSet;
use crate::command::{MailboxArg, Store, StoreAction};

/// `copy = "COPY" SP sequence-set SP mailbox`
pub(super) fn set_and_mailbox(c: &mut Cursor<'_>) -> Parsed<(SequenceSet, MailboxArg)> {
    let set = c.sequence_set()?;
    c.space()?;
    Ok((set, c.mailbox()?))
}

/// `store = "STORE" SP sequence-set [SP "(" "UNCHANGEDSINCE" SP mod-sequence-valzer ")"] SP store-att-flags`
/// (RFC 7162 §7)
///
/// `store-att-flags = (["+" / "-"] "FLAGS" [".SILENT"]) SP (flag-list / (flag *(SP flag)))`
pub(super) fn store(c: &mut Cursor<'_>, uid: bool) -> Parsed<Store> {
    let set = c.sequence_set()?;
    c.space()?;
    let mut unchanged_since = None;
    if c.take(b'(') {
        if c.word()? != "UNCHANGEDSINCE" {
            return Err(Bad("unknown STORE modifier"));
        }
        c.space()?;
        unchanged_since = Some(ModSeq(c.number()?));
        c.expect(b')', "unknown STORE modifier")?;
        c.space()?;
    }
    let action = if c.take(b'+') {
        StoreAction::Add
    } else if c.take(b'-') {
        StoreAction::Remove
    } else {
        StoreAction::Replace
    };
    let silent = match c.word()?.as_str() {
        "FLAGS" => false,
        "FLAGS.SILENT" => true,
        _ => return Err(Bad("unknown STORE item")),
    };
    c.space()?;
    let mut flags = Flags::default();
    if c.peek() == Some(b'(') {
        flags = c.flag_list()?;
    } else {
        c.flag(&mut flags)?;
        while c.another()? {
            c.flag(&mut flags)?;
        }
    }
    Ok(Store { uid, set, unchanged_since, action, silent, flags })
}
