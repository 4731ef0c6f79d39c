//! Who is at the other end of a gRPC connection: the role and the name that the cluster's CA wrote into the certificate.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The DNS names (subject alternative names) that stand for roles. Only the cluster's CA can give them out.
pub const ROLE_NODE: &str = "node.mailring.internal";
pub const ROLE_ROUTER: &str = "router.mailring.internal";
pub const ROLE_ADMIN: &str = "admin.mailring.internal";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerRole {
    Node,
    Router,
    Admin,
}

impl PeerRole {
    /// The role named in a certificate that the CA's signature has been checked on.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<PeerRole> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(ROLE_NODE) => Some(PeerRole::Node),
            GeneralName::DNSName(ROLE_ROUTER) => Some(PeerRole::Router),
            GeneralName::DNSName(ROLE_ADMIN) => Some(PeerRole::Admin),
            _ => None,
        })
    }
}

/// The process that a certificate was made for: its common name.
pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned())
}
