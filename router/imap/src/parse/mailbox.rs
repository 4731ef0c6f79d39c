//! The arguments of commands on mailboxes: SELECT, CREATE, RENAME, LIST, LSUB, STATUS.

use types::SpecialUse;

use super::cursor::Cursor;
use super::{Bad, Parsed};
use crate::command::{CommandBody, List, ListReturn, ListSelection, MailboxArg, StatusItem, UnknownUse};
use crate::utf7;

/// `select = "SELECT" SP mailbox [SP "(" select-param *(SP select-param) ")"]` (RFC 4466 §2.1), of which
/// CONDSTORE is known (RFC 7162 §3.1.8).
pub(super) fn select(c: &mut Cursor<'_>) -> Parsed<(MailboxArg, bool)> {
    let mailbox = c.mailbox()?;
    let mut condstore = false;
    if c.another()? {
        list_of(c, |c| {
            if c.word()? != "CONDSTORE" {
                return Err(Bad("unknown SELECT parameter"));
            }
            condstore = true;
            Ok(())
        })?;
    }
    Ok((mailbox, condstore))
}

/// `create = "CREATE" SP mailbox [SP "(" "USE" SP "(" [use-attr *(SP use-attr)] ")" ")"]` (RFC 6154 §6).
pub(super) fn create(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let mailbox = c.mailbox()?;
    let mut special_uses = Ok(Vec::new());
    if c.another()? {
        list_of(c, |c| {
            if c.word()? != "USE" {
                return Err(Bad("unknown CREATE parameter"));
            }
            c.space()?;
            if c.take_word("()") {
                return Ok(());
            }
            list_of(c, |c| {
                c.expect(b'\\', "expected a special-use attribute")?;
                let special_use = SpecialUse::parse(&format!("\\{}", c.atom()?));
                match (&mut special_uses, special_use) {
                    (Ok(uses), Some(special_use)) if !uses.contains(&special_use) => uses.push(special_use),
                    (_, Some(_)) => {}
                    (_, None) => special_uses = Err(UnknownUse),
                }
                Ok(())
            })
        })?;
    }
    Ok(CommandBody::Create { mailbox, special_uses })
}

/// `rename = "RENAME" SP mailbox SP mailbox`
pub(super) fn rename(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let from = c.mailbox()?;
    c.space()?;
    Ok(CommandBody::Rename { from, to: c.mailbox()? })
}

/// `list = "LIST" [SP list-select-opts] SP mailbox SP list-mailbox [SP list-return-opts]` (RFC 5258 §6, with the
/// options of RFC 6154 §6 only).
pub(super) fn list(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let mut selection = Vec::new();
    if c.take_word("()") {
        c.space()?;
    } else if c.peek() == Some(b'(') {
        list_of(c, |c| {
            let option = match c.word()?.as_str() {
                "SPECIAL-USE" => ListSelection::SpecialUse,
                _ => return Err(Bad("unknown LIST selection option")),
            };
            push_once(&mut selection, option);
            Ok(())
        })?;
        c.space()?;
    }
    let reference = reference(c)?;
    c.space()?;
    let patterns = vec![pattern(c)?];
    let mut returns = Vec::new();
    if c.another()? {
        if c.word()? != "RETURN" {
            return Err(Bad("expected RETURN"));
        }
        c.space()?;
        if !c.take_word("()") {
            list_of(c, |c| {
                let option = match c.word()?.as_str() {
                    "SPECIAL-USE" => ListReturn::SpecialUse,
                    "CHILDREN" => ListReturn::Children,
                    "SUBSCRIBED" => ListReturn::Subscribed,
                    _ => return Err(Bad("unknown LIST return option")),
                };
                push_once(&mut returns, option);
                Ok(())
            })?;
        }
    }
    Ok(CommandBody::List(List { selection, reference, patterns, returns }))
}

/// `lsub = "LSUB" SP mailbox SP list-mailbox`
pub(super) fn lsub(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let reference = reference(c)?;
    c.space()?;
    Ok(CommandBody::Lsub { reference, pattern: pattern(c)? })
}

/// `status = "STATUS" SP mailbox SP "(" status-att *(SP status-att) ")"`
pub(super) fn status(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let mailbox = c.mailbox()?;
    c.space()?;
    let mut items = Vec::new();
    list_of(c, |c| {
        let name = c.word()?;
        let item = StatusItem::NAMES.into_iter().find(|(_, known)| *known == name);
        push_once(&mut items, item.ok_or(Bad("unknown STATUS item"))?.0);
        Ok(())
    })?;
    Ok(CommandBody::Status { mailbox, items })
}

fn reference(c: &mut Cursor<'_>) -> Parsed<String> {
    decode(&c.astring()?)
}

/// `list-mailbox = 1*list-char / string`, `list-char = ATOM-CHAR / list-wildcards / resp-specials`
fn pattern(c: &mut Cursor<'_>) -> Parsed<String> {
    if matches!(c.peek(), Some(b'"' | b'{')) {
        return decode(&c.string()?);
    }
    let text = c.while_true(|b| b.is_ascii_graphic() && !b"(){\"\\".contains(&b));
    if text.is_empty() { Err(Bad("expected a mailbox pattern")) } else { decode(text) }
}

fn decode(octets: &[u8]) -> Parsed<String> {
    utf7::decode(octets).map_err(|_| Bad("mailbox name is not valid modified UTF-7"))
}

/// `"(" item *(SP item) ")"`
pub(super) fn list_of<'a>(c: &mut Cursor<'a>, mut item: impl FnMut(&mut Cursor<'a>) -> Parsed<()>) -> Parsed<()> {
    c.expect(b'(', "expected a parenthesised list")?;
    loop {
        item(c)?;
        if c.take(b')') {
            return Ok(());
        }
        c.space()?;
    }
}

fn push_once<T: PartialEq>(items: &mut Vec<T>, item: T) {
    if !items.contains(&item) {
        items.push(item);
    }
}
