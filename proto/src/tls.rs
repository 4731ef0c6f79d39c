//! Mutual TLS between processes: both ends show a certificate of the cluster's CA, or nothing is answered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::role::name_of;
use crate::validity::Validity;

/// Where a process finds its place in the cluster's public key infrastructure; PEM files.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterTlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Both directions' settings, made from the same files.
#[derive(Clone, Debug)]
pub struct ClusterTls {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    /// Whom the certificate is of.
    pub name: Option<String>,
    /// When it ends, in seconds since 1970.
    pub ends_unix_s: Option<i64>,
}

impl ClusterTls {
    /// An own certificate that does not hold now is an error: nobody would answer.
    pub fn load(files: &ClusterTlsFiles) -> io::Result<ClusterTls> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|e| invalid(&files.ca, e))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = certificates(&files.certificate)?;
        let name = chain.first().and_then(name_of);
        let validity = chain.first().and_then(Validity::of);
        if let Some(validity) = validity {
            let now = SystemTime::now();
            validity.check(now).map_err(|e| invalid(&files.certificate, e))?;
            if validity.ends_soon(now) {
                let (certificate, unix_s) = (files.certificate.display(), validity.until_unix_s());
                tracing::warn!(%certificate, unix_s, "certificate ends soon");
            }
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| invalid(&files.ca, e))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key(&files.key)?)
            .map_err(|e| invalid(&files.certificate, e))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| invalid(&files.ca, e))?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain, private_key(&files.key)?)
            .map_err(|e| invalid(&files.certificate, e))?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(ClusterTls {
            server: Arc::new(server),
            client: Arc::new(client),
            name,
            ends_unix_s: validity.map(|held| held.until_unix_s()),
        })
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| invalid(path, e))?;
    if all.is_empty() {
        return Err(invalid(path, "no certificate in the file"));
    }
    Ok(all)
}

fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let pem = fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| invalid(path, e))
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}
