//! TLS towards clients. The certificate is read again when its files change; a bad new one leaves the old in use.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::settings::TlsFiles;

/// How often the files are looked at: an operator who has renewed a certificate need not wait.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// What clients are shown.
pub struct ClientTls {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
    /// What the files looked like when they were last read.
    stamp: Mutex<Stamp>,
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Modification time and length of both files; `None` where one cannot be seen.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl ClientTls {
    pub fn load(files: &TlsFiles) -> io::Result<ClientTls> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let stamp = stamp(files);
        let shown = Arc::new(Shown(ArcSwap::from_pointee(certified_key(files, &provider)?)));
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(ClientTls { files: files.clone(), provider, shown, acceptor, stamp: Mutex::new(stamp) })
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Reads the files if they changed since they were last read.
    pub fn reload_if_changed(&self) {
        let now = stamp(&self.files);
        if std::mem::replace(&mut *self.stamp.lock(), now) != now {
            self.reload();
        }
    }

    /// Reads the files. A certificate that cannot be used leaves the one before in place.
    pub fn reload(&self) {
        match certified_key(&self.files, &self.provider) {
            Ok(key) => {
                self.shown.0.store(Arc::new(key));
                info!("certificate reloaded");
            }
            Err(error) => warn!(%error, "certificate not reloaded, the old one stays in use"),
        }
    }

    /// Watches the files until dropped.
    pub(crate) async fn watch(self: Arc<ClientTls>) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            let tls = self.clone();
            // File systems can hang.
            if tokio::task::spawn_blocking(move || tls.reload_if_changed()).await.is_err() {
                return;
            }
        }
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.certificate, &files.key].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn certified_key(files: &TlsFiles, provider: &CryptoProvider) -> io::Result<CertifiedKey> {
    let pem = read(&files.certificate)?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| invalid(&files.certificate, e))?;
    if chain.is_empty() {
        return Err(invalid(&files.certificate, "no certificate in the file"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|e| invalid(&files.key, e))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| invalid(&files.key, e))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::ClientTls;
    use crate::settings::TlsFiles;

    fn write_certificate(files: &TlsFiles, name: &str) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_new_certificate_is_taken_up_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { certificate: dir.path().join("c.pem"), key: dir.path().join("k.pem") };
        assert!(ClientTls::load(&files).is_err());
        write_certificate(&files, "one.example.test");
        let tls = ClientTls::load(&files).unwrap();
        let shown = || tls.shown.0.load().cert.clone();
        let first = shown();
        tls.reload_if_changed();
        assert_eq!(shown(), first);
        write_certificate(&files, "a-much-longer-name.example.test");
        tls.reload_if_changed();
        let second = shown();
        assert_ne!(second, first);
        fs::write(&files.certificate, "not a certificate").unwrap();
        tls.reload_if_changed();
        assert_eq!(shown(), second);
        // A key that is not the certificate's.
        write_certificate(&files, "three.example.test");
        let other = rcgen::generate_simple_self_signed(vec!["four.example.test".to_owned()]).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        tls.reload();
        assert_eq!(shown(), second);
    }
}
