//! The ledger: the gateway signs now and then what it gave out, and anybody can say of what a consumer stored whether
//! it is complete, and if not, what is missing, doubled or altered. `gateway/LEDGER.md` describes the format.

mod entry;
mod keeper;
mod key;
mod line;
mod manifest;
mod received;
mod verify;

pub use keeper::Keeper;
pub use key::Key;
pub use received::{Tally, read};
pub use verify::{Book, Findings, Verdict};

/// Whether `text` is a public key: 64 hex digits.
pub fn is_key(text: &str) -> bool {
    text.len() == 64 && line::unhex(text).is_some()
}
