//! Trace headers (RFC 5321 §4.4): the Received field that each hop adds, and the Return-Path of final delivery.

use std::{fmt, net::IpAddr};

use crate::{date::rfc5322_date, path::Mailbox};

/// The line is folded before it would pass this (RFC 5322 §2.1.1: 78 without CRLF).
const LINE_OCTETS_WANTED: usize = 78;

/// How the message came (RFC 3848, RFC 6531 §4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Protocol {
    /// EHLO rather than HELO.
    pub extended: bool,
    pub tls: bool,
    pub authenticated: bool,
    pub smtputf8: bool,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.smtputf8, self.extended || self.tls || self.authenticated) {
            (true, _) => "UTF8SMTP",
            (false, true) => "ESMTP",
            (false, false) => "SMTP",
        })?;
        f.write_str(if self.tls { "S" } else { "" })?;
        f.write_str(if self.authenticated { "A" } else { "" })
    }
}

/// What a Received field tells. Texts are sanitised when rendered.
#[derive(Clone, Debug)]
pub struct Trace<'a> {
    /// The client's argument to EHLO or HELO.
    pub helo: &'a str,
    pub client_ip: IpAddr,
    /// The client's verified name, from reverse DNS.
    pub client_name: Option<&'a str>,
    /// Our host name.
    pub by: &'a str,
    pub with: Protocol,
    /// Our id of the mail transaction.
    pub id: &'a str,
    /// Only for a single recipient: others must not learn of each other (RFC 5321 §7.6).
    pub for_recipient: Option<&'a str>,
    pub date_unix_s: i64,
}

/// `Received: …` with its final CRLF, folded below 78 octets where the words allow.
///
/// ```text
/// Stamp = From-domain By-domain Opt-info [CFWS] ";" FWS date-time
/// ```
pub fn received_header(trace: &Trace<'_>) -> String {
    let address = match trace.client_ip.to_canonical() {
        IpAddr::V4(address) => format!("[{address}]"),
        IpAddr::V6(address) => format!("[IPv6:{address}]"),
    };
    let client = match trace.client_name.map(word) {
        Some(name) => format!("({name} {address})"),
        None => format!("({address})"),
    };
    let mut words = vec!["from".to_owned(), word(trace.helo), client, "by".to_owned(), word(trace.by)];
    words.extend(["with".to_owned(), trace.with.to_string(), "id".to_owned(), word(trace.id)]);
    if let Some(recipient) = trace.for_recipient {
        words.extend(["for".to_owned(), format!("<{}>", path_text(recipient))]);
    }
    if let Some(last) = words.last_mut() {
        last.push(';');
    }
    words.push(rfc5322_date(trace.date_unix_s));
    fold("Received:", &words)
}

/// `Return-Path: <…>` with its final CRLF; `None` is the null reverse-path.
pub fn return_path_header(reverse_path: Option<&Mailbox>) -> String {
    let path = reverse_path.map(Mailbox::to_string).unwrap_or_default();
    format!("Return-Path: <{}>\r\n", path_text(&path))
}

/// Words that belong together (`by HOST`) are kept on a line where that is possible.
fn fold(name: &str, words: &[String]) -> String {
    let (mut out, mut line) = (String::new(), name.to_owned());
    for word in words {
        if line.len() + 1 + word.len() > LINE_OCTETS_WANTED && line != name {
            out.push_str(&line);
            out.push_str("\r\n");
            // RFC 5322 §2.2.3: the white space that follows is part of the folding.
            line = "\t".to_owned();
            line.push_str(word);
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    out.push_str(&line);
    out.push_str("\r\n");
    out
}

/// A host name or an id: what could end the word, open a comment or end the header becomes `?`.
fn word(text: &str) -> String {
    let allowed =
        |c: char| (c.is_ascii_graphic() && !"()<>@,;\\\"".contains(c)) || (!c.is_ascii() && c.is_alphanumeric());
    let word: String = text.chars().take(255).map(|c| if allowed(c) { c } else { '?' }).collect();
    if word.is_empty() { "unknown".to_owned() } else { word }
}

fn path_text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{Protocol, Trace, received_header, return_path_header};

    fn trace() -> Trace<'static> {
        Trace {
            helo: "mx.example.org",
            client_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            client_name: Some("mail.example.org"),
            by: "router1.example.test",
            with: Protocol { extended: true, tls: true, ..Protocol::default() },
            id: "01JD",
            for_recipient: Some("alice@example.test"),
            date_unix_s: 1_795_476_105,
        }
    }

    #[test]
    fn a_received_field_tells_from_by_with_id_for_and_when() {
        assert_eq!(
            received_header(&trace()),
            "Received: from mx.example.org (mail.example.org [192.0.2.1]) by\r\n\
             \trouter1.example.test with ESMTPS id 01JD for <alice@example.test>;\r\n\
             \tMon, 23 Nov 2026 23:21:45 +0000\r\n"
        );
        let mapped = Trace {
            client_ip: IpAddr::V6(Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped()),
            client_name: None,
            for_recipient: None,
            ..trace()
        };
        assert!(received_header(&mapped).contains("([192.0.2.9])"));
        let six = Trace { client_ip: IpAddr::V6(Ipv6Addr::LOCALHOST), ..mapped };
        assert!(received_header(&six).contains("([IPv6:::1])"));
    }

    #[test]
    fn nothing_hostile_reaches_a_header() {
        let hostile = "x\r\nEvil: 1\0(;)\u{85}\u{2028}";
        let header = received_header(&Trace {
            helo: hostile,
            client_name: Some(hostile),
            id: hostile,
            for_recipient: Some("a\r\nEvil: 1@x"),
            ..trace()
        });
        assert_eq!(header.matches("\r\n").count(), header.matches("\r\n\t").count() + 1);
        assert!(!header.replace("\r\n", "").chars().any(|c| c.is_control() && c != '\t'));
        assert_eq!(header.matches(';').count(), 1);
    }

    #[test]
    fn lines_stay_below_78_octets_where_words_allow() {
        let long = "a".repeat(60);
        let header = received_header(&Trace { helo: &long, client_name: Some(&long), id: &long, ..trace() });
        for line in header.split("\r\n") {
            assert!(line.len() <= 78 || line.split(' ').count() <= 3, "{line}");
        }
    }

    #[test]
    fn protocols_are_named_as_registered() {
        let name =
            |extended, tls, authenticated, smtputf8| Protocol { extended, tls, authenticated, smtputf8 }.to_string();
        assert_eq!(name(false, false, false, false), "SMTP");
        assert_eq!(name(true, false, false, false), "ESMTP");
        assert_eq!(name(true, true, true, false), "ESMTPSA");
        assert_eq!(name(true, true, false, true), "UTF8SMTPS");
        assert_eq!(name(true, false, true, true), "UTF8SMTPA");
    }

    #[test]
    fn the_null_reverse_path_is_an_empty_return_path() {
        assert_eq!(return_path_header(None), "Return-Path: <>\r\n");
    }
}
