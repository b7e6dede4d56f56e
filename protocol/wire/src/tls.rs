//! TLS 1.3 (RFC 8446) with raw public keys (RFC 7250): there are no certificates, so none expire.
//! Both ends present an Ed25519 key. The manager accepts any key and looks up its owner after the
//! handshake. Its peers know the digest of the manager's key beforehand.

use std::sync::Arc;

use podmesh_protocol::access::{KeyDigest, PublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
};

use crate::key::{KeyPair, digest_of};

/// The purpose of a connection, selected by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// ROUTER.
    Control,
    /// PUB.
    Publications,
    /// Heartbeats.
    Heartbeats,
    /// One request to join.
    Join,
}

impl Service {
    /// All services.
    pub const ALL: [Self; 4] = [Self::Control, Self::Publications, Self::Heartbeats, Self::Join];

    /// Returns its name in ALPN; the number is the version of the transport.
    pub fn alpn(self) -> &'static str {
        match self {
            Self::Control => "podmesh-control/1",
            Self::Publications => "podmesh-publications/1",
            Self::Heartbeats => "podmesh-heartbeats/1",
            Self::Join => "podmesh-join/1",
        }
    }

    pub(crate) fn of(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.alpn().as_bytes() == alpn)
    }
}

/// The DER `SubjectPublicKeyInfo` of Ed25519 (RFC 8410) up to the key itself.
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], &key.0].concat()
}

/// Returns the key that a peer presented.
pub(crate) fn public_key(shown: &CertificateDer<'_>) -> Option<PublicKey> {
    Some(PublicKey(shown.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?))
}

fn certified(key: &KeyPair) -> Result<Arc<CertifiedKey>, Error> {
    let private = PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()).into();
    let signer = rustls::crypto::ring::default_provider().key_provider.load_private_key(private)?;
    let shown = CertificateDer::from(spki(&key.public()));
    Ok(Arc::new(CertifiedKey::new(vec![shown], signer)))
}

/// Returns the configuration of the manager.
pub(crate) fn server_config(key: &KeyPair) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyKey { algorithms }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(key)?)));
    config.alpn_protocols = Service::ALL.map(|service| service.alpn().into()).into();
    // A ticket would readmit a key without checking whether it is still valid.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Returns the configuration of a peer, for a service of a manager whose key has one of these
/// digests.
pub(crate) fn client_config(
    key: &KeyPair,
    pins: &[KeyDigest],
    service: Service,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let verifier = PinnedKey { pins: pins.to_vec(), algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(
            key,
        )?)));
    config.alpn_protocols = vec![service.alpn().into()];
    config.resumption = Resumption::disabled();
    // Server names are not used.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Returns a placeholder: the library requires a server name, but none is used.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(rustls::pki_types::IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED))
}

fn verify(
    message: &[u8],
    shown: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

/// Accepts every Ed25519 key whose owner signs with it.
#[derive(Debug)]
struct AnyKey {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match public_key(shown) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, shown, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts only keys with one of the given digests.
#[derive(Debug)]
struct PinnedKey {
    pins: Vec<KeyDigest>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match public_key(shown) {
            Some(key) if self.pins.contains(&digest_of(&key)) => {
                Ok(ServerCertVerified::assertion())
            }
            Some(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, shown, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use rustls::{ClientConnection, HandshakeKind, ServerConnection};

    use super::*;

    /// Does a complete handshake in memory.
    fn shake_hands(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> HandshakeKind {
        let mut client = ClientConnection::new(Arc::clone(client), server_name()).unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        let mut bytes = Vec::new();
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
            bytes.clear();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets().unwrap();
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            if !bytes.is_empty() {
                client.read_tls(&mut &bytes[..]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        server.handshake_kind().unwrap()
    }

    #[test]
    fn a_connection_can_never_be_resumed_without_the_key() {
        let (manager, user) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let server = server_config(&manager).unwrap();
        let pins = [digest_of(&manager.public())];
        let ours = client_config(&user, &pins, Service::Control).unwrap();
        // A client that would use a ticket if it got one.
        let mut eager = ClientConfig::clone(&ours);
        eager.resumption = Resumption::in_memory_sessions(8);
        for client in [ours, Arc::new(eager)] {
            for _ in 0..2 {
                assert_eq!(shake_hands(&client, &server), HandshakeKind::Full);
            }
        }
    }
}
