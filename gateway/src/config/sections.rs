//! What each section's values have to be, beyond their types.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::document::Diagnostic;
use super::quantity::SecretSource;
use super::{Coap, Gateway, HomeAssistant, Http, Ledger, Mqtt, Spool, bad_name, is_loopback};
use crate::reading::is_name;
use crate::users::acl::Acl;
use crate::users::password::Password;

/// A table whose values are also looked at together.
pub(super) trait Section: Default + serde::de::DeserializeOwned {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>);
}

impl Section for Gateway {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        if !is_name(&self.name) {
            diagnostics.push(Diagnostic::at(place("name"), bad_name(&self.name)));
        }
    }
}

impl Section for Mqtt {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        for filter in &self.forward {
            if let Err(error) = mqtt::Filter::new(filter) {
                diagnostics.push(Diagnostic::at(
                    place("forward"),
                    format!("`{filter}` is not a topic filter: {error}"),
                ));
            }
        }
        if let Err(error) = Acl::new(&self.rules) {
            diagnostics.push(Diagnostic::at(place("rule"), error));
        }
        if !(1..=65_536).contains(&self.max_connections) {
            diagnostics
                .push(Diagnostic::at(place("max_connections"), "max_connections out of range: 1 to 65536"));
        }
        self.limits.check(|key| place(&format!("limits.{key}")), diagnostics);
        if let Some(tls) = &self.tls {
            tls.check(|key| place(format!("tls.{key}").trim_end_matches('.')), diagnostics);
        }
    }
}

impl Section for Coap {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        if let Some(address) = self.listen.iter().find(|address| !is_loopback(address) && !self.public) {
            diagnostics.push(
                Diagnostic::at(place("listen"), format!("{address} is reachable from the network, and plain CoAP has no credentials"))
                    .help("to let everyone there read (nobody can command), add the two lines\n[coap]\npublic = true"),
            );
        }
    }
}

impl Section for Http {
    fn check(&self, _: &dyn Fn(&str) -> Range<usize>, _: &mut Vec<Diagnostic>) {}
}

impl Section for HomeAssistant {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        if let Err(error) = mqtt::Topic::new(&self.prefix) {
            diagnostics
                .push(Diagnostic::at(place("prefix"), format!("`{}` is not a topic: {error}", self.prefix)));
        }
    }
}

impl Section for Spool {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        if self.max_size.0 < MIN_SPOOL {
            diagnostics.push(Diagnostic::at(place("max_size"), "max_size out of range: at least 1MB"));
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&self.rpo.0) {
            diagnostics.push(Diagnostic::at(place("rpo"), "rpo out of range: 10ms to 60s"));
        }
    }
}

impl Section for Ledger {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        if self.interval.0.is_some_and(|interval| !allowed.contains(&interval)) {
            diagnostics
                .push(Diagnostic::at(place("interval"), "interval out of range: 1s to 24h, or \"off\""));
        }
    }
}

impl Section for BTreeMap<String, SecretSource> {
    fn check(&self, place: &dyn Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        for (name, secret) in self {
            if !is_name(name) {
                diagnostics.push(Diagnostic::at(place(name), bad_name(name)));
            }
            if let Err(error) = secret.read().and_then(Password::read) {
                diagnostics.push(Diagnostic::at(place(name), error));
            }
        }
    }
}

const MIN_SPOOL: u64 = 1_000_000;
