//! Which command is allowed when, and what the server says it can do (RFC 3501 §3, §6 and §7.2.1).

use crate::command::CommandBody;
use crate::encode::{Code, Status};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionState {
    NotAuthenticated,
    Authenticated,
    Selected { read_only: bool },
    Logout,
}

/// What the rules need to know of the connection and the settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// TLS is on.
    pub tls: bool,
    /// TLS could be started.
    pub starttls_available: bool,
    /// Passwords may be sent without TLS.
    pub plaintext_login_allowed: bool,
    pub literal_mode: LiteralMode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LiteralMode {
    /// LITERAL+ (RFC 7888 §4).
    Plus,
    /// LITERAL- (RFC 7888 §5); goes with [`crate::Limits::with_literal_minus`].
    Minus,
}

/// The tagged answer to a command that is not allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub status: Status,
    pub code: Option<Code<'static>>,
    pub text: &'static str,
}

const fn bad(text: &'static str) -> Refusal {
    Refusal { status: Status::Bad, code: None, text }
}

const fn no(code: &'static str, text: &'static str) -> Refusal {
    Refusal { status: Status::No, code: Some(Code::Named(code)), text }
}

const NOT_AUTHENTICATED: Refusal = bad("log in first");
const NOT_SELECTED: Refusal = bad("select a mailbox first");
const READ_ONLY: Refusal = Refusal { status: Status::No, code: None, text: "mailbox is selected read-only" };
const LOGGED_OUT: Refusal = bad("logged out");
/// RFC 5530 §3.
const PRIVACY_REQUIRED: Refusal = no("PRIVACYREQUIRED", "start TLS before logging in");

/// The SASL mechanisms that the session implements.
pub const MECHANISMS: [&str; 2] = ["PLAIN", "LOGIN"];

/// The smallest state that a command needs.
enum Needs {
    Any,
    NotAuthenticated,
    Authenticated,
    Selected,
    /// Selected and not read-only.
    Writable,
}

pub fn allowed(state: SessionState, body: &CommandBody, context: Context) -> Result<(), Refusal> {
    in_state(state, needs(body))?;
    match body {
        CommandBody::StartTls if context.tls => Err(bad("TLS is on already")),
        CommandBody::StartTls if !context.starttls_available => Err(bad("TLS is not available")),
        CommandBody::Authenticate { mechanism, .. } if !MECHANISMS.contains(&mechanism.as_str()) => {
            Err(no("CANNOT", "unsupported authentication mechanism"))
        }
        // Both mechanisms, and LOGIN, send the password itself.
        CommandBody::Login { .. } | CommandBody::Authenticate { .. } if !may_log_in(context) => Err(PRIVACY_REQUIRED),
        _ => Ok(()),
    }
}

/// The rule for APPEND, which comes as an event of its own.
pub fn append_allowed(state: SessionState) -> Result<(), Refusal> {
    in_state(state, Needs::Authenticated)
}

/// RFC 3501 §7.4.1: sequence numbers must not shift under a command that names messages by them.
pub fn expunges_may_be_sent_during(body: &CommandBody) -> bool {
    match body {
        CommandBody::Fetch(fetch) => fetch.uid,
        CommandBody::Store(store) => store.uid,
        CommandBody::Search(search) => search.uid,
        _ => true,
    }
}

/// The capabilities to announce, parted by spaces, without the word CAPABILITY.
pub fn capabilities(state: SessionState, context: Context) -> String {
    let mut names = vec!["IMAP4rev1"];
    names.push(match context.literal_mode {
        LiteralMode::Plus => "LITERAL+",
        LiteralMode::Minus => "LITERAL-",
    });
    names.extend(["SASL-IR", "ID", "ENABLE", "IDLE"]);
    if state == SessionState::NotAuthenticated {
        if !context.tls && context.starttls_available {
            names.push("STARTTLS");
        }
        // RFC 3501 §6.2.3: no AUTH= where LOGIN is disabled for want of TLS.
        if may_log_in(context) {
            names.extend(["AUTH=PLAIN", "AUTH=LOGIN"]);
        } else {
            names.push("LOGINDISABLED");
        }
    } else {
        names.extend([
            "NAMESPACE",
            "UNSELECT",
            "CHILDREN",
            "SPECIAL-USE",
            "CREATE-SPECIAL-USE",
            "UIDPLUS",
            "MOVE",
            "CONDSTORE",
        ]);
    }
    names.join(" ")
}

fn may_log_in(context: Context) -> bool {
    context.tls || context.plaintext_login_allowed
}

fn needs(body: &CommandBody) -> Needs {
    match body {
        CommandBody::Capability | CommandBody::Noop | CommandBody::Logout | CommandBody::Id(_) => Needs::Any,
        CommandBody::StartTls | CommandBody::Login { .. } | CommandBody::Authenticate { .. } => Needs::NotAuthenticated,
        // RFC 5161 §3.1 would have ENABLE before SELECT; other servers take it later too, and clients know.
        CommandBody::Enable(_)
        | CommandBody::Select { .. }
        | CommandBody::Examine { .. }
        | CommandBody::Create { .. }
        | CommandBody::Delete(_)
        | CommandBody::Rename { .. }
        | CommandBody::Subscribe(_)
        | CommandBody::Unsubscribe(_)
        | CommandBody::List(_)
        | CommandBody::Lsub { .. }
        | CommandBody::Namespace
        | CommandBody::Status { .. }
        | CommandBody::Idle => Needs::Authenticated,
        CommandBody::Check
        | CommandBody::Close
        | CommandBody::Unselect
        | CommandBody::Search(_)
        | CommandBody::Fetch(_)
        | CommandBody::Copy { .. } => Needs::Selected,
        CommandBody::Expunge | CommandBody::UidExpunge(_) | CommandBody::Store(_) | CommandBody::Move { .. } => {
            Needs::Writable
        }
    }
}

fn in_state(state: SessionState, needs: Needs) -> Result<(), Refusal> {
    match (state, needs) {
        (SessionState::Logout, _) => Err(LOGGED_OUT),
        (_, Needs::Any) | (SessionState::NotAuthenticated, Needs::NotAuthenticated) => Ok(()),
        (SessionState::NotAuthenticated, _) => Err(NOT_AUTHENTICATED),
        (_, Needs::NotAuthenticated) => Err(bad("already logged in")),
        (_, Needs::Authenticated) | (SessionState::Selected { .. }, Needs::Selected) => Ok(()),
        (SessionState::Authenticated, Needs::Selected | Needs::Writable) => Err(NOT_SELECTED),
        (SessionState::Selected { read_only: true }, Needs::Writable) => Err(READ_ONLY),
        (SessionState::Selected { read_only: false }, Needs::Writable) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Context, LiteralMode, SessionState, allowed, append_allowed, capabilities, expunges_may_be_sent_during,
    };
    use crate::encode::Status;
    use crate::parse;

    const TLS: Context = Context {
        tls: true,
        starttls_available: true,
        plaintext_login_allowed: false,
        literal_mode: LiteralMode::Plus,
    };
    const PLAIN: Context = Context { tls: false, ..TLS };

    fn answer(state: SessionState, command: &str, context: Context) -> Option<Status> {
        let command = parse::command(format!("a {command}").as_bytes()).unwrap();
        allowed(state, &command.body, context).err().map(|refusal| refusal.status)
    }

    #[test]
    fn each_command_has_its_state() {
        let (new, known) = (SessionState::NotAuthenticated, SessionState::Authenticated);
        let (open, peek) = (SessionState::Selected { read_only: false }, SessionState::Selected { read_only: true });
        for (command, answers) in [
            ("NOOP", [None, None, None, None]),
            ("LOGIN a b", [None, Some(Status::Bad), Some(Status::Bad), Some(Status::Bad)]),
            ("AUTHENTICATE PLAIN", [None, Some(Status::Bad), Some(Status::Bad), Some(Status::Bad)]),
            ("SELECT a", [Some(Status::Bad), None, None, None]),
            ("IDLE", [Some(Status::Bad), None, None, None]),
            ("FETCH 1 UID", [Some(Status::Bad), Some(Status::Bad), None, None]),
            ("COPY 1 a", [Some(Status::Bad), Some(Status::Bad), None, None]),
            ("CLOSE", [Some(Status::Bad), Some(Status::Bad), None, None]),
            ("STORE 1 FLAGS ()", [Some(Status::Bad), Some(Status::Bad), None, Some(Status::No)]),
            ("EXPUNGE", [Some(Status::Bad), Some(Status::Bad), None, Some(Status::No)]),
            ("UID EXPUNGE 1", [Some(Status::Bad), Some(Status::Bad), None, Some(Status::No)]),
            ("UID MOVE 1 a", [Some(Status::Bad), Some(Status::Bad), None, Some(Status::No)]),
        ] {
            let got = [new, known, open, peek].map(|state| answer(state, command, TLS));
            assert_eq!(got, answers, "{command}");
            assert_eq!(answer(SessionState::Logout, command, TLS), Some(Status::Bad));
        }
        assert!(append_allowed(new).is_err());
        assert!(append_allowed(known).is_ok() && append_allowed(peek).is_ok());
    }

    #[test]
    fn passwords_wait_for_tls() {
        let new = SessionState::NotAuthenticated;
        assert_eq!(answer(new, "LOGIN a b", PLAIN), Some(Status::No));
        assert_eq!(answer(new, "AUTHENTICATE PLAIN", PLAIN), Some(Status::No));
        assert_eq!(answer(new, "AUTHENTICATE GSSAPI", TLS), Some(Status::No));
        assert_eq!(answer(new, "LOGIN a b", Context { plaintext_login_allowed: true, ..PLAIN }), None);
        assert_eq!(answer(new, "STARTTLS", PLAIN), None);
        assert_eq!(answer(new, "STARTTLS", TLS), Some(Status::Bad));
        assert_eq!(answer(SessionState::Authenticated, "STARTTLS", PLAIN), Some(Status::Bad));
    }

    #[test]
    fn capabilities_tell_how_to_log_in_and_then_what_there_is() {
        let new = SessionState::NotAuthenticated;
        assert_eq!(capabilities(new, PLAIN), "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE STARTTLS LOGINDISABLED");
        assert_eq!(capabilities(new, TLS), "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE AUTH=PLAIN AUTH=LOGIN");
        let after = capabilities(SessionState::Authenticated, Context { literal_mode: LiteralMode::Minus, ..TLS });
        assert!(after.contains(" LITERAL- ") && after.contains(" CONDSTORE") && !after.contains("AUTH="));
    }

    #[test]
    fn expunges_are_held_back_during_commands_by_sequence_number() {
        for (command, may) in [
            ("FETCH 1 UID", false),
            ("STORE 1 FLAGS ()", false),
            ("SEARCH ALL", false),
            ("UID FETCH 1 UID", true),
            ("UID STORE 1 FLAGS ()", true),
            ("UID SEARCH ALL", true),
            ("NOOP", true),
            ("COPY 1 a", true),
        ] {
            let command = parse::command(format!("a {command}").as_bytes()).unwrap();
            assert_eq!(expunges_may_be_sent_during(&command.body), may);
        }
    }
}
