//! C:/S: transcripts: what a client sends and what must come back, one conversation a file.
//!
//! ```text
//! # a comment
//! C: a1 LOGIN {user} {password}        sent with CRLF; {name} is replaced
//! S: a1 OK*                            a line that must come; * stands for anything
//! S: * OK [UIDVALIDITY {=validity}]*   {=name} stands for anything, too, and is what {name} means from here on
//! S? * FLAGS*                          lines that may come before the next S:, in any order
//! S! * [UIDVALIDITY {validity}]*       lines that may not come before the next S:, though an S: or S? has them
//! L: {12}abc...                        bytes sent without CRLF; \r \n \0 \xNN are escapes
//! X:                                   the server closes the connection
//! @: {smtp}                            a new connection to that listener takes the place of the present one
//! ```

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use crate::line::LineClient;

pub struct Transcript<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// Plays a transcript against a listener; the error names the line that went wrong.
pub fn play(transcript: &Transcript<'_>, address: SocketAddr, names: &[(&str, &str)]) -> Result<()> {
    let names = names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut player =
        Player { client: LineClient::connect(address)?, names, optional: Vec::new(), forbidden: Vec::new() };
    for (number, line) in transcript.text.lines().enumerate() {
        player.step(line).with_context(|| format!("{} line {}: {line}", transcript.name, number + 1))?;
    }
    Ok(())
}

struct Player {
    client: LineClient,
    /// Given at first, and captured since.
    names: Vec<(String, String)>,
    /// Until the next `S:`.
    optional: Vec<String>,
    forbidden: Vec<String>,
}

impl Player {
    fn step(&mut self, line: &str) -> Result<()> {
        let line = fill(line, &self.names);
        let (kind, text) = match line.split_at_checked(2) {
            Some((kind, text)) => (kind, text.strip_prefix(' ').unwrap_or(text)),
            None => ("#", line.as_str()),
        };
        match kind {
            "C:" => self.client.send(&[unescape(text)?, b"\r\n".to_vec()].concat()),
            "L:" => self.client.send(&unescape(text)?),
            "S?" => {
                self.optional.push(text.to_owned());
                Ok(())
            }
            "S!" => {
                self.forbidden.push(text.to_owned());
                Ok(())
            }
            "S:" => self.expect(text),
            "X:" => match self.client.closes() {
                true => Ok(()),
                false => bail!("the connection stays open"),
            },
            "@:" => {
                self.client = LineClient::connect(text.parse().context("an address")?)?;
                Ok(())
            }
            _ if line.trim().is_empty() || line.starts_with('#') => Ok(()),
            _ => bail!("not a transcript line"),
        }
    }

    fn expect(&mut self, pattern: &str) -> Result<()> {
        loop {
            let got = self.client.line()?;
            let is_like = |pattern: &String| matches(pattern, &got).is_some();
            if self.forbidden.iter().any(is_like) {
                bail!("got {got:?}, which may not come");
            }
            if let Some(captured) = matches(pattern, &got) {
                // The newest value of a name is found first.
                self.names.splice(..0, captured);
                self.optional.clear();
                self.forbidden.clear();
                return Ok(());
            }
            if !self.optional.iter().any(is_like) {
                bail!("got {got:?}");
            }
        }
    }
}

fn fill(line: &str, names: &[(String, String)]) -> String {
    names.iter().fold(line.to_owned(), |line, (name, value)| line.replace(&format!("{{{name}}}"), value))
}

/// A pattern with stars and captures, and a line that it may stand for: what was captured, if it does.
fn matches(pattern: &str, text: &str) -> Option<Vec<(String, String)>> {
    let (first, mut pieces) = split(pattern);
    let mut rest = text.strip_prefix(first)?;
    let mut captured = Vec::new();
    while let Some((name, following)) = pieces.next() {
        let at = if pieces.len() == 0 {
            rest.len().checked_sub(following.len()).filter(|at| rest.is_char_boundary(*at))?
        } else {
            rest.find(following)?
        };
        let (value, after) = rest.split_at(at);
        rest = after.strip_prefix(following)?;
        captured.extend(name.map(|name| (name.to_owned(), value.to_owned())));
    }
    rest.is_empty().then_some(captured)
}

/// The text before the first star or capture; then each one's name, if it has one, and the text behind it.
fn split(pattern: &str) -> (&str, std::vec::IntoIter<(Option<&str>, &str)>) {
    let mut pieces = Vec::new();
    let (first, mut wild) = next_wild(pattern);
    while let Some((name, rest)) = wild {
        let (text, next) = next_wild(rest);
        pieces.push((name, text));
        wild = next;
    }
    (first, pieces.into_iter())
}

/// The text before a star or capture, and the name and the rest if there is one.
fn next_wild(pattern: &str) -> (&str, Option<(Option<&str>, &str)>) {
    let star = pattern.find('*').map(|at| (at, None, &pattern[at + 1..]));
    let capture = pattern.find("{=").and_then(|at| {
        let (name, rest) = pattern[at + 2..].split_once('}')?;
        Some((at, Some(name), rest))
    });
    match [star, capture].into_iter().flatten().min_by_key(|(at, ..)| *at) {
        Some((at, name, rest)) => (&pattern[..at], Some((name, rest))),
        None => (pattern, None),
    }
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'r') => bytes.push(b'\r'),
            Some(b'n') => bytes.push(b'\n'),
            Some(b'0') => bytes.push(0),
            Some(b'\\') => bytes.push(b'\\'),
            Some(b'x') => {
                let digits = [rest.next().unwrap_or(0), rest.next().unwrap_or(0)];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?);
            }
            // A system flag such as \Seen is written as it is.
            Some(other) => bytes.extend([b'\\', other]),
            None => bytes.push(b'\\'),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{fill, matches, unescape};

    fn is(pattern: &str, text: &str) -> bool {
        matches(pattern, text).is_some()
    }

    #[test]
    fn patterns_match_with_stars() {
        assert!(is("a1 OK*", "a1 OK done"));
        assert!(is("* 1 FETCH (*FLAGS (*Seen*)*)", "* 1 FETCH (UID 3 FLAGS (\\Seen))"));
        assert!(is("exact", "exact"));
        assert!(is("", ""));
        assert!(is("a*", "a"));
        assert!(!is("exact", "exactly"));
        assert!(!is("a*b", "acbd"));
        assert!(!is("ab*b", "ab"));
        assert!(!is("a*b*", "a"));
    }

    #[test]
    fn captures_are_what_stands_in_their_place() {
        let captured = matches("* OK [UIDVALIDITY {=validity}] {=text}", "* OK [UIDVALIDITY 17] UIDs valid").unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(captured, [pair("validity", "17"), pair("text", "UIDs valid")]);
        assert_eq!(fill("{validity}{=validity}{12}", &captured), "17{=validity}{12}");
        assert!(!is("{=n} EXISTS", "1 RECENT"));
    }

    #[test]
    fn escapes_give_bytes() {
        assert_eq!(unescape("a\\r\\n\\0\\x7f\\Seen").unwrap(), b"a\r\n\0\x7f\\Seen");
    }
}
