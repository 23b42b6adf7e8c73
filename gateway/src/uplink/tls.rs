//! TLS towards a peer. Verification cannot be switched off; a CA file can be added.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio_rustls::TlsConnector;

use crate::tls::{FlooredTime, authorities, chain, provider};

/// `tls = { ca = …, certificate = …, key = … }`; an empty table trusts the system's certificates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate chain, for peers that want one.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
    /// The name in the peer's certificate, when it is not the address's.
    pub server_name: Option<String>,
}

impl Tls {
    /// What is missing on disk.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = [&self.ca, &self.certificate, &self.key]
            .into_iter()
            .flatten()
            .filter_map(|path| {
                std::fs::File::open(path).err().map(|error| format!("{}: {error}", path.display()))
            })
            .collect();
        if self.certificate.is_some() != self.key.is_some() {
            problems.push("tls needs certificate and key together".into());
        }
        problems
    }

    /// The PEM file of the authorities to trust: the configured one, else the system's.
    pub fn authorities(&self) -> anyhow::Result<PathBuf> {
        let missing = "no system certificates found: install ca-certificates or set tls.ca";
        self.ca.clone().or_else(system_authorities).context(missing)
    }

    /// Loads the files and makes a connector.
    pub fn connector(&self) -> anyhow::Result<TlsConnector> {
        self.connector_for(None)
    }

    /// The same for one of several protocols that share a port, by its name (ALPN, RFC 7301).
    pub fn connector_for(&self, protocol: Option<&str>) -> anyhow::Result<TlsConnector> {
        let roots = authorities(&self.authorities()?)?;
        let builder = rustls::ClientConfig::builder_with_details(provider(), Arc::new(FlooredTime))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let key_der = PrivateKeyDer::from_pem_file(key).with_context(|| key.display().to_string())?;
                builder.with_client_auth_cert(chain(certificate)?, key_der)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocol.into_iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Where distributions keep the authorities they trust, in one file.
fn system_authorities() -> Option<PathBuf> {
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}
