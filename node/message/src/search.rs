//! SEARCH in text (RFC 3501 §6.4.4): decoded, compared without regard to case, in time linear in the octets and in
//! memory bounded by the longest header value.

use std::ops::Range;
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

use crate::charset;
use crate::digest::Digest;
use crate::header::{fields, unfold};
use crate::mime::Mime;
use crate::part::{Encoding, Part, PartKind, octets};
use crate::transfer;
use crate::words;

/// Encoded octets that are decoded at once.
const PIECE_OCTETS: usize = 64 * 1024;
/// How far back a piece of text is cut so that no letter is parted from its accents.
const ACCENTS_OCTETS_MAX: usize = 256;

/// A search string, prepared for comparing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    folded: String,
}

impl Needle {
    pub fn new(text: &str) -> Needle {
        let mut folded = String::with_capacity(text.len());
        fold(text, &mut folded);
        Needle { folded }
    }

    /// The empty string is in every text.
    pub fn is_empty(&self) -> bool {
        self.folded.is_empty()
    }

    /// Whether a decoded text holds the string.
    pub fn is_in(&self, text: &str) -> bool {
        let mut folded = String::with_capacity(text.len());
        fold(text, &mut folded);
        folded.contains(&self.folded)
    }
}

/// Like i;unicode-casemap (RFC 5051 §2): compatibility decomposition and one case. By way of upper to lower case, so
/// that ß meets SS and ς meets σ.
fn fold(text: &str, out: &mut String) {
    let mut rest = text;
    while !rest.is_empty() {
        let (ascii, after) = rest.split_at(rest.bytes().position(|byte| !byte.is_ascii()).unwrap_or(rest.len()));
        let start = out.len();
        out.push_str(ascii);
        if let Some(added) = out.get_mut(start..) {
            added.make_ascii_lowercase();
        }
        // No accent moves over an ASCII character (Unicode §3.11), so the runs between can be folded apart.
        let (run, after) = after.split_at(after.bytes().position(|byte| byte.is_ascii()).unwrap_or(after.len()));
        fold_run(run, out);
        rest = after;
    }
}

/// The folded forms of the characters of two octets. None for combining ones, which may have to change places with
/// those that follow.
static FOLDED: LazyLock<Vec<Option<String>>> = LazyLock::new(|| {
    let folded = |c: char| (canonical_combining_class(c) == 0).then(|| fold_slowly(c.to_string().as_str()).collect());
    (0..0x800).map(|code| char::from_u32(code).and_then(folded)).collect()
});

fn fold_slowly(text: &str) -> impl Iterator<Item = char> {
    text.nfkd().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

fn fold_run(run: &str, out: &mut String) {
    let start = out.len();
    for c in run.chars() {
        match FOLDED.get(c as usize) {
            Some(Some(folded)) => out.push_str(folded),
            // CJK ideographs have neither case nor parts.
            None if ('\u{4e00}'..='\u{9fff}').contains(&c) => out.push(c),
            _ => {
                out.truncate(start);
                return out.extend(fold_slowly(run));
            }
        }
    }
}

/// Whether a field of this name, or with none any field, holds the string. The empty string asks whether there is
/// such a field (RFC 3501 §6.4.4, HEADER). Values are compared decoded, and without a name together with their names.
pub fn header_contains(header: &[u8], name: Option<&str>, needle: &Needle) -> bool {
    fields(header).filter(|field| name.is_none_or(|name| field.is(name))).any(|field| {
        if needle.is_empty() {
            return true;
        }
        let value = words::decode(&unfold(field.value, usize::MAX));
        match name {
            Some(_) => needle.is_in(&value),
            None => needle.is_in(&format!("{}: {value}", String::from_utf8_lossy(field.name))),
        }
    })
}

/// Whether the body holds the string: in whatever is between the message's header and its end (RFC 3501 §6.4.4). Text
/// is compared decoded; the MIME headers of parts, the preamble, the delimiters and the epilogue are text as well. The
/// one exception is base64 that holds no text, such as a picture.
pub fn body_contains(raw: &[u8], digest: &Digest, needle: &Needle) -> bool {
    if needle.is_empty() {
        return true;
    }
    let in_part = |(at, part): (usize, &Part)| {
        (at > 0 && part_header_contains(octets(raw, &part.header()), needle))
            || (part.kind == PartKind::Leaf && leaf_contains(raw, digest, part, needle))
    };
    digest.parts.iter().enumerate().any(in_part)
        || between(&digest.parts).any(|gap| octets_contain(octets(raw, &gap), Encoding::Identity, None, needle))
}

/// Whether header or body hold the string.
pub fn text_contains(raw: &[u8], digest: &Digest, needle: &Needle) -> bool {
    needle.is_empty()
        || part_header_contains(octets(raw, &digest.header()), needle)
        || body_contains(raw, digest, needle)
}

/// Any field, and the parameters whose values are spread or encoded as RFC 2231 has it: mostly file names.
fn part_header_contains(header: &[u8], needle: &Needle) -> bool {
    header_contains(header, None, needle)
        || (header.contains(&b'*') && Mime::read(header, false).parameter_texts().any(|text| needle.is_in(&text)))
}

/// What the parts do not cover: before the first of a multipart, between them, and after the last. In no order.
fn between(parts: &[Part]) -> impl Iterator<Item = Range<u64>> {
    // Of each open part, what of its body is not covered yet.
    let mut open: Vec<Range<u64>> = Vec::new();
    let mut gaps = Vec::new();
    for part in parts {
        gaps.extend(open.drain(part.depth.min(open.len())..));
        if let Some(around) = open.last_mut() {
            gaps.push(around.start..part.header_start);
            around.start = around.start.max(part.end);
        }
        let covered = if part.kind == PartKind::Leaf { part.end } else { part.body_start };
        open.push(covered..part.end);
    }
    gaps.append(&mut open);
    gaps.into_iter().filter(|gap| gap.start < gap.end)
}

fn leaf_contains(raw: &[u8], digest: &Digest, part: &Part, needle: &Needle) -> bool {
    let is_searched = part.is_text || part.encoding != Encoding::Base64 || {
        // message/delivery-status and its kin, or a message that is encoded against RFC 2046 §5.2.1.
        let mime = Mime::read(octets(raw, &part.header()), false);
        mime.is_text() || mime.media_type == b"message"
    };
    is_searched && octets_contain(octets(raw, &part.body()), part.encoding, digest.charset(part), needle)
}

fn octets_contain(octets: &[u8], encoding: Encoding, charset: Option<&str>, needle: &Needle) -> bool {
    let mut encoded = transfer::Decoder::new(encoding, octets);
    let mut text = charset::Decoder::new(charset);
    // A piece is not smaller than the string, or a long one would be compared with the same text again and again.
    let piece_octets = PIECE_OCTETS.max(needle.folded.len());
    let mut finder = Finder { needle, text: String::new(), folded: String::new() };
    let mut decoded = Vec::new();
    loop {
        decoded.clear();
        let more = encoded.step(piece_octets, &mut decoded);
        text.step(&decoded, !more, &mut finder.text);
        if finder.step(!more) {
            return true;
        }
        if !more {
            return false;
        }
    }
}

/// Looks for a string in a text that comes in pieces.
struct Finder<'a> {
    needle: &'a Needle,
    /// Decoded, not yet folded.
    text: String,
    /// Folded; between steps the end of what has been searched.
    folded: String,
}

impl Finder<'_> {
    fn step(&mut self, last: bool) -> bool {
        let from = self.text.floor_char_boundary(self.text.len().saturating_sub(ACCENTS_OCTETS_MAX));
        let tail = self.text.get(from..).unwrap_or_default();
        // Accents follow their letter, and no ASCII character is one.
        let cut = match tail.rfind(|c: char| c.is_ascii()) {
            Some(at) if !last => from + at,
            _ => self.text.len(),
        };
        fold(self.text.get(..cut).unwrap_or_default(), &mut self.folded);
        self.text.drain(..cut);
        if self.folded.contains(&self.needle.folded) {
            return true;
        }
        let searched = self.folded.len().saturating_sub(self.needle.folded.len().saturating_sub(1));
        let searched = self.folded.floor_char_boundary(searched);
        self.folded.drain(..searched);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{Needle, body_contains, fold, fold_slowly, header_contains, text_contains};
    use crate::digest::Digest;

    const MESSAGE: &str = "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe_aus?= =?utf-8?q?_K=C3=B6ln?=\r\nFrom: Jos\u{e9} <jose@x.test>\r\n\
        Empty:\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\npreamble words\r\n--b\r\n\
        Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
        Stra=DFe und Caf=E9, a very lo=\r\nng word\r\n--b\r\n\
        Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n\
        PHA+0JrQvtGI0LrQsDwvcD4=\r\n--b\r\n\
        Content-Type: application/json; name=\"=?utf-8?q?=C3=9Cbersicht=2Ejson?=\"\r\n\r\nplain words\r\n--b\r\n\
        Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\
        Content-Disposition: attachment;\r\n filename*0*=iso-8859-1''Stra%DFen; filename*1=\"plan.png\"\r\n\r\n\
        YmluYXJ5IHdvcmRz\r\n--b\r\n\
        Content-Type: message/rfc822\r\n\r\nSubject: =?koi8-r?b?8NLJ18XU?=\r\n\r\ninner words\r\n--b\r\n\
        Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.x.test\r\n\r\nAction: failed\r\n--b\r\n\
        Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n\
        U3ViamVjdDogaGlkZGVuIG9uZQ0KDQpoaQ0K\r\n--b--\r\nepilogue words\r\n";

    fn body(text: &str) -> bool {
        body_contains(MESSAGE.as_bytes(), &Digest::of(MESSAGE.as_bytes()), &Needle::new(text))
    }

    #[test]
    fn bodies_are_searched_decoded_and_without_regard_to_case() {
        for text in ["STRASSE", "straße", "café", "CAFE\u{301}", "very long word", "КОШКА", "inner WORDS", "привет", ""]
        {
            assert!(body(text), "{text}");
        }
        for text in ["Grüße", "multipart/mixed", "0JrQvtGI", "lo=", "Stra=DFe"] {
            assert!(!body(text), "{text}");
        }
    }

    #[test]
    fn all_that_a_body_holds_is_searched() {
        for text in [
            "preamble words",
            "epilogue words",
            "plain words",
            "content-type: TEXT/html",
            "übersicht.json",
            "straßenplan.PNG",
            "reporting-mta: dns; mx.x.test",
            "action: FAILED",
            "subject: hidden one",
            "--b--",
        ] {
            assert!(body(text), "{text}");
        }
        // What base64 hides is text only where its type says so; the letters that hide it are nobody's text.
        for text in ["binary words", "YmluYXJ5", "wordsb"] {
            assert!(!body(text), "{text}");
        }
    }

    #[test]
    fn parts_that_were_left_out_are_searched_as_they_came() {
        let part = "--b\r\n\r\nx\r\n";
        let message = format!(
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n{}--b\r\n\r\nlast words\r\n--b--\r\n",
            part.repeat(crate::limits::PARTS_MAX)
        );
        let digest = Digest::of(message.as_bytes());
        assert!(body_contains(message.as_bytes(), &digest, &Needle::new("LAST words")));
    }

    #[test]
    fn a_multipart_without_parts_is_all_text() {
        let message = b"Content-Type: multipart/mixed; boundary=b\r\n\r\nno parts at all\r\n";
        let digest = Digest::of(message);
        assert!(body_contains(message, &digest, &Needle::new("no parts")));
        assert!(!body_contains(message, &digest, &Needle::new("boundary")));
    }

    #[test]
    fn headers_are_searched_by_name_or_all() {
        let header = |name, text| header_contains(MESSAGE.as_bytes(), name, &Needle::new(text));
        assert!(header(Some("subject"), "GRÜSSE AUS KÖLN"));
        assert!(header(Some("FROM"), "josé <jose@X.TEST>"));
        assert!(!header(Some("To"), ""));
        assert!(header(Some("Empty"), ""));
        assert!(!header(Some("Empty"), "x"));
        assert!(!header(Some("Subject"), "jose"));
        assert!(header(None, "jose@x"));
        assert!(header(None, "subject: grü"));
        assert!(!header(None, "preamble"));
    }

    #[test]
    fn text_is_header_or_body() {
        let text = |text| text_contains(MESSAGE.as_bytes(), &Digest::of(MESSAGE.as_bytes()), &Needle::new(text));
        assert!(text("köln") && text("strasse") && text("") && !text("nowhere"));
    }

    #[test]
    fn folding_by_table_agrees_with_folding_by_rule() {
        for code in 0..0x3000 {
            let Some(c) = char::from_u32(code) else { continue };
            for text in [c.to_string(), format!("a{c}\u{323}\u{301}b"), format!("{c}\u{fc}\u{4e01}")] {
                let mut folded = String::new();
                fold(&text, &mut folded);
                assert_eq!(folded, fold_slowly(&text).collect::<String>(), "{text:?}");
            }
        }
    }

    #[test]
    fn strings_that_lie_across_pieces_are_found() {
        // Every place of the piece border within the string, with accents that are letters of their own.
        for shift in 0..40 {
            let filler = "\u{e9}".repeat(super::PIECE_OCTETS / 2 - 20);
            let message = format!("\r\n{}{filler}na\u{ef}ve \u{1f600} needle{filler}", "x".repeat(shift));
            let digest = Digest::of(message.as_bytes());
            let found = |text: &str| body_contains(message.as_bytes(), &digest, &Needle::new(text));
            assert!(found("NAI\u{308}VE \u{1f600} NEEDLE"), "{shift}");
            assert!(!found("needles"), "{shift}");
        }
    }
}
