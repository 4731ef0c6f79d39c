//! Renders BODYSTRUCTURE (RFC 3501 §7.4.2) from the scanned parts. BODY is the same text without the extension data,
//! so their places are noted and BODY is cut from it on demand.

use std::ops::Range;

use crate::envelope;
use crate::header::unfold;
use crate::limits::STRING_OCTETS_MAX;
use crate::mime::Mime;
use crate::parameters::Parameters;
use crate::part::{PartKind, octets};
use crate::scan::Node;
use crate::writer::Writer;

/// The rendered text and where its extension data stand, ascending.
pub(crate) fn render(raw: &[u8], nodes: &[Node<'_>], optional_octets_max: usize) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut writer = Writer::new(optional_octets_max);
    let mut extensions = Vec::new();
    // Containers whose parts are being written, outermost first.
    let mut open: Vec<&Node<'_>> = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        while open.len() > node.part.depth {
            if let Some(done) = open.pop() {
                finish(&mut writer, &mut extensions, done);
            }
        }
        writer.uncounted(|writer| writer.raw(b"("));
        match node.part.kind {
            PartKind::Multipart => {}
            PartKind::Leaf => fields(&mut writer, node),
            PartKind::Message => {
                fields(&mut writer, node);
                writer.space();
                let inner = nodes.get(at + 1).map(|inner| octets(raw, &inner.part.header())).unwrap_or_default();
                envelope::render(&mut writer, &envelope::Fields::read(inner));
                writer.space();
            }
        }
        open.push(node);
    }
    while let Some(done) = open.pop() {
        finish(&mut writer, &mut extensions, done);
    }
    (writer.out, extensions)
}

/// `media-basic SP body-fields`, and the lines of text (RFC 3501 §9).
fn fields(writer: &mut Writer, node: &Node<'_>) {
    let mime = &node.mime;
    writer.uncounted(|writer| {
        writer.string(&mime.media_type);
        writer.space();
        writer.string(&mime.subtype);
        writer.space();
    });
    parameters(writer, &mime.parameters);
    for value in [mime.id, mime.description] {
        writer.space();
        nstring(writer, value);
    }
    writer.uncounted(|writer| {
        writer.space();
        writer.string(mime.encoding.as_deref().unwrap_or(b"7bit"));
        writer.space();
        writer.number(node.part.end - node.part.body_start);
        // RFC 3501 §9: body-type-text, by the type that is shown.
        if node.part.kind == PartKind::Leaf && mime.is_text() {
            writer.space();
            writer.number(node.lines);
        }
    });
}

/// What stands after a container's parts, or after a leaf's fields: the extension data and the closing parenthesis.
fn finish(writer: &mut Writer, extensions: &mut Vec<Range<usize>>, node: &Node<'_>) {
    let mime = &node.mime;
    match node.part.kind {
        PartKind::Leaf => {}
        PartKind::Multipart => writer.uncounted(|writer| {
            writer.space();
            writer.string(&mime.subtype);
        }),
        PartKind::Message => writer.uncounted(|writer| {
            writer.space();
            writer.number(node.lines);
        }),
    }
    let start = writer.out.len();
    writer.space();
    if node.part.kind == PartKind::Multipart {
        parameters(writer, &mime.parameters);
    } else {
        nstring(writer, mime.md5);
    }
    writer.space();
    disposition(writer, mime);
    writer.space();
    languages(writer, mime);
    writer.space();
    nstring(writer, mime.location);
    extensions.push(start..writer.out.len());
    writer.uncounted(|writer| writer.raw(b")"));
}

fn nstring(writer: &mut Writer, value: Option<&[u8]>) {
    writer.nstring(value.map(|value| unfold(value, STRING_OCTETS_MAX)).as_deref());
}

/// `body-fld-param = "(" string SP string *(SP string SP string) ")" / nil`
fn parameters(writer: &mut Writer, parameters: &Parameters) {
    if parameters.is_empty() || writer.is_full() {
        return writer.nil();
    }
    for (at, (name, value)) in parameters.iter().enumerate() {
        if at > 0 && writer.is_full() {
            break;
        }
        writer.raw(if at == 0 { b"(" } else { b" " });
        writer.string(name);
        writer.space();
        writer.string(value);
    }
    writer.raw(b")");
}

/// `body-fld-dsp = "(" string SP body-fld-param ")" / nil`
fn disposition(writer: &mut Writer, mime: &Mime<'_>) {
    match mime.disposition() {
        Some((kind, values)) if !writer.is_full() => {
            writer.raw(b"(");
            writer.string(&kind);
            writer.space();
            parameters(writer, &values);
            writer.raw(b")");
        }
        _ => writer.nil(),
    }
}

/// `body-fld-lang = nstring / "(" string *(SP string) ")"`
fn languages(writer: &mut Writer, mime: &Mime<'_>) {
    match mime.languages().as_slice() {
        [] => writer.nil(),
        [one] => writer.nstring(Some(one)),
        _ if writer.is_full() => writer.nil(),
        several => {
            for (at, language) in several.iter().enumerate() {
                writer.raw(if at == 0 { b"(" } else { b" " });
                writer.string(language);
            }
            writer.raw(b")");
        }
    }
}
