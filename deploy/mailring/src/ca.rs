//! The cluster's certificate authority: files in a directory, and certificates whose names carry roles. It signs the
//! routers' certificates for mail clients too, so that a test cluster needs one file of trust; those carry no role and
//! open no door inside the cluster.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use proto::{ROLE_ADMIN, ROLE_NODE, ROLE_ROUTER};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::cli::Role;

const CA: &str = "ca";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Certificates begin in the past, so that a machine whose clock is a day behind still speaks to the others.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// Names ending so stand for roles, and for nothing that a mail client connects to.
const ROLE_DOMAIN: &str = "mailring.internal";

/// Makes a new authority in `dir`; one that is there already is never overwritten. Returns the files written.
pub fn create(dir: &Path, days: u32) -> Result<Vec<PathBuf>> {
    let files = Files::new(dir, CA);
    if files.certificate.exists() || files.key.exists() {
        bail!("{} holds a certificate authority already", dir.display());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| dir.display().to_string())?;
    let mut params = parameters("mailring cluster CA", Vec::new(), days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().context("generate a key")?;
    let certificate = params.self_signed(&key).context("sign the CA's certificate")?;
    files.write(&certificate.pem(), &key)
}

/// Makes the key and certificate of a process of the cluster.
pub fn issue(ca: &Path, role: Role, name: &str, out: Option<&Path>, days: u32) -> Result<Vec<PathBuf>> {
    let role_name = match role {
        Role::Node => ROLE_NODE,
        Role::Router => ROLE_ROUTER,
        Role::Admin => ROLE_ADMIN,
    };
    let files = Files::checked(out.unwrap_or(ca), name)?;
    let mut params = parameters(name, vec![role_name.to_owned()], days)?;
    params.extended_key_usages = match role {
        // A node answers routers, and asks other nodes.
        Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Role::Router | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    sign(ca, params, &files)
}

/// Makes the key and certificate that a router shows to mail clients.
pub fn issue_server(ca: &Path, hosts: &[String], name: &str, out: Option<&Path>, days: u32) -> Result<Vec<PathBuf>> {
    let hosts = hosts.iter().map(|host| host_name(host)).collect::<Result<Vec<_>>>()?;
    let Some(first) = hosts.first() else { bail!("no host name") };
    let files = Files::checked(out.unwrap_or(ca), name)?;
    let mut params = parameters(first, hosts.clone(), days)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(ca, params, &files)
}

fn host_name(host: &str) -> Result<String> {
    let host = host.trim();
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(host.to_owned());
    }
    let (wildcard, rest) = host.strip_prefix("*.").map_or(("", host), |rest| ("*.", rest));
    let ascii = idna::domain_to_ascii(rest).map_err(|_| anyhow::anyhow!("host name {host:?} is not valid"))?;
    if types::DomainName::parse(&ascii).is_err() {
        bail!("host name {host:?} is not valid");
    }
    if ascii == ROLE_DOMAIN || ascii.ends_with(&format!(".{ROLE_DOMAIN}")) {
        bail!("{ascii} stands for a role in the cluster: use 'ca issue'");
    }
    Ok(format!("{wildcard}{ascii}"))
}

fn parameters(common_name: &str, names: Vec<String>, days: u32) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names).context("certificate names")?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, "mailring");
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + DAY * days).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn sign(ca: &Path, params: CertificateParams, files: &Files) -> Result<Vec<PathBuf>> {
    let authority = Files::new(ca, CA);
    let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let ca_key = KeyPair::from_pem(&read(&authority.key)?).with_context(|| authority.key.display().to_string())?;
    let issuer = Issuer::from_ca_cert_pem(&read(&authority.certificate)?, ca_key)
        .with_context(|| authority.certificate.display().to_string())?;
    let key = KeyPair::generate().context("generate a key")?;
    let certificate = params.signed_by(&key, &issuer).context("sign the certificate")?;
    files.write(&certificate.pem(), &key)
}

/// A certificate and its key, side by side.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(dir: &Path, name: &str) -> Files {
        Files { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }

    /// `name` is a file name, and never the authority's own.
    fn checked(dir: &Path, name: &str) -> Result<Files> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) || name == CA {
            bail!("name {name:?}: 1 to 63 of a-z, 0-9 and - are allowed, and {CA:?} is taken");
        }
        Ok(Files::new(dir, name))
    }

    /// The key first: whoever waits for the certificate finds both.
    fn write(&self, certificate: &str, key: &KeyPair) -> Result<Vec<PathBuf>> {
        if let Some(dir) = self.key.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        write_file(&self.key, &key.serialize_pem(), 0o600)?;
        write_file(&self.certificate, certificate, 0o644)?;
        Ok(vec![self.certificate.clone(), self.key.clone()])
    }
}

/// Whole or not at all, and never readable by others in between.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<()> {
    let written = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    written().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use proto::{ClusterTls, ClusterTlsFiles, PeerRole};
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::{create, host_name, issue, issue_server};
    use crate::cli::Role;

    fn certificate(path: &Path) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(path).unwrap()
    }

    /// As a mail client or a peer would check it.
    fn verifies(ca: &Path, leaf: &Path, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(ca)).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider().into();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(std::sync::Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&certificate(leaf), &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn certificates_carry_their_role_and_verify_against_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        create(&ca, 10).unwrap();
        for (role, peer, name) in [
            (Role::Node, PeerRole::Node, "node1"),
            (Role::Router, PeerRole::Router, "router1"),
            (Role::Admin, PeerRole::Admin, "admin"),
        ] {
            let written = issue(&ca, role, name, None, 5).unwrap();
            assert_eq!(written, [ca.join(format!("{name}.pem")), ca.join(format!("{name}.key"))]);
            let leaf = certificate(&written[0]);
            assert_eq!(PeerRole::of_certificate(&leaf), Some(peer));
            let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
            assert_eq!(parsed.subject().iter_common_name().next().unwrap().as_str().unwrap(), name);
            let days = (parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp()) / 86_400;
            // Five from now, and those before.
            assert_eq!(days, 5 + 2);
            let files =
                ClusterTlsFiles { ca: ca.join("ca.pem"), certificate: written[0].clone(), key: written[1].clone() };
            assert_eq!(ClusterTls::load(&files).unwrap().name.as_deref(), Some(name));
        }
        assert!(verifies(&ca.join("ca.pem"), &ca.join("node1.pem"), proto::ROLE_NODE));
        // A router's or an admin's certificate does not serve.
        assert!(!verifies(&ca.join("ca.pem"), &ca.join("router1.pem"), proto::ROLE_ROUTER));
    }

    #[test]
    fn a_server_certificate_is_for_its_hosts_and_has_no_role() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
        create(&ca, 10).unwrap();
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned(), " Bücher.example".to_owned()];
        issue_server(&ca, &hosts, "server", Some(&out), 5).unwrap();
        let leaf = out.join("server.pem");
        for host in ["localhost", "127.0.0.1", "xn--bcher-kva.example"] {
            assert!(verifies(&ca.join("ca.pem"), &leaf, host), "{host}");
        }
        assert!(!verifies(&ca.join("ca.pem"), &leaf, "other.example"));
        assert_eq!(PeerRole::of_certificate(&certificate(&leaf)), None);
        let other = dir.path().join("other");
        create(&other, 10).unwrap();
        assert!(!verifies(&other.join("ca.pem"), &leaf, "localhost"));
    }

    #[test]
    fn role_names_cannot_be_had_as_host_names() {
        for bad in
            ["node.mailring.internal", "*.mailring.internal", "ADMIN.mailring.internal", "mailring.internal", "", "a b"]
        {
            assert!(host_name(bad).is_err(), "{bad}");
        }
        assert_eq!(host_name("*.example.test").unwrap(), "*.example.test");
    }

    #[test]
    fn keys_are_private_and_the_ca_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        create(&ca, 10).unwrap();
        issue(&ca, Role::Admin, "admin", None, 5).unwrap();
        for key in ["ca.key", "admin.key"] {
            assert_eq!(fs::metadata(ca.join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
        }
        let before = fs::read(ca.join("ca.pem")).unwrap();
        assert!(create(&ca, 10).is_err());
        for bad in ["ca", "", "../x", "a/b", "A"] {
            assert!(issue(&ca, Role::Node, bad, None, 5).is_err(), "{bad}");
        }
        assert_eq!(fs::read(ca.join("ca.pem")).unwrap(), before);
        // A second one of the same name replaces the first: that is how a certificate is renewed.
        issue(&ca, Role::Admin, "admin", None, 5).unwrap();
    }
}
