//! A command line's verb and argument (RFC 5321 §4.1). `smtp-proto` parses whole lines too, but takes arguments
//! where there must be none, drops quotes and routes from paths, and knows no address literals; so verbs and paths
//! are read here, and it reads parameters.

/// EHLO names longer than a domain are refused (RFC 5321 §4.5.3.1.2).
const HELO_OCTETS_MAX: usize = 255;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command<'a> {
    Ehlo(&'a str),
    Helo(&'a str),
    /// What follows `MAIL FROM:`.
    Mail(&'a str),
    /// What follows `RCPT TO:`.
    Recipient(&'a str),
    Data,
    Bdat(&'a str),
    Reset,
    Noop,
    Quit,
    Verify,
    Expand,
    Help,
    StartTls,
    Auth(&'a str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CommandError {
    /// 500: not a verb of ours.
    Unknown,
    /// 502: a verb that RFC 5321 or an extension names, which is not built.
    NotImplemented,
    /// 501, with the syntax that was expected.
    Syntax(&'static str),
    /// A web browser or an attack through one: close.
    Http,
}

impl<'a> Command<'a> {
    pub fn parse(line: &'a str) -> Result<Command<'a>, CommandError> {
        // RFC 5321 §4.1.1: trailing white space is tolerated.
        let line = line.trim_end_matches([' ', '\t']);
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let bare = |command, syntax| if argument.is_empty() { Ok(command) } else { Err(CommandError::Syntax(syntax)) };
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => Ok(Command::Ehlo(argument)),
            "HELO" => Ok(Command::Helo(argument)),
            "MAIL" => after(argument, "FROM:").map(Command::Mail).ok_or(CommandError::Syntax(MAIL_SYNTAX)),
            "RCPT" => after(argument, "TO:").map(Command::Recipient).ok_or(CommandError::Syntax(RECIPIENT_SYNTAX)),
            "DATA" => bare(Command::Data, "DATA"),
            "BDAT" => Ok(Command::Bdat(argument)),
            "RSET" => bare(Command::Reset, "RSET"),
            "NOOP" => Ok(Command::Noop),
            "QUIT" => bare(Command::Quit, "QUIT"),
            "VRFY" if argument.is_empty() => Err(CommandError::Syntax("VRFY string")),
            "VRFY" => Ok(Command::Verify),
            "EXPN" if argument.is_empty() => Err(CommandError::Syntax("EXPN string")),
            "EXPN" => Ok(Command::Expand),
            "HELP" => Ok(Command::Help),
            // RFC 3207 §4.
            "STARTTLS" => bare(Command::StartTls, "STARTTLS"),
            "AUTH" => Ok(Command::Auth(argument)),
            "SEND" | "SOML" | "SAML" | "TURN" | "ETRN" | "ATRN" | "BURL" | "XCLIENT" | "XFORWARD" => {
                Err(CommandError::NotImplemented)
            }
            "GET" | "POST" | "HEAD" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "PATCH" | "TRACE" | "PRI" => {
                Err(CommandError::Http)
            }
            _ => Err(CommandError::Unknown),
        }
    }
}

pub(crate) const MAIL_SYNTAX: &str = "MAIL FROM:<reverse-path> [parameters]";
pub(crate) const RECIPIENT_SYNTAX: &str = "RCPT TO:<forward-path> [parameters]";

/// A space after the colon is not in the grammar (RFC 5321 §3.3), but older Microsoft and many home-made clients send it.
fn after<'a>(argument: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_start_matches(' '))
}

/// `( Domain / address-literal )`, but lenient: clients send what they think is their name. Nothing that could hurt a
/// header gets by.
pub(crate) fn helo_name(argument: &str) -> Option<&str> {
    let allowed = |b: u8| b.is_ascii_graphic() && !b"()<>@,;\\\"".contains(&b);
    (!argument.is_empty() && argument.len() <= HELO_OCTETS_MAX && argument.bytes().all(allowed)).then_some(argument)
}

/// `chunk-size [ SP "LAST" ]` (RFC 3030 §2).
pub(crate) fn bdat(argument: &str) -> Option<(u64, bool)> {
    let (size, last) = match argument.split_once(' ') {
        Some((size, word)) => (size, word.trim_start_matches(' ').eq_ignore_ascii_case("LAST").then_some(true)?),
        None => (argument, false),
    };
    Some((crate::parameters::decimal(size)?, last))
}

#[cfg(test)]
mod tests {
    use super::{Command, CommandError, bdat, helo_name};

    #[test]
    fn verbs_are_read_in_any_case_and_arguments_where_they_belong() {
        assert_eq!(Command::parse("ehlo x"), Ok(Command::Ehlo("x")));
        assert_eq!(Command::parse("mail from: <a@b> SIZE=1 "), Ok(Command::Mail("<a@b> SIZE=1")));
        assert_eq!(Command::parse("RCPT TO:<a@b>"), Ok(Command::Recipient("<a@b>")));
        assert_eq!(Command::parse("NOOP ignored"), Ok(Command::Noop));
        for line in [
            "MAIL",
            "MAIL FROM <a@b>",
            "RCPT <a@b>",
            "MAIL TO:<a@b>",
            "MAIL FRÖM:<>",
            "DATA x",
            "RSET x",
            "QUIT x",
            "STARTTLS x",
            "VRFY",
            "EXPN",
        ] {
            assert!(matches!(Command::parse(line), Err(CommandError::Syntax(_))), "{line}");
        }
        for line in ["", " NOOP", "NOOPX", "MAILFROM:<>", "\u{e9}"] {
            assert_eq!(Command::parse(line), Err(CommandError::Unknown), "{line}");
        }
    }

    #[test]
    fn bdat_takes_a_size_of_64_bits_and_last() {
        assert_eq!(bdat("0"), Some((0, false)));
        assert_eq!(bdat("86 last"), Some((86, true)));
        assert_eq!(bdat("10000000000000000000"), Some((10_000_000_000_000_000_000, false)));
        for bad in ["", "x", "-1", "+1", "1x", "1 LASTX", "1 2", "18446744073709551616", "1.0"] {
            assert_eq!(bdat(bad), None, "{bad}");
        }
    }

    #[test]
    fn helo_names_are_short_and_printable() {
        for good in ["mx.example.test", "[192.0.2.1]", "[IPv6:::1]", "under_score", "localhost"] {
            assert_eq!(helo_name(good), Some(good));
        }
        for bad in ["", "a b", "a\tb", "a\u{7f}", "a(b)", "<a>", "\u{e9}", &"a".repeat(256)] {
            assert_eq!(helo_name(bad), None, "{bad}");
        }
    }
}
