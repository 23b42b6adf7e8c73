//! What the TLS listeners show to clients and want to see of them.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::server::WebPkiClientVerifier;
use rustls::{ConfigBuilder, Error, RootCertStore, ServerConfig, server::WantsServerCert};
use tokio_rustls::TlsAcceptor;

use crate::config::MqttTls;
use crate::tls::{FlooredTime, authorities, chain, provider};

/// Certificate, key, and the authorities of clients. Cheap to clone; every clone sees a reload.
#[derive(Debug, Clone)]
pub struct Identity(
    /// Shared with the listeners' thread, which asks at every handshake, and the broker's, which asks at every CONNECT;
    /// written only by a reload.
    Arc<RwLock<Loaded>>,
);

/// What is wrong with a file that `[mqtt.tls]` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key that names it.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<&'static str>,
}

#[derive(Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    essence: Essence,
}

/// What makes one identity differ from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Essence {
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<TrustAnchor<'static>>,
    requires_certificate: bool,
    has_certificate_users: bool,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(settings: &MqttTls) -> Result<Self, Vec<Fault>> {
        Ok(Self(Arc::new(RwLock::new(Loaded::read(settings)?))))
    }

    /// Reads the files anew; whether anything is different. Connections and handshakes under way keep what they have,
    /// and on an error everybody does.
    ///
    /// # Errors
    /// Everything that is wrong with the files.
    pub fn reload(&self, settings: &MqttTls) -> Result<bool, Vec<Fault>> {
        let new = Loaded::read(settings)?;
        let mut loaded = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_different = loaded.essence != new.essence;
        if is_different {
            // The sessions that clients may resume go with the old one: who was let in by an authority that is not
            // believed any more has to show a certificate again.
            *loaded = new;
        }
        Ok(is_different)
    }

    /// What makes the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.read(|loaded| loaded.server.clone()))
    }

    /// Whether the name in a certificate is a user's.
    pub fn has_certificate_users(&self) -> bool {
        self.read(|loaded| loaded.essence.has_certificate_users)
    }

    /// Whether nobody comes in without a certificate.
    pub fn requires_certificate(&self) -> bool {
        self.read(|loaded| loaded.essence.requires_certificate)
    }

    fn read<T>(&self, look: impl FnOnce(&Loaded) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Loaded {
    fn read(settings: &MqttTls) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let chain = noting(&mut faults, "certificate", chain(&settings.certificate));
        let key = noting(&mut faults, "key", read_key(settings));
        let authorities = match settings.client_ca.as_deref() {
            Some(path) => noting(&mut faults, "client_ca", authorities(path)),
            None => Some(RootCertStore::empty()),
        };
        let (Some(chain), Some(key), Some(authorities)) = (chain, key, authorities) else {
            return Err(faults);
        };
        let essence = Essence {
            chain: chain.clone(),
            authorities: authorities.roots.clone(),
            requires_certificate: settings.requires_certificate(),
            has_certificate_users: settings.certificate_users,
        };
        let server = builder(authorities, essence.requires_certificate)
            .map_err(|error| vec![Fault::new("client_ca", error.to_string())])?
            .with_single_cert(chain, key)
            .map_err(|error| vec![mismatch(&error)])?;
        Ok(Self { server: Arc::new(server), essence })
    }
}

impl Fault {
    fn new(key: &'static str, message: String) -> Self {
        Self { key, message, help: None }
    }
}

fn noting<T>(faults: &mut Vec<Fault>, key: &'static str, read: anyhow::Result<T>) -> Option<T> {
    read.map_err(|error| faults.push(Fault::new(key, format!("{error:#}")))).ok()
}

fn read_key(settings: &MqttTls) -> anyhow::Result<PrivateKeyDer<'static>> {
    let pem = settings.key.read().map_err(anyhow::Error::msg)?;
    PrivateKeyDer::from_pem_slice(pem.expose())
        .map_err(|error| anyhow::anyhow!("{error}: no private key in PEM"))
}

/// TLS 1.2 and 1.3; client certificates are asked for when somebody can vouch for them.
fn builder(
    authorities: RootCertStore,
    is_required: bool,
) -> anyhow::Result<ConfigBuilder<ServerConfig, WantsServerCert>> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(FlooredTime))
        .with_safe_default_protocol_versions()?;
    if authorities.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(authorities.into(), provider());
    let verifier = if is_required { verifier } else { verifier.allow_unauthenticated() };
    Ok(builder.with_client_cert_verifier(verifier.build()?))
}

fn mismatch(error: &Error) -> Fault {
    match error {
        Error::InconsistentKeys(_) => Fault {
            key: "key",
            message: "the key does not belong to the certificate".into(),
            help: Some(
                "the certificate file begins with the gateway's own certificate, its authorities follow",
            ),
        },
        Error::InvalidCertificate(_) => Fault::new("certificate", format!("not usable: {error}")),
        _ => Fault::new("key", format!("not usable: {error}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;
    use crate::config::Config;

    /// A directory with `server.pem`, which signs itself, and `server.key`.
    pub struct Files(tempfile::TempDir);

    impl Files {
        pub fn new() -> Self {
            let files = Self(tempfile::TempDir::new().unwrap());
            files.make("server");
            files
        }

        /// Makes a certificate and its key.
        pub fn make(&self, name: &str) {
            let output = Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
                .args(["-days", "2", "-subj", "/CN=Tür 7", "-utf8", "-keyout", &format!("{name}.key")])
                .args(["-addext", "subjectAltName=DNS:door.local", "-out", &format!("{name}.pem")])
                .current_dir(self.0.path())
                .output()
                .expect("openssl is installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }

        pub fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        /// `[mqtt.tls]` with these files and further lines, in which `"server.` is a file of this directory.
        pub fn settings(&self, lines: &str) -> MqttTls {
            let text = format!(
                "listen = [\"127.0.0.1:0\"]\ncertificate = \"server.pem\"\nkey = {{ file = \"server.key\" }}\n{lines}"
            );
            let directory = self.0.path().display();
            let text =
                format!("[mqtt.tls]\n{}", text.replace("\"server.", &format!("\"{directory}/server.")));
            Config::parse(&text)
                .unwrap_or_else(|rejected| panic!("{}", rejected.render(false)))
                .mqtt
                .tls
                .unwrap()
        }
    }

    fn shown(identity: &Identity) -> Vec<CertificateDer<'static>> {
        identity.read(|loaded| loaded.essence.chain.clone())
    }

    #[test]
    fn a_reload_takes_what_is_new_and_keeps_what_it_has_when_that_is_bad() {
        let files = Files::new();
        let settings = files.settings("");
        let identity = Identity::load(&settings).unwrap();
        let first = shown(&identity);
        assert_eq!(identity.reload(&settings), Ok(false));
        files.make("server");
        assert_eq!(identity.reload(&settings), Ok(true));
        let second = shown(&identity);
        assert_ne!(first, second);
        files.write("server.key", "no key");
        let faults = identity.reload(&settings).unwrap_err();
        assert_eq!((faults.len(), faults[0].key), (1, "key"), "{faults:?}");
        assert!(!faults[0].message.contains("no key\n"), "a secret is not repeated");
        assert_eq!(shown(&identity), second);
        // What is wanted of clients counts as well.
        files.make("server");
        assert_eq!(identity.reload(&files.settings("client_ca = \"server.pem\"")), Ok(true));
        assert!(identity.requires_certificate() && !identity.has_certificate_users());
    }

    #[test]
    fn every_file_that_is_wrong_is_named() {
        let files = Files::new();
        let mut settings = files.settings("");
        settings.client_ca = Some(files.write("authority.pem", ""));
        settings.certificate = "nowhere.pem".into();
        let faults = Identity::load(&settings).unwrap_err();
        let keys: Vec<_> = faults.iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["certificate", "client_ca"]);
        assert!(faults[0].message.contains("nowhere.pem") && faults[1].message.contains("authority.pem"));
    }

    #[test]
    fn a_key_that_belongs_to_another_certificate_is_a_mistake() {
        let files = Files::new();
        let settings = files.settings("");
        let key = std::fs::read_to_string(files.0.path().join("server.key")).unwrap();
        files.make("server");
        files.write("server.key", &key);
        let faults = Identity::load(&settings).unwrap_err();
        assert_eq!(faults[0].message, "the key does not belong to the certificate");
    }

    #[test]
    fn a_certificates_common_name_comes_before_its_alternative_names() {
        let files = Files::new();
        let chain = chain(&files.0.path().join("server.pem")).unwrap();
        assert_eq!(super::super::subject::name(&chain[0]).as_deref(), Some("Tür 7"));
    }
}
