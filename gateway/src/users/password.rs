//! Passwords: as they are, or as the hash that `tidegate passwd` makes (Argon2id, RFC 9106, in the PHC string format).

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use crate::config::quantity::Secret;

/// How a user's password is known.
#[derive(Debug, Clone)]
pub enum Password {
    /// The password itself.
    Plain(Secret),
    /// Its hash.
    Hashed(Hashed),
}

/// An Argon2id hash with its salt and cost.
#[derive(Clone)]
pub struct Hashed {
    params: Params,
    salt: Vec<u8>,
    hash: Secret,
}

impl Password {
    /// Takes what a password file holds.
    ///
    /// # Errors
    /// It begins as a hash does, and is none that is known here.
    pub fn read(secret: Secret) -> Result<Self, String> {
        match std::str::from_utf8(secret.expose()) {
            Ok(text) if text.starts_with("$argon2") => Ok(Self::Hashed(Hashed::parse(text)?)),
            Ok(text) if text.starts_with('$') && text.matches('$').count() > 2 => {
                Err("a hash of a kind that is not known here: make one with `tidegate passwd`".into())
            }
            _ => Ok(Self::Plain(secret)),
        }
    }

    /// Whether finding out takes so long that nobody else should wait for it.
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::Hashed(_))
    }

    /// Whether this is the password.
    pub fn is(&self, candidate: &[u8]) -> bool {
        match self {
            Self::Plain(secret) => secret.is(candidate),
            Self::Hashed(hashed) => hashed.is(candidate),
        }
    }
}

impl Hashed {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = || "not an Argon2id hash: make one with `tidegate passwd`".to_owned();
        let parts: Vec<&str> = text.trim_end().split('$').collect();
        let ["", "argon2id", "v=19", costs, salt, hash] = parts[..] else { return Err(bad()) };
        let cost = |name: &str| {
            let found = costs.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|number| number.parse::<u32>().ok()).ok_or_else(bad)
        };
        let (memory_kib, passes, lanes) = (cost("m")?, cost("t")?, cost("p")?);
        if memory_kib > MAX_MEMORY_KIB || passes > MAX_PASSES || lanes > 16 {
            return Err(format!(
                "a hash that takes too long here: at most m={MAX_MEMORY_KIB}, t={MAX_PASSES}, p=16"
            ));
        }
        let (salt, hash) = (BASE64.decode(salt), BASE64.decode(hash));
        let (Ok(salt), Ok(hash)) = (salt, hash) else { return Err(bad()) };
        let params = Params::new(memory_kib, passes, lanes, Some(hash.len())).map_err(|_| bad())?;
        if salt.len() < 8 || hash.len() < 16 {
            return Err(bad());
        }
        Ok(Self { params, salt, hash: Secret::new(hash) })
    }

    fn is(&self, candidate: &[u8]) -> bool {
        let mut hash = vec![0; self.hash.expose().len()];
        work_out(&self.params, candidate, &self.salt, &mut hash).is_ok() && self.hash.is(&hash)
    }
}

impl std::fmt::Debug for Hashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The hash of a password, to be put into its file.
///
/// # Errors
/// The system has no randomness to give.
pub fn hash(password: &[u8], salt: [u8; 16]) -> Result<String, String> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(32)).map_err(|error| error.to_string())?;
    let mut hash = [0; 32];
    work_out(&params, password, &salt, &mut hash).map_err(|error| error.to_string())?;
    let (salt, hash) = (BASE64.encode(salt), BASE64.encode(hash));
    Ok(format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1${salt}${hash}"))
}

fn work_out(params: &Params, password: &[u8], salt: &[u8], hash: &mut [u8]) -> argon2::Result<()> {
    let mut memory = vec![Block::default(); params.block_count()];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
        .hash_password_into_with_memory(password, salt, hash, &mut memory)
}

/// 9 MiB and four passes: one of the equal choices of OWASP's password storage cheat sheet, the one for little memory.
const MEMORY_KIB: u32 = 9 * 1024;
const PASSES: u32 = 4;
/// What a file may ask for.
const MAX_MEMORY_KIB: u32 = 64 * 1024;
const MAX_PASSES: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Password, String> {
        Password::read(Secret::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_hash_knows_its_password_and_no_other_and_shows_nothing() {
        let text = hash(b"secret", [7; 16]).unwrap();
        let password = read(&text).unwrap();
        assert!(password.is_slow() && password.is(b"secret") && !password.is(b"secres") && !password.is(b""));
        assert!(!format!("{password:?}").contains(&text[40..]));
        assert!(read("secret").unwrap().is(b"secret") && !read("secret").unwrap().is_slow());
    }

    #[test]
    fn a_hash_of_another_program_is_read() {
        // By Python's `cryptography`: Argon2id(salt=b"somesalt", length=24, iterations=2, lanes=4, memory_cost=4096).
        let password =
            read("$argon2id$v=19$m=4096,t=2,p=4$c29tZXNhbHQ$fIEOgF+gNYXrcSpV52+wxSovXdH9iYrU").unwrap();
        assert!(password.is(b"password") && !password.is(b"passwore"));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for text in [
            "$argon2id$v=19$m=1,t=1,p=1$c29tZXNhbHQ",
            "$argon2i$v=19$m=65536,t=2,p=4$c29tZXNhbHQ$4aIq+GOdDIbFgMSvNUjFF2bL2CyL+1Iv",
            "$argon2id$v=19$m=4000000,t=2,p=4$c29tZXNhbHQ$4aIq+GOdDIbFgMSvNUjFF2bL2CyL+1Iv",
            "$argon2id$v=19$m=65536,t=2,p=4$c29tZXNhbHQ$!!!",
            "$6$salt$hash",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn any_password_file_survives_mutated_input() {
        let corpus = vec![hash(b"secret", [7; 16]).unwrap().into_bytes(), b"plain".to_vec()];
        crate::fuzz::mutated("password-file", corpus, |input| {
            let _ = Password::read(Secret::new(input.to_vec()));
        });
    }
}
