//! TLS: what is offered, and the certificate, which can be swapped while connections live.
//!
//! A connection keeps the keys it was made with; the next handshake reads the certificate that is current then. Session
//! tickets are sealed with a key that all cores share and that rotates by itself. 0-RTT is off: its data can be replayed.

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::sync::Arc;

/// ALPN name of HTTP/2.
pub(crate) const H2: &[u8] = b"h2";
const HTTP11: &[u8] = b"http/1.1";

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The certificate's text is no PEM.
    #[error("the certificate is not PEM: {0}")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// The text holds no certificate.
    #[error("the certificate file holds no certificate")]
    Empty,
    /// The key's text is no PEM.
    #[error("the private key is not PEM: {0}")]
    Key(#[source] rustls_pki_types::pem::Error),
    /// The key is of no use, or belongs to another certificate.
    #[error("the private key does not serve the certificate: {0}")]
    Unusable(#[source] rustls::Error),
    /// The text of the clients' authority holds no certificate, or none that can be one.
    #[error("the clients' authority cannot be used: {0}")]
    Authority(String),
    /// The system's randomness or TLS itself failed.
    #[error("cannot set up tls: {0}")]
    Setup(#[source] rustls::Error),
}

/// The server's current certificate, shared by all cores.
#[derive(Debug)]
pub struct Certificates(ArcSwap<CertifiedKey>);

impl Certificates {
    /// Takes a certificate chain (leaf first) and its private key, both PEM, and checks that they belong together.
    pub fn load(chain_pem: &str, key_pem: &str) -> Result<Self, CertificateError> {
        Ok(Self(ArcSwap::from_pointee(certified(chain_pem, key_pem)?)))
    }

    /// Serves another certificate from the next handshake on. On an error the current one stays.
    pub fn swap(&self, chain_pem: &str, key_pem: &str) -> Result<(), CertificateError> {
        self.0.store(Arc::new(certified(chain_pem, key_pem)?));
        Ok(())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(CertificateError::Certificate)?;
    if chain.is_empty() {
        return Err(CertificateError::Empty);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(CertificateError::Key)?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(CertificateError::Unusable)
}

/// The cryptography of this crate, for a client of another crate that names no rustls.
pub fn client_provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The configuration of TLS connections to anybody.
pub(crate) fn server_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, CertificateError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(CertificateError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![H2.to_vec(), HTTP11.to_vec()];
    config.max_early_data_size = 0;
    config.ticketer = ring::Ticketer::new().map_err(CertificateError::Setup)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The configuration of TLS connections to clients that have a certificate of this authority (PEM; one or more), and to
/// nobody else. TLS 1.3 alone, and no resumption: each connection shows its certificate.
pub(crate) fn mutual_config(
    certificates: Arc<Certificates>,
    authority_pem: &str,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let roots = Arc::new(roots(authority_pem)?);
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(CertificateError::Setup)?
        .with_client_cert_verifier(verifier.map_err(|error| CertificateError::Authority(error.to_string()))?)
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![H2.to_vec(), HTTP11.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The authorities in a PEM text; at least one.
pub(crate) fn roots(pem: &str) -> Result<RootCertStore, CertificateError> {
    let unusable = |error: &dyn std::fmt::Display| CertificateError::Authority(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() { Err(unusable(&"it holds no certificate")) } else { Ok(roots) }
}
