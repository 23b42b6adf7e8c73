//! The house rules that a program can check: where things stand, what they are called, what must not be there.
//!
//! Rules and reasons: gateway/ARCHITECTURE.md.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod prose;
mod rules;
mod tree;
