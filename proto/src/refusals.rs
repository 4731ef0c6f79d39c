//! Certificates that are not taken, here or by the peer: a mistake of whoever gave them out, which nothing else tells of.
//! Logged, but each no more often than somebody reads.

use std::collections::HashMap;
use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, Error};
use tracing::warn;

/// The same refusal is told again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Refusals that are told within that time: strangers may come from many addresses.
const TOLD_MAX: usize = 64;

/// Whose certificate was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Refused {
    Peers,
    Own,
}

/// Logs a connection's error if it is about a certificate. `peer`: its address, without what changes with each connection.
pub(crate) fn tell(peer: &str, error: &io::Error) {
    static TOLD: LazyLock<Mutex<Told>> = LazyLock::new(Mutex::default);
    let Some(refused) = refused(error) else { return };
    let reason = error.to_string();
    let key = (peer.to_owned(), refused, reason.clone());
    if !TOLD.lock().unwrap_or_else(PoisonError::into_inner).note(key, Instant::now()) {
        return;
    }
    match refused {
        Refused::Peers => warn!(peer, reason, "certificate of a peer is refused"),
        Refused::Own => warn!(peer, reason, "own certificate is refused by a peer"),
    }
}

/// A peer whose certificate gives it no role in the cluster.
pub(crate) fn no_role() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "no role in the certificate")
}

/// `None`: the connection broke, or whoever is there does not speak TLS.
fn refused(error: &io::Error) -> Option<Refused> {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Some(Refused::Peers);
    }
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Some(Refused::Peers),
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            // A signature that does not hold (RFC 8446 §6.2): of an authority with the name of ours.
            | AlertDescription::DecryptError,
        ) => Some(Refused::Own),
        _ => None,
    }
}

/// Peers, what was refused of them, and why; when each was told last.
#[derive(Default)]
struct Told(HashMap<(String, Refused, String), Instant>);

impl Told {
    /// True: it is to be told now.
    fn note(&mut self, refusal: (String, Refused, String), now: Instant) -> bool {
        self.0.retain(|_, last| now.saturating_duration_since(*last) < AGAIN_AFTER);
        if self.0.len() >= TOLD_MAX || self.0.contains_key(&refusal) {
            return false;
        }
        self.0.insert(refusal, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::{Duration, Instant};

    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

    use super::{AGAIN_AFTER, Refused, TOLD_MAX, Told, no_role, refused};

    fn of_tls(error: Error) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn what_is_about_a_certificate_is_known_and_what_is_not_is_nothing_to_tell() {
        let unknown = CertificateError::UnknownIssuer;
        assert_eq!(refused(&of_tls(Error::InvalidCertificate(unknown))), Some(Refused::Peers));
        assert_eq!(refused(&of_tls(Error::NoCertificatesPresented)), Some(Refused::Peers));
        assert_eq!(refused(&no_role()), Some(Refused::Peers));
        for alert in [AlertDescription::UnknownCA, AlertDescription::DecryptError] {
            assert_eq!(refused(&of_tls(Error::AlertReceived(alert))), Some(Refused::Own));
        }
        for other in [
            of_tls(Error::AlertReceived(AlertDescription::CloseNotify)),
            of_tls(Error::InvalidMessage(InvalidMessage::InvalidCcs)),
            io::ErrorKind::ConnectionReset.into(),
            io::Error::new(io::ErrorKind::TimedOut, "too late"),
        ] {
            assert_eq!(refused(&other), None, "{other}");
        }
    }

    #[test]
    fn a_refusal_is_told_once_in_a_while_and_of_many_no_more_than_a_bound() {
        let (mut told, start) = (Told::default(), Instant::now());
        let of = |peer: usize| (format!("192.0.2.{peer}"), Refused::Peers, "why".to_owned());
        assert!(told.note(of(0), start) && !told.note(of(0), start));
        assert!(told.note((of(0).0, Refused::Own, "why".to_owned()), start), "that is another one");
        let many = (1..1_000).filter(|peer| told.note(of(*peer), start + Duration::from_secs(1))).count();
        assert_eq!(many, TOLD_MAX - 2);
        assert!(!told.note(of(0), start + AGAIN_AFTER - Duration::from_millis(1)));
        assert!(told.note(of(0), start + AGAIN_AFTER));
    }
}
