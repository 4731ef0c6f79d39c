//! FETCH responses (RFC 3501 §7.4.2), item by item, so that a body can be streamed between two of them.

use bytes::{BufMut, BytesMut};
use types::{Flags, InternalDate, ModSeq, Uid};

use super::string::{put_display, put_flags, put_joined, put_string};
use crate::command::{BodySection, SectionName, SectionText};
use crate::date::format_date_time;

/// One `* n FETCH (...)`. The writer keeps only its place: the buffer is passed to each call, so that it may be
/// flushed in between.
#[derive(Debug)]
pub struct FetchWriter {
    has_item: bool,
}

impl FetchWriter {
    pub fn new(out: &mut BytesMut, seq: u32) -> FetchWriter {
        put_display(out, format_args!("* {seq} FETCH ("));
        FetchWriter { has_item: false }
    }

    pub fn flags(&mut self, out: &mut BytesMut, flags: &Flags, recent: bool) {
        self.item(out, "FLAGS ");
        put_flags(out, flags, recent.then_some("\\Recent"));
    }

    pub fn uid(&mut self, out: &mut BytesMut, uid: Uid) {
        self.item(out, "UID ");
        put_display(out, uid);
    }

    pub fn internal_date(&mut self, out: &mut BytesMut, date: InternalDate) {
        self.item(out, "INTERNALDATE ");
        put_display(out, format_date_time(date));
    }

    pub fn rfc822_size(&mut self, out: &mut BytesMut, octets: u64) {
        self.item(out, "RFC822.SIZE ");
        put_display(out, octets);
    }

    /// RFC 7162 §3.1.4.2.
    pub fn modseq(&mut self, out: &mut BytesMut, modseq: ModSeq) {
        self.item(out, "MODSEQ ");
        put_display(out, format_args!("({modseq})"));
    }

    /// `rendered` is in IMAP's syntax already, as are those of the next two.
    pub fn envelope(&mut self, out: &mut BytesMut, rendered: &[u8]) {
        self.item(out, "ENVELOPE ");
        out.put_slice(rendered);
    }

    pub fn body(&mut self, out: &mut BytesMut, rendered: &[u8]) {
        self.item(out, "BODY ");
        out.put_slice(rendered);
    }

    pub fn body_structure(&mut self, out: &mut BytesMut, rendered: &[u8]) {
        self.item(out, "BODYSTRUCTURE ");
        out.put_slice(rendered);
    }

    /// The section does not exist: NIL.
    pub fn section_nil(&mut self, out: &mut BytesMut, section: &BodySection) {
        self.section_name(out, section);
        out.put_slice(b"NIL");
    }

    /// Up to and with the literal's CRLF: exactly `octets` octets must follow before the next call.
    pub fn section_literal(&mut self, out: &mut BytesMut, section: &BodySection, octets: u64) {
        self.section_name(out, section);
        put_display(out, format_args!("{{{octets}}}\r\n"));
    }

    pub fn finish(self, out: &mut BytesMut) {
        out.put_slice(b")\r\n");
    }

    fn item(&mut self, out: &mut BytesMut, name: &str) {
        if self.has_item {
            out.put_u8(b' ');
        }
        self.has_item = true;
        out.put_slice(name.as_bytes());
    }

    /// `"BODY" section ["<" number ">"] SP`, or one of the RFC822 names.
    fn section_name(&mut self, out: &mut BytesMut, section: &BodySection) {
        match section.name {
            SectionName::Rfc822 => return self.item(out, "RFC822 "),
            SectionName::Rfc822Header => return self.item(out, "RFC822.HEADER "),
            SectionName::Rfc822Text => return self.item(out, "RFC822.TEXT "),
            SectionName::Body => self.item(out, "BODY["),
        }
        for (i, number) in section.part.iter().enumerate() {
            let dot = if i > 0 { "." } else { "" };
            put_display(out, format_args!("{dot}{number}"));
        }
        if !section.part.is_empty() && section.text != SectionText::All {
            out.put_u8(b'.');
        }
        match &section.text {
            SectionText::All => {}
            SectionText::Header => out.put_slice(b"HEADER"),
            SectionText::HeaderFields(fields) => put_header_list(out, "HEADER.FIELDS (", fields),
            SectionText::HeaderFieldsNot(fields) => put_header_list(out, "HEADER.FIELDS.NOT (", fields),
            SectionText::Text => out.put_slice(b"TEXT"),
            SectionText::Mime => out.put_slice(b"MIME"),
        }
        out.put_u8(b']');
        if let Some(partial) = section.partial {
            put_display(out, format_args!("<{}>", partial.offset));
        }
        out.put_u8(b' ');
    }
}

/// Names come back as atoms where they can: clients compare what they asked with what they get.
fn put_header_list(out: &mut BytesMut, head: &str, fields: &[String]) {
    out.put_slice(head.as_bytes());
    put_joined(out, fields, |out, field| {
        let plain = !field.is_empty() && field.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if plain && !field.eq_ignore_ascii_case("NIL") {
            out.put_slice(field.as_bytes());
        } else {
            put_string(out, field.as_bytes());
        }
    });
    out.put_u8(b')');
}
