//! SASL exchanges of AUTH (RFC 4954): PLAIN (RFC 4616) and LOGIN, as values. Verifies nothing.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    Plain,
    /// Undocumented but for an expired draft; Outlook needs it.
    Login,
}

impl Mechanism {
    pub(crate) fn parse(name: &str) -> Option<Mechanism> {
        [(Mechanism::Plain, "PLAIN"), (Mechanism::Login, "LOGIN")]
            .into_iter()
            .find(|(_, known)| known.eq_ignore_ascii_case(name))
            .map(|(mechanism, _)| mechanism)
    }
}

/// A password that does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Who wants to log in, and how that is proved. Neither name nor password is empty or holds a NUL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    pub mechanism: Mechanism,
    /// The identity to act as, where it is not the user's own.
    pub authorization: Option<String>,
    pub user: String,
    pub password: Password,
}

/// Strict base64 of text, as each response is. `None` for anything else.
pub(crate) fn decode(response: &[u8]) -> Option<String> {
    String::from_utf8(STANDARD.decode(response).ok()?).ok()
}

/// `message = [authzid] UTF8NUL authcid UTF8NUL passwd`
pub(crate) fn plain(message: &str) -> Option<Credentials> {
    let mut parts = message.split('\0');
    let (authorization, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let authorization = (!authorization.is_empty() && authorization != user).then(|| authorization.to_owned());
    credentials(Mechanism::Plain, authorization, user, password)
}

pub(crate) fn login(user: &str, password: &str) -> Option<Credentials> {
    credentials(Mechanism::Login, None, user, password)
}

fn credentials(mechanism: Mechanism, authorization: Option<String>, user: &str, password: &str) -> Option<Credentials> {
    if user.is_empty() || password.is_empty() || user.contains('\0') || password.contains('\0') {
        return None;
    }
    Some(Credentials { mechanism, authorization, user: user.to_owned(), password: Password(password.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::{decode, plain};

    #[test]
    fn plain_has_three_parts_and_the_last_two_are_not_empty() {
        let credentials = plain("\0alice\0open sesame").unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.expose()), ("alice", "open sesame"));
        assert_eq!(plain("alice\0alice\0x").unwrap().authorization, None);
        assert_eq!(plain("bob\0alice\0x").unwrap().authorization.as_deref(), Some("bob"));
        for bad in ["", "a", "a\0b", "\0\0x", "\0a\0", "\0a\0b\0c"] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_password_does_not_show_itself() {
        let shown = format!("{:?}", plain("\0alice\0sesame").unwrap());
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn responses_are_strict_base64() {
        assert_eq!(decode(b"YQ==").as_deref(), Some("a"));
        for bad in [&b"YQ"[..], b"Y Q=", b"!!!!", b"/w==", b"YQ==YQ=="] {
            assert_eq!(decode(bad), None);
        }
    }
}
