//! A command line's keyword and arguments (RFC 1939 §3 and its extensions).

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command<'a> {
    User(&'a str),
    Pass(&'a str),
    Apop,
    Auth { mechanism: &'a str, initial: Option<&'a str> },
    StartTls,
    Capabilities,
    Stat,
    List(Option<usize>),
    Uidl(Option<usize>),
    Retrieve(usize),
    Top { number: usize, lines: u64 },
    Delete(usize),
    Noop,
    Last,
    Reset,
    Quit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CommandError {
    Unknown,
    /// With the syntax that was expected.
    Syntax(&'static str),
    /// A web browser or an attack through one: close.
    Http,
}

impl<'a> Command<'a> {
    pub fn parse(line: &'a str) -> Result<Command<'a>, CommandError> {
        let (keyword, argument) = line.split_once(' ').unwrap_or((line, ""));
        let bare =
            |command, syntax| if argument.trim().is_empty() { Ok(command) } else { Err(CommandError::Syntax(syntax)) };
        let one = |syntax| message_number(argument.trim()).ok_or(CommandError::Syntax(syntax));
        let optional = |syntax| if argument.trim().is_empty() { Ok(None) } else { one(syntax).map(Some) };
        match keyword.to_ascii_uppercase().as_str() {
            "USER" => some_text(argument.trim()).map(Command::User).ok_or(CommandError::Syntax("USER name")),
            // RFC 1939 §7: spaces belong to the password, at its ends too.
            "PASS" => some_text(argument).map(Command::Pass).ok_or(CommandError::Syntax("PASS string")),
            "APOP" => Ok(Command::Apop),
            "AUTH" => auth(argument.trim_end()),
            "STLS" => bare(Command::StartTls, "STLS"),
            "CAPA" => bare(Command::Capabilities, "CAPA"),
            "STAT" => bare(Command::Stat, "STAT"),
            "LIST" => optional("LIST [msg]").map(Command::List),
            "UIDL" => optional("UIDL [msg]").map(Command::Uidl),
            "RETR" => one("RETR msg").map(Command::Retrieve),
            "TOP" => top(argument.trim()).ok_or(CommandError::Syntax("TOP msg n")),
            "DELE" => one("DELE msg").map(Command::Delete),
            "NOOP" => bare(Command::Noop, "NOOP"),
            "LAST" => bare(Command::Last, "LAST"),
            "RSET" => bare(Command::Reset, "RSET"),
            "QUIT" => bare(Command::Quit, "QUIT"),
            "GET" | "POST" | "HEAD" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "PATCH" | "TRACE" | "PRI" => {
                Err(CommandError::Http)
            }
            _ => Err(CommandError::Unknown),
        }
    }
}

fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Digits alone; a number too large for any maildrop is one that is not there, told the same way.
fn message_number(text: &str) -> Option<usize> {
    decimal(text)?.try_into().ok().filter(|number| *number > 0)
}

fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn top(argument: &str) -> Option<Command<'_>> {
    let (number, lines) = argument.split_once(' ')?;
    Some(Command::Top { number: message_number(number)?, lines: decimal(lines.trim_start())? })
}

/// `AUTH mechanism [initial-response]` (RFC 5034 §4).
fn auth(argument: &str) -> Result<Command<'_>, CommandError> {
    let (mechanism, initial) = match argument.split_once(' ') {
        Some((mechanism, initial)) => (mechanism, Some(initial)),
        None => (argument, None),
    };
    if mechanism.is_empty() {
        return Err(CommandError::Syntax("AUTH mechanism [initial-response]"));
    }
    Ok(Command::Auth { mechanism, initial })
}

#[cfg(test)]
mod tests {
    use super::{Command, CommandError};

    #[test]
    fn commands_are_read_in_any_case() {
        assert_eq!(Command::parse("user alice"), Ok(Command::User("alice")));
        assert_eq!(Command::parse("PASS  two  words "), Ok(Command::Pass(" two  words ")));
        assert_eq!(Command::parse("Top 1 0"), Ok(Command::Top { number: 1, lines: 0 }));
        assert_eq!(Command::parse("LIST"), Ok(Command::List(None)));
        assert_eq!(Command::parse("UIDL 007"), Ok(Command::Uidl(Some(7))));
        assert_eq!(Command::parse("AUTH PLAIN ="), Ok(Command::Auth { mechanism: "PLAIN", initial: Some("=") }));
    }

    #[test]
    fn numbers_are_positive_and_arguments_as_many_as_wanted() {
        for line in [
            "RETR",
            "RETR 0",
            "RETR -1",
            "RETR +1",
            "RETR 18446744073709551616",
            "RETR one",
            "RETR 1 2",
            "DELE",
            "DELE x",
            "LIST 0",
            "LIST 1 2",
            "UIDL x",
            "TOP 1",
            "TOP 1 -1",
            "TOP 0 1",
            "TOP 1 x",
            "TOP 1 2 3",
            "TOP",
            "USER",
            "PASS",
            "USER  ",
            "STAT 1",
            "NOOP x",
            "RSET x",
            "QUIT x",
            "AUTH",
            "STLS x",
        ] {
            assert!(matches!(Command::parse(line), Err(CommandError::Syntax(_))), "{line}");
        }
        for line in ["", " STAT", "XYZ", "STATX"] {
            assert_eq!(Command::parse(line), Err(CommandError::Unknown), "{line}");
        }
    }
}
