//! The parameters of MAIL and RCPT (RFC 5321 §4.1.2):
//!
//! ```text
//! esmtp-param    = esmtp-keyword [ "=" esmtp-value ]
//! esmtp-keyword  = ( ALPHA / DIGIT ) *( ALPHA / DIGIT / "-" )
//! esmtp-value    = 1*( %d33-60 / %d62-126 / UTF8-non-ascii )
//! ```
//!
//! `smtp-proto` reads the values. A gate before it is stricter than it is: only what EHLO announced, nothing twice,
//! and SIZE within 64 bits (it wraps around on more digits).

use std::borrow::Cow;

use smtp_proto::{Error, MAIL_BODY_8BITMIME, MAIL_BODY_BINARYMIME, MAIL_SMTPUTF8, request::parser::Rfc5321Parser};

/// The body's encoding as MAIL declares it (RFC 6152).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Body {
    /// Declared, or by default.
    #[default]
    SevenBit,
    EightBitMime,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct MailParameters {
    /// RFC 1870: the sender's estimate in octets.
    pub size: Option<u64>,
    pub body: Body,
    /// RFC 6531.
    pub smtputf8: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ParameterError {
    /// Not offered, or not known: 555 5.5.4 (RFC 5321 §4.1.1.11).
    Unknown,
    /// Known, but malformed or given twice: 501 5.5.4.
    Invalid,
}

/// `text` is what follows the path's `>`. `auth_offered` admits AUTH= (RFC 4954 §5), whose value is not used.
pub(crate) fn mail_parameters(text: &str, auth_offered: bool) -> Result<MailParameters, ParameterError> {
    let mut parameters = MailParameters::default();
    let mut seen: Vec<&str> = Vec::new();
    for (keyword, value) in split(text)? {
        let offered = ["SIZE", "BODY", "SMTPUTF8"].iter().any(|known| known.eq_ignore_ascii_case(keyword))
            || auth_offered && keyword.eq_ignore_ascii_case("AUTH");
        if !offered {
            return Err(ParameterError::Unknown);
        }
        if seen.iter().any(|earlier| earlier.eq_ignore_ascii_case(keyword)) {
            return Err(ParameterError::Invalid);
        }
        seen.push(keyword);
        if keyword.eq_ignore_ascii_case("SIZE") {
            parameters.size = Some(value.and_then(decimal).ok_or(ParameterError::Invalid)?);
        }
        if keyword.eq_ignore_ascii_case("SMTPUTF8") && value.is_some() {
            return Err(ParameterError::Invalid);
        }
    }
    let flags = value_flags(text)?;
    if flags & MAIL_BODY_BINARYMIME != 0 {
        // Not announced: a body of lines is what everything behind us expects (RFC 3030 §3).
        return Err(ParameterError::Unknown);
    }
    if flags & MAIL_BODY_8BITMIME != 0 {
        parameters.body = Body::EightBitMime;
    }
    parameters.smtputf8 = flags & MAIL_SMTPUTF8 != 0;
    Ok(parameters)
}

/// RCPT takes none: DSN is not announced.
pub(crate) fn recipient_parameters(text: &str) -> Result<(), ParameterError> {
    if split(text)?.is_empty() { Ok(()) } else { Err(ParameterError::Unknown) }
}

/// 1 to 20 digits that fit 64 bits (RFC 1870 §5, RFC 3030 §2).
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let digits = (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// `MAIL_…` bits.
fn value_flags(text: &str) -> Result<u64, ParameterError> {
    // The parser wants the line's end.
    let line = format!("{text}\n");
    match Rfc5321Parser::new(&mut line.as_bytes().iter()).mail_from_parameters(Cow::Borrowed("")) {
        Ok(values) => Ok(values.flags),
        Err(Error::UnsupportedParameter { .. }) => Err(ParameterError::Unknown),
        Err(_) => Err(ParameterError::Invalid),
    }
}

fn split(text: &str) -> Result<Vec<(&str, Option<&str>)>, ParameterError> {
    // `MAIL FROM:<a@x>SIZE=1`: the space is not optional.
    if !text.is_empty() && !text.starts_with(' ') {
        return Err(ParameterError::Invalid);
    }
    text.split(' ').filter(|parameter| !parameter.is_empty()).map(keyword_and_value).collect()
}

fn keyword_and_value(parameter: &str) -> Result<(&str, Option<&str>), ParameterError> {
    let (keyword, value) = match parameter.split_once('=') {
        Some((keyword, value)) => (keyword, Some(value)),
        None => (parameter, None),
    };
    let keyword_ok = keyword.starts_with(|c: char| c.is_ascii_alphanumeric())
        && keyword.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let value_ok = value.is_none_or(|value| {
        !value.is_empty()
            && value.chars().all(|c| (c.is_ascii_graphic() && c != '=') || (!c.is_ascii() && !c.is_control()))
    });
    if keyword_ok && value_ok { Ok((keyword, value)) } else { Err(ParameterError::Invalid) }
}

#[cfg(test)]
mod tests {
    use super::{Body, MailParameters, ParameterError, mail_parameters, recipient_parameters};

    #[test]
    fn announced_parameters_are_read_in_any_case_and_order() {
        let expected = MailParameters { size: Some(10), body: Body::EightBitMime, smtputf8: true };
        for text in [" SIZE=10 BODY=8BITMIME SMTPUTF8", "  smtputf8 body=8bitmime  size=0010 "] {
            assert_eq!(mail_parameters(text, false), Ok(expected.clone()));
        }
        assert_eq!(mail_parameters("", false), Ok(MailParameters::default()));
        assert_eq!(mail_parameters(" BODY=7BIT", false), Ok(MailParameters::default()));
        let max = MailParameters { size: Some(u64::MAX - 1), ..MailParameters::default() };
        assert_eq!(mail_parameters(" SIZE=18446744073709551614", false), Ok(max));
        assert_eq!(mail_parameters(" AUTH=<>", true), Ok(MailParameters::default()));
    }

    #[test]
    fn malformed_values_are_invalid_and_other_parameters_unknown() {
        for text in [
            " SIZE=abc",
            " SIZE=18446744073709551616",
            " SIZE=-1",
            " SIZE=+1",
            " SIZE=",
            " SIZE",
            " SIZE=1 SIZE=1",
            " BODY=JUNK",
            " SMTPUTF8=1",
            " =1",
            " S\u{7f}=1",
            "SIZE=1",
            " SIZE=99999999999999999999999999999999999999",
            " BODY=7BIT body=8BITMIME",
            " SIZE= 1",
        ] {
            assert_eq!(mail_parameters(text, false), Err(ParameterError::Invalid), "{text}");
        }
        for text in
            [" X=Y", " RET=FULL", " ENVID=x", " AUTH=<>", " REQUIRETLS", " BODY", " BODY=BINARYMIME", " HOLDFOR=1"]
        {
            assert_eq!(mail_parameters(text, false), Err(ParameterError::Unknown), "{text}");
        }
        assert_eq!(recipient_parameters(" NOTIFY=NEVER"), Err(ParameterError::Unknown));
        assert_eq!(recipient_parameters(" "), Ok(()));
    }
}
