//! The gateway's signing key: Ed25519 (RFC 8032), made at the first start, kept in the state directory.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::line::hex;

/// A key pair. Not `Debug`: nothing of it belongs into a log.
pub struct Key {
    pair: Ed25519KeyPair,
    public: String,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// It holds something else. It is left alone: a new key would cut the chain of what was signed.
    #[error("{}: not an Ed25519 key in PKCS#8 (v2, DER); move it away to have a new one made", .0.display())]
    NotAKey(PathBuf),
    /// The system gives no random numbers.
    #[error("no random numbers for a new key")]
    NoRandom,
}

impl Key {
    /// Reads the key of a state directory, or makes one: `ledger.key` in PKCS#8 for its owner alone, `ledger.pub`
    /// with the public key's 64 hex digits beside it for everyone who may read the directory.
    ///
    /// # Errors
    /// A file cannot be read or written, or is no key.
    pub fn load_or_make(state: &Path) -> Result<Self, KeyError> {
        let path = state.join(FILE);
        let file = |error| KeyError::File { path: path.clone(), error };
        let document = match fs::read(&path) {
            Ok(document) => document,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made =
                    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::NoRandom)?;
                // Whole under its name or not there: a power cut must not leave half a key.
                let new = state.join(format!("{FILE}.new"));
                write(&new, made.as_ref(), 0o600).and_then(|()| fs::rename(&new, &path)).map_err(file)?;
                File::open(state).and_then(|directory| directory.sync_all()).map_err(file)?;
                made.as_ref().to_vec()
            }
            Err(error) => return Err(file(error)),
        };
        let pair = Ed25519KeyPair::from_pkcs8(&document).map_err(|_| KeyError::NotAKey(path.clone()))?;
        let public = hex(pair.public_key().as_ref());
        let beside = state.join(PUBLIC_FILE);
        let text = format!("{public}\n");
        if fs::read_to_string(&beside).ok().as_ref() != Some(&text) {
            write(&beside, text.as_bytes(), 0o644)
                .map_err(|error| KeyError::File { path: beside.clone(), error })?;
        }
        Ok(Self { pair, public })
    }

    /// The public key: 64 hex digits.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The signature over `text`: 128 hex digits.
    pub fn sign(&self, text: &str) -> String {
        hex(self.pair.sign(text.as_bytes()).as_ref())
    }
}

/// Whether `signature` (64 bytes) was made over `text` with the key to which `public` (32 bytes) belongs.
pub fn is_signed(public: &[u8], text: &str, signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(text.as_bytes(), signature).is_ok()
}

fn write(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // The mask of the process, or a file that was there already, may say otherwise.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// The key, in the state directory.
const FILE: &str = "ledger.key";
/// The public half, beside it.
pub const PUBLIC_FILE: &str = "ledger.pub";

#[cfg(test)]
mod tests {
    use super::super::line::unhex;
    use super::*;

    #[test]
    fn a_key_is_made_once_for_us_alone_and_what_it_signs_is_known_by_its_public_half() {
        let state = tempfile::TempDir::new().unwrap();
        let key = Key::load_or_make(state.path()).unwrap();
        let mode = |name: &str| fs::metadata(state.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(FILE), 0o600);
        assert_eq!(fs::read_to_string(state.path().join(PUBLIC_FILE)).unwrap().trim(), key.public());
        let again = Key::load_or_make(state.path()).unwrap();
        assert_eq!(again.public(), key.public());
        let (public, signature) = (unhex(key.public()).unwrap(), unhex(&again.sign("text")).unwrap());
        assert!(is_signed(&public, "text", &signature));
        assert!(!is_signed(&public, "Text", &signature));
        assert!(!is_signed(&public[1..], "text", &signature) && !is_signed(&public, "text", &signature[1..]));
    }

    #[test]
    fn a_file_that_is_no_key_is_named_and_left_alone() {
        let state = tempfile::TempDir::new().unwrap();
        fs::write(state.path().join(FILE), "rubbish").unwrap();
        assert!(matches!(Key::load_or_make(state.path()), Err(KeyError::NotAKey(_))));
        assert_eq!(fs::read_to_string(state.path().join(FILE)).unwrap(), "rubbish");
    }
}
