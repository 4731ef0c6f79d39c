//! SASL PLAIN (RFC 4616) as RFC 5034 carries it. Verifies nothing.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};

/// A password that does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub(crate) fn new(text: &str) -> Password {
        Password(text.to_owned())
    }

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
    /// The identity to act as, where it is not the user's own.
    pub authorization: Option<String>,
    pub user: String,
    pub password: Password,
}

/// `message = [authzid] UTF8NUL authcid UTF8NUL passwd`, in strict base64. `None` for anything else.
pub(crate) fn plain(response: &[u8]) -> Option<Credentials> {
    let message = String::from_utf8(STANDARD.decode(response).ok()?).ok()?;
    let mut parts = message.split('\0');
    let (authorization, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || user.is_empty() || password.is_empty() {
        return None;
    }
    let authorization = (!authorization.is_empty() && authorization != user).then(|| authorization.to_owned());
    Some(Credentials { authorization, user: user.to_owned(), password: Password::new(password) })
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn plain_is_strict_base64_of_three_parts() {
        let credentials = plain(b"AGFsaWNlAG9wZW4gc2VzYW1l").unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.expose()), ("alice", "open sesame"));
        assert!(!format!("{credentials:?}").contains("sesame"));
        assert_eq!(plain(b"Ym9iAGFsaWNlAHg=").unwrap().authorization.as_deref(), Some("bob"));
        for bad in [&b""[..], b"!!!!", b"AGFsaWNl", b"AGFsaWNlAA==", b"AABh", b"AGEAYgBj", b"AGFsaWNlAG9wZW4gc2VzYW1l="]
        {
            assert_eq!(plain(bad), None);
        }
    }
}
