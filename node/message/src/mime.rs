//! The MIME fields of one part's header (RFC 2045, 2046, 2183), read tolerantly: what is broken falls back to
//! text/plain in US-ASCII, as RFC 2045 §5.2 says.

use std::borrow::Cow;

use crate::charset;
use crate::header::{fields, unfold};
use crate::limits::{BOUNDARY_OCTETS_MAX, PARAMETERS_MAX, STRING_OCTETS_MAX, TOKEN_OCTETS_MAX};
use crate::parameters::{Parameters, parameters, skip_comments, token};
use crate::part::Encoding;
use crate::transfer::hex;
use crate::words;

/// A part's MIME fields; those that only BODYSTRUCTURE shows are kept as they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mime<'a> {
    /// Lower case.
    pub media_type: Vec<u8>,
    /// Lower case.
    pub subtype: Vec<u8>,
    pub parameters: Parameters,
    /// Lower case.
    pub encoding: Option<Vec<u8>>,
    pub id: Option<&'a [u8]>,
    pub description: Option<&'a [u8]>,
    pub disposition: Option<&'a [u8]>,
    pub md5: Option<&'a [u8]>,
    pub language: Option<&'a [u8]>,
    pub location: Option<&'a [u8]>,
}

impl<'a> Mime<'a> {
    /// `in_digest`: a part of multipart/digest, whose default type is message/rfc822 (RFC 2046 §5.1.5).
    pub(crate) fn read(header: &'a [u8], in_digest: bool) -> Mime<'a> {
        let mut mime = Mime::default();
        let (mut content_type, mut encoding) = (None, None);
        for field in fields(header) {
            let Some((prefix, rest)) = field.name.split_at_checked(8) else { continue };
            if !prefix.eq_ignore_ascii_case(b"content-") {
                continue;
            }
            // The first of each counts: a second one is more likely to be an attack than a correction.
            let known: [(&str, &mut Option<&'a [u8]>); 8] = [
                ("type", &mut content_type),
                ("transfer-encoding", &mut encoding),
                ("disposition", &mut mime.disposition),
                ("id", &mut mime.id),
                ("description", &mut mime.description),
                ("md5", &mut mime.md5),
                ("language", &mut mime.language),
                ("location", &mut mime.location),
            ];
            let named = |(name, _): &(&str, _)| rest.eq_ignore_ascii_case(name.as_bytes());
            if let Some((_, value)) = known.into_iter().find(named) {
                value.get_or_insert(field.value);
            }
        }
        mime.encoding = encoding.and_then(|value| token(&mut skip_comments(value))).map(<[u8]>::to_ascii_lowercase);
        match content_type.and_then(media_type) {
            Some((media_type, subtype, parameters)) => {
                mime.media_type = media_type;
                mime.subtype = subtype;
                mime.parameters = parameters;
            }
            None if in_digest => mime.become_type("message", "rfc822"),
            None => mime.become_plain_text(),
        }
        mime
    }

    /// text/plain; charset=us-ascii (RFC 2045 §5.2).
    pub(crate) fn plain_text() -> Mime<'a> {
        let mut mime = Mime::default();
        mime.become_plain_text();
        mime
    }

    fn become_plain_text(&mut self) {
        self.become_type("text", "plain");
        self.parameters = vec![(b"charset".to_vec(), b"us-ascii".to_vec())];
    }

    /// Changes what the part is said to be; parameters belong to a type and go with it.
    pub(crate) fn become_type(&mut self, media_type: &str, subtype: &str) {
        self.media_type = media_type.as_bytes().to_vec();
        self.subtype = subtype.as_bytes().to_vec();
        self.parameters.clear();
    }

    /// Something to save, under the name that it had.
    pub(crate) fn become_opaque(&mut self) {
        let mut parameters = std::mem::take(&mut self.parameters);
        parameters.retain(|(name, _)| matches!(name.as_slice(), b"name" | b"name*"));
        self.become_type("application", "octet-stream");
        self.parameters = parameters;
    }

    pub(crate) fn is(&self, media_type: &str, subtype: &str) -> bool {
        self.media_type == media_type.as_bytes() && self.subtype == subtype.as_bytes()
    }

    pub(crate) fn is_text(&self) -> bool {
        self.media_type == b"text"
    }

    pub(crate) fn is_multipart(&self) -> bool {
        self.media_type == b"multipart"
    }

    pub(crate) fn transfer_encoding(&self) -> Encoding {
        match self.encoding.as_deref() {
            Some(b"quoted-printable") => Encoding::QuotedPrintable,
            Some(b"base64") => Encoding::Base64,
            _ => Encoding::Identity,
        }
    }

    fn parameter(&self, name: &[u8]) -> Option<&[u8]> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// A parameter's value; of `name*=us-ascii'en'a%20b` (RFC 2231 §4), what it stands for.
    fn plain_parameter(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        if let Some(value) = self.parameter(name) {
            return Some(Cow::Borrowed(value));
        }
        let value = self.parameter(&[name, b"*"].concat())?;
        let encoded = value.splitn(3, |&byte| byte == b'\'').nth(2).unwrap_or(value);
        Some(Cow::Owned(percent_decoded(encoded)))
    }

    /// What the parameters of type and disposition say to a reader: joined and decoded (RFC 2231), encoded words too,
    /// which many senders put there.
    pub(crate) fn parameter_texts(&self) -> impl Iterator<Item = String> {
        let disposition = self.disposition().map(|(_, parameters)| parameters).unwrap_or_default();
        let text = |(name, value): (Vec<u8>, Vec<u8>)| {
            let mut fields = value.splitn(3, |&byte| byte == b'\'');
            match (fields.next(), fields.next(), fields.next()) {
                (Some(charset), Some(_), Some(encoded)) if name.ends_with(b"*") => {
                    let charset = std::str::from_utf8(charset).ok().filter(|charset| !charset.is_empty());
                    charset::decode(charset, &percent_decoded(encoded))
                }
                _ => words::decode(&value),
            }
        };
        self.parameters.clone().into_iter().chain(disposition).map(text)
    }

    pub(crate) fn boundary(&self) -> Option<Vec<u8>> {
        let boundary = self.plain_parameter(b"boundary")?.trim_ascii_end().to_vec();
        (!boundary.is_empty() && boundary.len() <= BOUNDARY_OCTETS_MAX).then_some(boundary)
    }

    /// The charset in lower case, if it looks like one.
    pub(crate) fn charset(&self) -> Option<String> {
        let name = self.plain_parameter(b"charset")?;
        let name = name.trim_ascii();
        let plausible = !name.is_empty() && name.len() <= TOKEN_OCTETS_MAX && name.iter().all(u8::is_ascii_graphic);
        plausible.then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
    }

    /// The disposition's type in lower case and its parameters (RFC 2183 §2).
    pub(crate) fn disposition(&self) -> Option<(Vec<u8>, Parameters)> {
        let mut rest = skip_comments(self.disposition?);
        let kind = token(&mut rest)?.to_ascii_lowercase();
        Some((kind, parameters(rest, PARAMETERS_MAX)))
    }

    /// The language tags (RFC 3282 §2).
    pub(crate) fn languages(&self) -> Vec<Vec<u8>> {
        let value = self.language.map(|value| unfold(value, STRING_OCTETS_MAX)).unwrap_or_default();
        let tags = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        tags.filter(|tag| !tag.is_empty()).map(<[u8]>::to_vec).collect()
    }
}

/// `type "/" subtype *(";" parameter)` (RFC 2045 §5.1).
fn media_type(value: &[u8]) -> Option<(Vec<u8>, Vec<u8>, Parameters)> {
    let mut rest = skip_comments(value);
    let media_type = token(&mut rest)?.to_ascii_lowercase();
    rest = skip_comments(rest).strip_prefix(b"/")?;
    rest = skip_comments(rest);
    let subtype = token(&mut rest)?.to_ascii_lowercase();
    Some((media_type, subtype, parameters(rest, PARAMETERS_MAX)))
}

fn percent_decoded(encoded: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    text.push((high << 4) | low);
                    rest = after;
                }
                _ => text.push(byte),
            },
            _ => text.push(byte),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Mime;
    use crate::part::Encoding;

    #[test]
    fn comments_are_no_part_of_the_type_or_encoding() {
        let mime = Mime::read(
            b"Content-Type: (a) Text (b) / (c (d)) HTML (e) ; (f) charset=\"UTF-8\" (g)\r\n\
              content-transfer-encoding: (x) Quoted-Printable (y)\r\n\r\n",
            false,
        );
        assert!(mime.is("text", "html"));
        assert_eq!(mime.charset().as_deref(), Some("utf-8"));
        assert_eq!(mime.transfer_encoding(), Encoding::QuotedPrintable);
    }

    #[test]
    fn broken_types_count_as_plain_text() {
        for broken in ["", "text", "text/", "/plain", "; charset=x", "(text/plain", "text plain", "\"text\"/plain"] {
            let header = format!("Content-Type: {broken}\r\n\r\n");
            let mime = Mime::read(header.as_bytes(), false);
            assert!(mime.is("text", "plain"), "{broken}");
            assert_eq!(mime.charset().as_deref(), Some("us-ascii"), "{broken}");
        }
        assert!(Mime::read(b"\r\n", true).is("message", "rfc822"));
    }

    #[test]
    fn percent_encoded_boundaries_are_understood() {
        let header = b"Content-Type: multipart/mixed; boundary*0*=us-ascii''a%2Fb; boundary*1=\"c d\"\r\n\r\n";
        assert_eq!(Mime::read(header, false).boundary().as_deref(), Some(b"a/bc d".as_slice()));
    }

    #[test]
    fn the_first_of_a_repeated_field_counts() {
        let mime = Mime::read(b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n", false);
        assert!(mime.is("a", "b"));
    }

    #[test]
    fn charsets_that_cannot_be_are_none() {
        let header = format!("Content-Type: text/plain; charset={}\r\n\r\n", "x".repeat(10 * 1024));
        assert_eq!(Mime::read(header.as_bytes(), false).charset(), None);
        let extended = Mime::read(b"Content-Type: text/plain; charset*=us-ascii'en'ISO-8859-1\r\n\r\n", false);
        assert_eq!(extended.charset().as_deref(), Some("iso-8859-1"));
    }
}
