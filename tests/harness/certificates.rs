//! Certificate authorities of a test's own, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Scratch, tool};

/// An authority that signs certificates for loopback servers and for clients; nobody trusts it unasked.
#[derive(Debug)]
pub struct Authority {
    scratch: Scratch,
}

/// A certificate and its private key, both PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub pem: PathBuf,
    /// Its key, readable by everybody who may enter the directory.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one with a P-256 key, valid for two days.
    pub fn new(name: &str) -> Self {
        let authority = Self { scratch: Scratch::new("authority") };
        let (key, pem) = (authority.text("ca.key"), authority.text("ca.pem"));
        let subject = format!("/CN={name}");
        let begin = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let end = ["-days", "2", "-subj", &subject, "-addext", "keyUsage=critical,keyCertSign"];
        openssl(&[&begin[..], &end, &["-keyout", &key, "-out", &pem]].concat());
        authority
    }

    /// The authority's own certificate: what a client is told to trust.
    pub fn pem(&self) -> PathBuf {
        self.scratch.join("ca.pem")
    }

    /// Signs a certificate for a server at 127.0.0.1 and `localhost`.
    pub fn server(&self) -> Certificate {
        self.sign("server", "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
    }

    /// Signs a certificate for a client with that common name.
    pub fn client(&self, name: &str) -> Certificate {
        self.sign(name, "extendedKeyUsage=clientAuth\n")
    }

    fn sign(&self, name: &str, extensions: &str) -> Certificate {
        let text = |end: &str| self.text(&format!("{name}.{end}"));
        let (key, request, pem, extra) = (text("key"), text("csr"), text("pem"), text("ext"));
        let subject = format!("/CN={name}");
        let begin =
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", &subject];
        openssl(&[&begin[..], &["-keyout", &key, "-out", &request]].concat());
        self.scratch.write(&format!("{name}.ext"), extensions);
        let (ca, ca_key) = (self.text("ca.pem"), self.text("ca.key"));
        let begin = ["x509", "-req", "-days", "2", "-in", &request, "-extfile", &extra, "-CAcreateserial"];
        openssl(&[&begin[..], &["-CA", &ca, "-CAkey", &ca_key, "-out", &pem]].concat());
        Certificate { pem: pem.into(), key: key.into() }
    }

    fn text(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }
}

/// A path as it stands in a configuration: quoted.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn openssl(arguments: &[&str]) {
    let output = Command::new(tool("openssl")).args(arguments).output().expect("openssl can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {error}");
}
