//! `[mqtt.tls]`: MQTT over TLS and over secure WebSocket.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;

use super::document::Diagnostic;
use super::is_loopback;
use super::quantity::SecretSource;
use crate::listener::tls::Identity;

/// `[mqtt.tls]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttTls {
    /// Where MQTT clients connect over TLS.
    #[serde(default)]
    pub listen: Vec<SocketAddr>,
    /// Where MQTT clients connect over WebSocket on TLS, path `/mqtt`.
    #[serde(default)]
    pub websocket_listen: Vec<SocketAddr>,
    /// PEM file with the certificate and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's private key, PEM.
    pub key: SecretSource,
    /// PEM file of the authorities whose certificates clients show.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is turned away: yes with a `client_ca`, unless set.
    pub require_client_certificate: Option<bool>,
    /// Whether the name in its certificate is the client's user name, in place of a password.
    #[serde(default)]
    pub certificate_users: bool,
}

impl MqttTls {
    /// Whether nobody comes in without a certificate.
    pub fn requires_certificate(&self) -> bool {
        self.require_client_certificate.unwrap_or(self.client_ca.is_some())
    }

    /// All addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &SocketAddr> {
        self.listen.iter().chain(&self.websocket_listen)
    }

    /// Whether anybody comes in who shows neither a password, because there are no users, nor a certificate.
    /// `places` are those of the two lists of addresses.
    pub(super) fn check_door(&self, places: &[Range<usize>; 2], diagnostics: &mut Vec<Diagnostic>) {
        if self.requires_certificate() {
            return;
        }
        for (addresses, place) in [&self.listen, &self.websocket_listen].into_iter().zip(places) {
            let Some(address) = addresses.iter().find(|address| !is_loopback(address)) else { continue };
            let message = format!(
                "{address} is reachable from the network, and nobody would need a password or a certificate"
            );
            diagnostics.push(Diagnostic::at(place.clone(), message).help(
                "to let only known users in, add the two lines\n[users]\npanel = { file = \"/etc/tidegate/panel.password\" }\n\
                 or let in who has a certificate, by client_ca = \"PATH\" in [mqtt.tls]",
            ));
        }
    }

    /// Looks at the values and at the files. `place` knows where a key of this table stands.
    pub(super) fn check(&self, place: impl Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        if self.addresses().next().is_none() {
            diagnostics.push(
                Diagnostic::at(place(""), "[mqtt.tls] serves no address")
                    .help("add listen = [\"127.0.0.1:8883\"] or websocket_listen = [\"127.0.0.1:8884\"]"),
            );
        }
        let wants_authority = [
            ("require_client_certificate", self.require_client_certificate == Some(true)),
            ("certificate_users", self.certificate_users),
        ];
        for (key, _) in wants_authority.into_iter().filter(|(_, is_set)| *is_set && self.client_ca.is_none())
        {
            diagnostics.push(
                Diagnostic::at(place(key), format!("{key} needs to know whose certificates to believe"))
                    .help("add client_ca = \"PATH\", the PEM file of the authority that signs them"),
            );
        }
        for fault in Identity::load(self).err().unwrap_or_default() {
            let mistake = Diagnostic::at(place(fault.key), fault.message);
            diagnostics.push(match fault.help {
                Some(help) => mistake.help(help),
                None => mistake,
            });
        }
    }
}
