//! From when to when a process's own certificate holds: before and after, no peer takes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// Who looks after a cluster is told so long before a certificate ends.
pub const CERTIFICATE_ENDS_SOON: Duration = Duration::from_secs(30 * 86_400);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    from: ASN1Time,
    until: ASN1Time,
}

impl Validity {
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Validity> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        Some(Validity { from: validity.not_before, until: validity.not_after })
    }

    /// Its last second, in seconds since 1970.
    pub fn until_unix_s(&self) -> i64 {
        self.until.timestamp()
    }

    /// Refuses one that does not hold at this time.
    pub fn check(&self, now: SystemTime) -> Result<(), String> {
        let now = unix_s(now);
        if now < self.from.timestamp() {
            return Err(format!("the certificate does not hold before {}: is the clock right?", self.from));
        }
        if now > self.until.timestamp() {
            return Err(format!("the certificate has ended, at {}", self.until));
        }
        Ok(())
    }

    pub fn ends_soon(&self, now: SystemTime) -> bool {
        self.until.timestamp().saturating_sub(unix_s(now)) < CERTIFICATE_ENDS_SOON.as_secs() as i64
    }
}

/// 0 for what lies before 1970.
fn unix_s(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use x509_parser::time::ASN1Time;

    use super::{CERTIFICATE_ENDS_SOON, Validity};

    #[test]
    fn a_certificate_holds_from_its_first_second_to_its_last_and_is_told_of_a_month_before() {
        let at = |unix_s: i64| ASN1Time::from_timestamp(unix_s).unwrap();
        let (from, until) = (1_700_000_000, 1_900_000_000);
        let validity = Validity { from: at(from), until: at(until) };
        let when = |unix_s: i64| UNIX_EPOCH + Duration::from_secs(unix_s as u64);
        let said = |unix_s: i64| validity.check(when(unix_s)).err().unwrap_or_default();
        assert_eq!([said(from), said(until)], ["", ""]);
        assert!(said(from - 1).starts_with("the certificate does not hold before Nov 14"), "{}", said(from - 1));
        assert!(said(until + 1).starts_with("the certificate has ended, at Mar 17"), "{}", said(until + 1));
        let month = CERTIFICATE_ENDS_SOON.as_secs() as i64;
        assert!(!validity.ends_soon(when(until - month)) && validity.ends_soon(when(until - month + 1)));
    }
}
