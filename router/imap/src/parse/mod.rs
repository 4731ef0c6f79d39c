//! From the octets of one whole command to its value. Strict where RFC 3501 §9 is, but for two things that clients
//! are known to send: spaces before the closing CRLF, and 8-bit octets in quoted strings (never in mailbox names).

mod append;
mod cursor;
mod fetch;
mod mailbox;
mod message;
mod search;

pub(crate) use append::{AppendPrefix, append_prefix};
use cursor::Cursor;

use crate::command::{Command, CommandBody, Secret, Tag};

/// Why a command was refused; fit for the text of a BAD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bad(pub &'static str);

pub(crate) type Parsed<T> = Result<T, Bad>;

/// Field-value pairs in one ID command (RFC 2971 §3.3).
const ID_FIELDS_MAX: usize = 30;
const ID_FIELD_OCTETS_MAX: usize = 30;
const ID_VALUE_OCTETS_MAX: usize = 1024;

const NAMES: [&str; 31] = [
    "CAPABILITY",
    "NOOP",
    "LOGOUT",
    "ID",
    "STARTTLS",
    "LOGIN",
    "AUTHENTICATE",
    "ENABLE",
    "SELECT",
    "EXAMINE",
    "CREATE",
    "DELETE",
    "RENAME",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "LIST",
    "LSUB",
    "NAMESPACE",
    "STATUS",
    "APPEND",
    "IDLE",
    "CHECK",
    "CLOSE",
    "UNSELECT",
    "EXPUNGE",
    "SEARCH",
    "FETCH",
    "STORE",
    "COPY",
    "MOVE",
    "UID",
];

/// The tag that stands at the beginning of a line, if a valid one does.
pub(crate) fn tag_of(line: &[u8]) -> Option<Tag> {
    let word = line.split(|b| matches!(b, b' ' | b'\r' | b'\n')).next()?;
    Tag::parse(word)
}

/// Whether the beginning of a command is worth the rest of it: a tag and the name of a command.
pub(crate) fn head(text: &[u8]) -> Parsed<Tag> {
    let mut c = Cursor::new(text);
    let (tag, name) = tag_and_name(&mut c)?;
    if NAMES.contains(&name.as_str()) { Ok(tag) } else { Err(UNKNOWN) }
}

const UNKNOWN: Bad = Bad("unknown command");

/// A whole command without the CRLF that ends it, its literals where they stood.
pub(crate) fn command(text: &[u8]) -> Parsed<Command> {
    let mut c = Cursor::new(text);
    let (tag, name) = tag_and_name(&mut c)?;
    let body = body(&mut c, &name)?;
    c.end()?;
    Ok(Command { tag, body })
}

/// `command = tag SP (command-any / ...)`. The name comes back in capitals.
fn tag_and_name(c: &mut Cursor<'_>) -> Parsed<(Tag, String)> {
    if c.at_end() {
        return Err(Bad("empty line"));
    }
    let tag = Tag::parse(c.until_space()).ok_or(Bad("invalid tag"))?;
    if c.at_end() {
        return Err(Bad("no command"));
    }
    c.space()?;
    Ok((tag, c.word()?))
}

fn body(c: &mut Cursor<'_>, name: &str) -> Parsed<CommandBody> {
    let body = match name {
        "CAPABILITY" => CommandBody::Capability,
        "NOOP" => CommandBody::Noop,
        "LOGOUT" => CommandBody::Logout,
        "STARTTLS" => CommandBody::StartTls,
        "NAMESPACE" => CommandBody::Namespace,
        "IDLE" => CommandBody::Idle,
        "CHECK" => CommandBody::Check,
        "CLOSE" => CommandBody::Close,
        "UNSELECT" => CommandBody::Unselect,
        "EXPUNGE" => CommandBody::Expunge,
        _ => {
            if !NAMES.contains(&name) {
                return Err(UNKNOWN);
            }
            c.space().map_err(|_| Bad("missing arguments"))?;
            return body_with_arguments(c, name);
        }
    };
    Ok(body)
}

fn body_with_arguments(c: &mut Cursor<'_>, name: &str) -> Parsed<CommandBody> {
    match name {
        "ID" => id(c),
        "LOGIN" => login(c),
        "AUTHENTICATE" => authenticate(c),
        "ENABLE" => enable(c),
        "SELECT" => mailbox::select(c).map(|(mailbox, condstore)| CommandBody::Select { mailbox, condstore }),
        "EXAMINE" => mailbox::select(c).map(|(mailbox, condstore)| CommandBody::Examine { mailbox, condstore }),
        "CREATE" => mailbox::create(c),
        "DELETE" => c.mailbox().map(CommandBody::Delete),
        "RENAME" => mailbox::rename(c),
        "SUBSCRIBE" => c.mailbox().map(CommandBody::Subscribe),
        "UNSUBSCRIBE" => c.mailbox().map(CommandBody::Unsubscribe),
        "LIST" => mailbox::list(c),
        "LSUB" => mailbox::lsub(c),
        "STATUS" => mailbox::status(c),
        // With its literal in place APPEND never gets here.
        "APPEND" => Err(Bad("APPEND needs a literal")),
        "UID" => {
            let name = c.word()?;
            c.space().map_err(|_| Bad("missing arguments"))?;
            if name == "EXPUNGE" {
                // RFC 4315 §2.1.
                return c.sequence_set().map(CommandBody::UidExpunge);
            }
            on_messages(c, &name, true)
        }
        _ => on_messages(c, name, false),
    }
}

fn on_messages(c: &mut Cursor<'_>, name: &str, uid: bool) -> Parsed<CommandBody> {
    match name {
        "SEARCH" => search::search(c, uid).map(CommandBody::Search),
        "FETCH" => fetch::fetch(c, uid).map(CommandBody::Fetch),
        "STORE" => message::store(c, uid).map(CommandBody::Store),
        "COPY" => message::set_and_mailbox(c).map(|(set, mailbox)| CommandBody::Copy { uid, set, mailbox }),
        // RFC 6851 §3.
        "MOVE" => message::set_and_mailbox(c).map(|(set, mailbox)| CommandBody::Move { uid, set, mailbox }),
        _ => Err(UNKNOWN),
    }
}

/// `login = "LOGIN" SP userid SP password`
fn login(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let user = c.astring()?.into_owned();
    c.space()?;
    Ok(CommandBody::Login { user, password: Secret::new(c.astring()?.into_owned()) })
}

/// `authenticate = "AUTHENTICATE" SP auth-type [SP initial-resp]`, `initial-resp = (base64 / "=")` (RFC 4959 §6).
fn authenticate(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let mechanism = c.word()?;
    let mut initial = None;
    if c.take(b' ') && !c.at_end() {
        let text = c.until_space();
        let octets = if text == b"=" { Some(Vec::new()) } else { base64(text) };
        initial = Some(Secret::new(octets.ok_or(Bad("invalid base64"))?));
    }
    Ok(CommandBody::Authenticate { mechanism, initial })
}

/// Canonical base64 with its padding (RFC 4648 §4).
pub(crate) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// `enable = "ENABLE" 1*(SP capability)` (RFC 5161 §4).
fn enable(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let mut names = vec![c.word()?];
    while c.another()? {
        names.push(c.word()?);
    }
    Ok(CommandBody::Enable(names))
}

/// `id = "ID" SP id-params-list`, `id-params-list = "(" *(string SP nstring) ")" / nil` (RFC 2971 §4).
fn id(c: &mut Cursor<'_>) -> Parsed<CommandBody> {
    let mut fields = Vec::new();
    if c.take(b'(') {
        while !c.take(b')') {
            if !fields.is_empty() {
                c.space()?;
            }
            if fields.len() == ID_FIELDS_MAX {
                return Err(Bad("too many ID fields"));
            }
            let field = c.string()?;
            c.space()?;
            let value = c.nstring()?;
            if field.len() > ID_FIELD_OCTETS_MAX || value.as_ref().is_some_and(|v| v.len() > ID_VALUE_OCTETS_MAX) {
                return Err(Bad("ID field too long"));
            }
            let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
            fields.push((text(&field), value.map(|v| text(&v))));
        }
    } else if c.word()? != "NIL" {
        return Err(Bad("expected a list or NIL"));
    }
    Ok(CommandBody::Id(fields))
}
