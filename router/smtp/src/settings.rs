//! What a listener tells the protocol machine about itself.

use crate::data::BareNewlines;

/// Whether the connection can be, or is, encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// STARTTLS is neither offered nor accepted.
    Unavailable,
    /// STARTTLS is offered.
    Available,
    /// The connection is encrypted, from its start or since STARTTLS.
    Active,
}

/// When AUTH is offered (RFC 4954).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthOffer {
    /// Role `mx`.
    Never,
    /// Refused with 538 until TLS is active: the mechanisms send passwords in clear.
    OverTls,
    /// Without TLS too. For tests and closed networks.
    Always,
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// The name in the greeting and in the reply to EHLO.
    pub hostname: String,
    /// Largest message accepted, in octets after un-dotting; announced as SIZE (RFC 1870).
    pub size_max: u64,
    /// Recipients in one transaction; at least 100 (RFC 5321 §4.5.3.1.8). Beyond it 452 4.5.3.
    pub recipients_max: usize,
    /// Received fields in a message's header; more of them are a loop (RFC 5321 §6.3).
    pub received_max: u32,
    /// Refused commands in a session without a stored message between them; the last of them brings 421.
    pub errors_max: u32,
    /// Wrong passwords in a session; the last of them brings 421.
    pub auth_failures_max: u32,
    pub tls: Tls,
    pub auth: AuthOffer,
    /// MAIL is refused with 530 before AUTH: role `submission`.
    pub auth_required: bool,
    pub bare_newlines: BareNewlines,
}

impl Settings {
    /// Role `mx` with the limits that suit most sites.
    pub fn mx(hostname: &str) -> Settings {
        Settings {
            hostname: hostname.to_owned(),
            // What the large providers accept today, base64 included.
            size_max: 50 * 1024 * 1024,
            recipients_max: 1_000,
            received_max: 100,
            errors_max: 25,
            auth_failures_max: 5,
            tls: Tls::Unavailable,
            auth: AuthOffer::Never,
            auth_required: false,
            bare_newlines: BareNewlines::Keep,
        }
    }

    /// Refused content is read and dropped up to its end mark, so that the connection lives; but not without end.
    pub(crate) fn drain_max(&self) -> u64 {
        const AT_LEAST: u64 = 64 * 1024 * 1024;
        self.size_max.saturating_mul(4).max(AT_LEAST)
    }
}
