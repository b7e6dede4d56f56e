//! The certificate for HTTPS. It is read again when its files change, so that a renewed one needs no
//! restart; connections that are open keep the old one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::HttpError;

/// How often the files are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What a file was when it was looked at: where, which, how long, and since when.
type Mark = (u64, u64, u64, i64, i64);

/// A certificate chain and its private key, both PEM files.
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    acceptor: TlsAcceptor,
    /// The files that were read last, also if they could not be used.
    read: [Option<Mark>; 2],
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// If they cannot be used.
    pub(crate) fn load(chain: PathBuf, key: PathBuf) -> Result<Self, HttpError> {
        // Before the files: a change while they are read is noticed.
        let read = [mark(&chain), mark(&key)];
        let acceptor = acceptor(&chain, &key)?;
        Ok(Self { chain, key, acceptor, read })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Reads the files again if they have changed. If they cannot be used, as while they are being
    /// replaced, the old certificate stays.
    pub(crate) fn refresh(&mut self) {
        let now = [mark(&self.chain), mark(&self.key)];
        if now == self.read {
            return;
        }
        self.read = now;
        match acceptor(&self.chain, &self.key) {
            Ok(acceptor) => {
                self.acceptor = acceptor;
                tracing::info!(file = %self.chain.display(), "the certificate for HTTPS was read again");
            }
            Err(error) => tracing::warn!(
                %error,
                "the certificate for HTTPS has changed and cannot be used: new connections get the old one"
            ),
        }
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let about = fs::metadata(path).ok()?;
    Some((about.dev(), about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
}

fn acceptor(chain: &Path, key: &Path) -> Result<TlsAcceptor, HttpError> {
    let wrong = |path: &Path, why: String| HttpError::Certificate { path: path.into(), why };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(chain, error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong(chain, "it contains no certificate (PEM)".into()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(chain, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .map_err(|error| wrong(chain, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Returns a client that trusts this certificate alone.
    pub(crate) fn client_of(made: &CertifiedKey<KeyPair>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(client))
    }

    /// Returns whether a client that trusts this certificate alone can connect.
    async fn shows(certificate: &Certificate, made: &CertifiedKey<KeyPair>) -> bool {
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("localhost").unwrap();
        let (client, _) =
            tokio::join!(client_of(made).connect(name, near), certificate.acceptor().accept(far));
        client.is_ok()
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
        let make = || generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (first, second) = (make(), make());
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // As programs do that renew certificates: a new file takes the place of the old one.
        let write = |name: &str, text: String| {
            fs::write(path("new"), text).unwrap();
            fs::rename(path("new"), path(name)).unwrap();
        };
        write("chain", first.cert.pem());
        write("key", first.signing_key.serialize_pem());
        let mut certificate = Certificate::load(path("chain"), path("key")).unwrap();
        assert!(shows(&certificate, &first).await);
        // Only one of the two files has been replaced so far.
        write("chain", second.cert.pem());
        certificate.refresh();
        assert!(shows(&certificate, &first).await);
        write("key", second.signing_key.serialize_pem());
        certificate.refresh();
        assert!(shows(&certificate, &second).await && !shows(&certificate, &first).await);
        fs::remove_file(path("chain")).unwrap();
        certificate.refresh();
        assert!(shows(&certificate, &second).await);
    }
}
