//! The parameters of Content-Type and Content-Disposition (RFC 2045 §5.1), with the continuations of RFC 2231 joined.

use std::collections::BTreeMap;

use crate::limits::{STRING_OCTETS_MAX, TOKEN_OCTETS_MAX};
use crate::lines::is_blank;

/// Names in lower case, values without quoting; in the order in which they came.
pub(crate) type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// Blanks, line breaks and nested comments skipped (RFC 5322 §3.2.2, CFWS).
pub(crate) fn skip_comments(text: &[u8]) -> &[u8] {
    let mut depth = 0_usize;
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            b'\\' if depth > 0 => {
                bytes.next();
            }
            _ if depth > 0 => {}
            b' ' | b'\t' | b'\r' | b'\n' | 0 => {}
            _ => return text.get(at..).unwrap_or_default(),
        }
    }
    &[]
}

/// `token := 1*<any CHAR except SPACE, CTLs, or tspecials>` (RFC 2045 §5.1), 8-bit let pass; one that is too long is
/// none.
pub(crate) fn token<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let ends = |&byte: &u8| byte <= b' ' || byte == 127 || b"()<>@,;:\\\"/[]?=".contains(&byte);
    let text: &'a [u8] = rest;
    // Nobody needs the end of one that is too long.
    let end = text.iter().take(TOKEN_OCTETS_MAX + 1).position(ends).unwrap_or(text.len());
    let (token, after) = text.split_at(end);
    *rest = after;
    (!token.is_empty() && token.len() <= TOKEN_OCTETS_MAX).then_some(token)
}

/// `*(";" attribute "=" value)`. What is not of this form is skipped up to the next semicolon.
pub(crate) fn parameters(mut rest: &[u8], count_max: usize) -> Parameters {
    let mut found = Parameters::new();
    while found.len() < count_max {
        rest = skip_comments(rest);
        match rest.first() {
            None => break,
            Some(b';') => {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            Some(_) => {}
        }
        let ends = |&byte: &u8| byte == b'=' || byte == b';' || byte == b'(' || byte <= b' ';
        let (name, after) = rest.split_at(rest.iter().position(ends).unwrap_or(rest.len()));
        let after = skip_comments(after);
        match after.strip_prefix(b"=") {
            Some(after) if !name.is_empty() && name.len() <= TOKEN_OCTETS_MAX => {
                let (value, after) = value(skip_comments(after));
                found.push((name.to_ascii_lowercase(), value));
                rest = after;
            }
            _ => {
                let after = rest.get(1..).unwrap_or_default();
                rest = after.get(find(after, b';')..).unwrap_or_default();
            }
        }
    }
    join_continuations(found)
}

fn find(text: &[u8], wanted: u8) -> usize {
    text.iter().position(|&byte| byte == wanted).unwrap_or(text.len())
}

/// A quoted string, or everything to the semicolon: unquoted blanks in file names are common.
fn value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    if let Some(quoted) = text.strip_prefix(b"\"")
        && let Some(found) = quoted_value(quoted)
    {
        return found;
    }
    let mut end = find(text, b';');
    let bare = text.get(..end).unwrap_or_default();
    // A comment, but only after a blank: name=file(1).txt has none.
    let comment = bare.windows(2).position(|pair| matches!(pair, [b' ' | b'\t' | b'\n', b'(']));
    if let Some(at) = comment {
        end = at;
    }
    let value = bare.get(..end).unwrap_or_default().trim_ascii();
    let kept = |&byte: &u8| byte != b'\r' && byte != b'\n' && byte != 0;
    (value.iter().copied().filter(kept).take(STRING_OCTETS_MAX).collect(), text.get(end..).unwrap_or_default())
}

/// After the opening quote. None if it is never closed.
fn quoted_value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        let byte = match byte {
            b'"' => return Some((value, text.get(at + 1..).unwrap_or_default())),
            b'\\' => *bytes.next()?.1,
            b'\r' | b'\n' => continue,
            byte => byte,
        };
        if value.len() < STRING_OCTETS_MAX && byte != 0 {
            value.push(byte);
        }
    }
    None
}

/// One numbered piece of a parameter.
struct Piece {
    number: u32,
    is_extended: bool,
    value: Vec<u8>,
}

/// RFC 2231 §3: `name*0`, `name*1`, … become `name`, or `name*` if any of them is percent-encoded, which is what
/// clients of IMAP expect. Pieces that do not begin with 0, or come after a gap, are dropped.
fn join_continuations(found: Parameters) -> Parameters {
    if !found.iter().any(|(name, _)| piece_name(name).is_some()) {
        return found;
    }
    let mut pieces: BTreeMap<Vec<u8>, Vec<Piece>> = BTreeMap::new();
    let mut joined = Parameters::new();
    for (name, value) in found {
        match piece_name(&name) {
            None => joined.push((name, value)),
            Some((base, number, is_extended)) => {
                let pieces = pieces.entry(base.to_vec()).or_default();
                if pieces.is_empty() {
                    // Holds the place; the value follows below.
                    joined.push((base.to_vec(), Vec::new()));
                }
                pieces.push(Piece { number, is_extended, value });
            }
        }
    }
    joined.retain_mut(|(name, value)| {
        let place_held = value.is_empty();
        let Some(mut pieces) = place_held.then(|| pieces.remove(name)).flatten() else { return true };
        pieces.sort_by_key(|piece| piece.number);
        let Some((whole, is_extended)) = join(&pieces) else { return false };
        *value = whole;
        if is_extended {
            name.push(b'*');
        }
        true
    });
    joined
}

/// `name*3` or `name*3*`: base, number, whether it is percent-encoded.
fn piece_name(name: &[u8]) -> Option<(&[u8], u32, bool)> {
    let (base, number) = name.split_at(find(name, b'*'));
    let number = number.strip_prefix(b"*")?;
    let (number, is_extended) = match number.strip_suffix(b"*") {
        Some(number) => (number, true),
        None => (number, false),
    };
    let digits = !number.is_empty() && number.len() <= 6 && number.iter().all(u8::is_ascii_digit);
    let number = digits.then(|| number.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')))?;
    Some((base, number, is_extended))
}

fn join(pieces: &[Piece]) -> Option<(Vec<u8>, bool)> {
    let in_order = || {
        let numbered = pieces.iter().enumerate();
        numbered.take_while(|(at, piece)| usize::try_from(piece.number) == Ok(*at)).map(|(_, piece)| piece)
    };
    let first = in_order().next()?;
    let is_extended = in_order().any(|piece| piece.is_extended);
    let mut whole = Vec::new();
    if is_extended && !first.is_extended {
        whole.extend_from_slice(b"''");
    }
    for piece in in_order() {
        for &byte in &piece.value {
            let plain = piece.is_extended || byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || is_blank(byte);
            if is_extended && !plain {
                whole.extend_from_slice(format!("%{byte:02X}").as_bytes());
            } else {
                whole.push(byte);
            }
        }
        if whole.len() >= STRING_OCTETS_MAX {
            whole.truncate(STRING_OCTETS_MAX);
            break;
        }
    }
    Some((whole, is_extended))
}

#[cfg(test)]
mod tests {
    use super::parameters;

    fn read(text: &str) -> Vec<(String, String)> {
        let found = parameters(text.as_bytes(), 1_000).into_iter();
        let text = |bytes| String::from_utf8(bytes).expect("tests use UTF-8");
        found.map(|(name, value)| (text(name), text(value))).collect()
    }

    fn expect(text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(read(text), expected, "{text}");
    }

    #[test]
    fn quoted_and_bare_values_are_read() {
        expect("; charset=us-ascii (Plain text)", &[("charset", "us-ascii")]);
        expect("; Charset=\"a\\\"b;c\" ; x = y;", &[("charset", "a\"b;c"), ("x", "y")]);
        expect("; name=my file(1).pdf; a=b", &[("name", "my file(1).pdf"), ("a", "b")]);
        expect("; name=\"two\r\n lines\"", &[("name", "two lines")]);
        expect("; name=\"never closed; a=b", &[("name", "\"never closed"), ("a", "b")]);
        expect("; ; junk; =x; a=; b=1", &[("a", ""), ("b", "1")]);
        expect(" charset=x", &[("charset", "x")]);
    }

    #[test]
    fn continuations_are_joined_as_rfc_2231_shows() {
        expect(
            "; access-type=URL; URL*0=\"ftp://\"; URL*1=\"cs.utk.edu/pub/moore/bulk-mailer/bulk-mailer.tar\"",
            &[("access-type", "URL"), ("url", "ftp://cs.utk.edu/pub/moore/bulk-mailer/bulk-mailer.tar")],
        );
        expect(
            "; title*=us-ascii'en-us'This%20is%20%2A%2A%2Afun%2A%2A%2A",
            &[("title*", "us-ascii'en-us'This%20is%20%2A%2A%2Afun%2A%2A%2A")],
        );
        expect(
            "; title*1*=%2A%2A%2Afun%2A%2A%2A%20; title*0*=us-ascii'en'This%20is%20even%20more%20; title*2=\"isn't it!\"",
            &[("title*", "us-ascii'en'This%20is%20even%20more%20%2A%2A%2Afun%2A%2A%2A%20isn%27t it%21")],
        );
        expect("; a*1=x; b*0=1; b*2=3", &[("b", "1")]);
    }
}
