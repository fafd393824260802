//! TLS from a certificate and a key in PEM files, with ring.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::Error;

/// The acceptor for this certificate chain and its key.
pub(crate) fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, Error> {
    fn bad<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Error {
        move |why| Error::File {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
    let chain = CertificateDer::pem_file_iter(cert).map_err(bad(cert))?;
    let chain: Vec<CertificateDer<'_>> = chain.collect::<Result<_, _>>().map_err(bad(cert))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(bad(key))?;
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(bad(cert))?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(bad(cert))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
