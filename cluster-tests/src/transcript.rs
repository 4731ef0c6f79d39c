//! C:/S: transcripts: what a client sends and what must come back, one conversation a file.
//!
//! ```text
//! # a comment
//! C: a1 LOGIN {user} {password}        sent with CRLF; {name} is replaced
//! S: a1 OK*                            a line that must come; * stands for anything
//! S? * FLAGS*                          lines that may come before the next S:, in any order
//! L: {12}abc...                        bytes sent without CRLF; \r \n \0 \xNN are escapes
//! X:                                   the server closes the connection
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
    let mut client = LineClient::connect(address)?;
    let mut optional: Vec<String> = Vec::new();
    for (number, line) in transcript.text.lines().enumerate() {
        let step = step(&mut client, &fill(line, names), &mut optional);
        step.with_context(|| format!("{} line {}: {line}", transcript.name, number + 1))?;
    }
    Ok(())
}

fn fill(line: &str, names: &[(&str, &str)]) -> String {
    names.iter().fold(line.to_owned(), |line, (name, value)| line.replace(&format!("{{{name}}}"), value))
}

fn step(client: &mut LineClient, line: &str, optional: &mut Vec<String>) -> Result<()> {
    let (kind, text) = match line.split_at_checked(2) {
        Some((kind, text)) => (kind, text.strip_prefix(' ').unwrap_or(text)),
        None => ("#", line),
    };
    match kind {
        "C:" => client.send(&[unescape(text)?, b"\r\n".to_vec()].concat()),
        "L:" => client.send(&unescape(text)?),
        "S?" => {
            optional.push(text.to_owned());
            Ok(())
        }
        "S:" => loop {
            let got = client.line()?;
            if matches(text, &got) {
                optional.clear();
                return Ok(());
            }
            if !optional.iter().any(|pattern| matches(pattern, &got)) {
                bail!("got {got:?}");
            }
        },
        "X:" => match client.closes() {
            true => Ok(()),
            false => bail!("the connection stays open"),
        },
        _ if line.trim().is_empty() || line.starts_with('#') => Ok(()),
        _ => bail!("not a transcript line"),
    }
}

/// `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut open = false;
    let parts: Vec<&str> = parts.collect();
    for (i, part) in parts.iter().enumerate() {
        open = true;
        if i + 1 == parts.len() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    open || rest.is_empty()
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
    use super::{matches, unescape};

    #[test]
    fn patterns_match_with_stars() {
        assert!(matches("a1 OK*", "a1 OK done"));
        assert!(matches("* 1 FETCH (*FLAGS (*Seen*)*)", "* 1 FETCH (UID 3 FLAGS (\\Seen))"));
        assert!(matches("exact", "exact"));
        assert!(!matches("exact", "exactly"));
        assert!(!matches("a*b", "acbd"));
    }

    #[test]
    fn escapes_give_bytes() {
        assert_eq!(unescape("a\\r\\n\\0\\x7f\\Seen").unwrap(), b"a\r\n\0\x7f\\Seen");
    }
}
