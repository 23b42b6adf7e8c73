//! What TLS needs in both directions, by rustls with ring: certificates and authorities from PEM files, and a time with
//! a floor to check them by, so that a machine that boots in 1970 still connects.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;

use crate::clock;

/// The cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a certificate chain, the owner's certificate first.
///
/// # Errors
/// Names the file.
pub fn chain(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| path.display().to_string())?;
    if chain.is_empty() {
        bail!("{}: holds no certificate", path.display());
    }
    Ok(chain)
}

/// Reads the authorities that are to be trusted.
///
/// # Errors
/// Names the file, which cannot be read or holds none that can be used.
pub fn authorities(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).with_context(|| path.display().to_string())? {
        let certificate = certificate.with_context(|| path.display().to_string())?;
        // One authority that rustls cannot use does not take the others away.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        bail!("{}: holds no usable certificate", path.display());
    }
    Ok(roots)
}

/// [`clock::floor_time`].
#[derive(Debug)]
pub struct FlooredTime;

impl TimeProvider for FlooredTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::floor_time()))
    }
}
