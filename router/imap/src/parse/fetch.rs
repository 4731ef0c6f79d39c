//! The arguments of FETCH (RFC 3501 §6.4.5, RFC 7162 §3.1.4.1).

use types::ModSeq;

use super::cursor::Cursor;
use super::mailbox::list_of;
use super::{Bad, Parsed};
use crate::command::{BodySection, Fetch, FetchItem, Partial, SectionName, SectionText};

/// Distinct items in one FETCH: each may stand for the whole message, so this bounds how much a short line can ask
/// for. Clients that fetch part by part stay under 30.
const ITEMS_MAX: usize = 100;
/// Numbers in a part specifier; the structure of a message is cut at this depth.
const PART_DEPTH_MAX: usize = 100;

/// `fetch = "FETCH" SP sequence-set SP ("ALL" / "FULL" / "FAST" / fetch-att / "(" fetch-att *(SP fetch-att) ")")
/// [SP "(" "CHANGEDSINCE" SP mod-sequence-value ")"]`
pub(super) fn fetch(c: &mut Cursor<'_>, uid: bool) -> Parsed<Fetch> {
    let set = c.sequence_set()?;
    c.space()?;
    let mut items = Vec::new();
    if c.peek() == Some(b'(') {
        list_of(c, |c| {
            let item = item(c)?;
            if !items.contains(&item) {
                items.push(item);
            }
            if items.len() > ITEMS_MAX { Err(Bad("too many FETCH items")) } else { Ok(()) }
        })?;
    } else {
        items = macro_or_item(c)?;
    }
    let mut changed_since = None;
    if c.another()? {
        c.expect(b'(', "expected a FETCH modifier")?;
        if c.word()? != "CHANGEDSINCE" {
            return Err(Bad("unknown FETCH modifier"));
        }
        c.space()?;
        // mod-sequence-value = 1*DIGIT, from 1 to 2^63-1 (RFC 7162 §7).
        let value = c.number()?;
        if value == 0 {
            return Err(Bad("CHANGEDSINCE must not be 0"));
        }
        changed_since = Some(ModSeq(value));
        c.expect(b')', "unknown FETCH modifier")?;
    }
    Ok(Fetch { uid, set, items, changed_since })
}

/// The macros stand alone, never in a list.
fn macro_or_item(c: &mut Cursor<'_>) -> Parsed<Vec<FetchItem>> {
    let fast = [FetchItem::Flags, FetchItem::InternalDate, FetchItem::Rfc822Size];
    let items = if c.take_word("ALL") {
        fast.into_iter().chain([FetchItem::Envelope]).collect()
    } else if c.take_word("FULL") {
        fast.into_iter().chain([FetchItem::Envelope, FetchItem::Body]).collect()
    } else if c.take_word("FAST") {
        fast.to_vec()
    } else {
        vec![item(c)?]
    };
    Ok(items)
}

fn item(c: &mut Cursor<'_>) -> Parsed<FetchItem> {
    // The atom's characters include "[", so the name is read by its own.
    let name = c.while_true(|b| b.is_ascii_alphanumeric() || b == b'.').to_ascii_uppercase();
    let whole =
        |name, text, peek| FetchItem::Section(BodySection { name, part: Vec::new(), text, partial: None, peek });
    let item = match name.as_slice() {
        b"FLAGS" => FetchItem::Flags,
        b"INTERNALDATE" => FetchItem::InternalDate,
        b"ENVELOPE" => FetchItem::Envelope,
        b"UID" => FetchItem::Uid,
        b"MODSEQ" => FetchItem::ModSeq,
        b"BODYSTRUCTURE" => FetchItem::BodyStructure,
        b"RFC822" => whole(SectionName::Rfc822, SectionText::All, false),
        // Functionally BODY.PEEK[HEADER], though its name does not say so.
        b"RFC822.HEADER" => whole(SectionName::Rfc822Header, SectionText::Header, true),
        b"RFC822.TEXT" => whole(SectionName::Rfc822Text, SectionText::Text, false),
        b"RFC822.SIZE" => FetchItem::Rfc822Size,
        b"BODY" if c.peek() != Some(b'[') => FetchItem::Body,
        b"BODY" => FetchItem::Section(section(c, false)?),
        b"BODY.PEEK" => FetchItem::Section(section(c, true)?),
        _ => return Err(Bad("unknown FETCH item")),
    };
    Ok(item)
}

/// `section = "[" [section-spec] "]"`, then `["<" number "." nz-number ">"]`
///
/// `section-spec = section-msgtext / (section-part ["." section-text])`
fn section(c: &mut Cursor<'_>, peek: bool) -> Parsed<BodySection> {
    const INVALID: &str = "invalid section";
    c.expect(b'[', INVALID)?;
    let mut part = Vec::new();
    let mut text = SectionText::All;
    if c.peek() != Some(b']') {
        let mut text_follows = true;
        while c.peek().is_some_and(|b| b.is_ascii_digit()) {
            if part.len() == PART_DEPTH_MAX {
                return Err(Bad("part specifier too deep"));
            }
            part.push(c.nz_number()?);
            text_follows = c.take(b'.');
            if !text_follows {
                break;
            }
        }
        if text_follows {
            text = section_text(c, !part.is_empty())?;
        }
    }
    c.expect(b']', INVALID)?;
    let mut partial = None;
    if c.take(b'<') {
        let offset = c.number()?;
        c.expect(b'.', "invalid partial")?;
        let octets_max = c.number()?;
        if octets_max == 0 {
            return Err(Bad("invalid partial"));
        }
        c.expect(b'>', "invalid partial")?;
        partial = Some(Partial { offset, octets_max });
    }
    Ok(BodySection { name: SectionName::Body, part, text, partial, peek })
}

/// `section-text = section-msgtext / "MIME"`, MIME only after a part specifier.
///
/// `section-msgtext = "HEADER" / "HEADER.FIELDS" [".NOT"] SP header-list / "TEXT"`
fn section_text(c: &mut Cursor<'_>, in_part: bool) -> Parsed<SectionText> {
    match c.while_true(|b| b.is_ascii_alphabetic() || b == b'.').to_ascii_uppercase().as_slice() {
        b"HEADER" => Ok(SectionText::Header),
        b"HEADER.FIELDS" => header_list(c).map(SectionText::HeaderFields),
        b"HEADER.FIELDS.NOT" => header_list(c).map(SectionText::HeaderFieldsNot),
        b"TEXT" => Ok(SectionText::Text),
        b"MIME" if in_part => Ok(SectionText::Mime),
        _ => Err(Bad("invalid section")),
    }
}

/// `header-list = "(" header-fld-name *(SP header-fld-name) ")"`, `header-fld-name = astring`; a field name is
/// printable ASCII without colon (RFC 5322 §2.2).
fn header_list(c: &mut Cursor<'_>) -> Parsed<Vec<String>> {
    let mut names = Vec::new();
    c.space()?;
    list_of(c, |c| {
        let name = c.astring()?;
        if name.is_empty() || !name.iter().all(|b| b.is_ascii_graphic() && *b != b':') {
            return Err(Bad("invalid header field name"));
        }
        names.push(String::from_utf8_lossy(&name).into_owned());
        Ok(())
    })?;
    Ok(names)
}
