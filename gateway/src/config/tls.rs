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

#[cfg(test)]
mod tests {
    use super::super::Config;

    const FILES: &str = "certificate = \"/nowhere.pem\"\nkey = { file = \"/nowhere.key\" }\n";

    /// Line, message and help of every mistake.
    fn mistakes(lines: &str) -> Vec<(usize, String, String)> {
        let rejected = Config::parse(&format!("[mqtt.tls]\n{FILES}{lines}")).expect_err("it is wrong");
        let line = |span: &Option<std::ops::Range<usize>>| {
            span.as_ref().and_then(|span| rejected.sources.locate(span.start)).map_or(0, |at| at.1)
        };
        let told = rejected.diagnostics.iter();
        told.map(|mistake| {
            (line(&mistake.span), mistake.message.clone(), mistake.help.clone().unwrap_or_default())
        })
        .collect()
    }

    #[test]
    fn mistakes_about_tls_point_at_their_lines_and_say_what_to_do() {
        let found = mistakes("certificate_users = true\nrequire_client_certificate = true\n");
        for (line, message, help) in [
            (1, "serves no address", "listen = [\"127.0.0.1:8883\"]"),
            (2, "/nowhere.pem", ""),
            (3, "/nowhere.key", ""),
            (4, "certificate_users needs", "client_ca = "),
            (5, "require_client_certificate needs", "client_ca = "),
        ] {
            let is_there = |(at, text, advice): &(usize, String, String)| {
                *at == line && text.contains(message) && advice.contains(help)
            };
            assert!(found.iter().any(is_there), "{line}: {message} is not in {found:#?}");
        }
        assert_eq!(found.len(), 5, "{found:#?}");
    }

    #[test]
    fn tls_beyond_loopback_needs_users_or_certificates_of_clients() {
        for key in ["listen", "websocket_listen"] {
            let open = format!("{key} = [\"127.0.0.1:0\", \"0.0.0.0:8883\"]\n");
            let is_refused = |lines: &str| {
                let refusal = "0.0.0.0:8883 is reachable from the network";
                mistakes(&format!("{open}{lines}")).iter().any(|(line, message, help)| {
                    *line == 4
                        && message.starts_with(refusal)
                        && help.contains("[users]")
                        && help.contains("client_ca")
                })
            };
            assert!(is_refused(""));
            assert!(is_refused("client_ca = \"/nowhere.pem\"\nrequire_client_certificate = false\n"));
            assert!(!is_refused("client_ca = \"/nowhere.pem\"\n"));
            assert!(!is_refused("[users]\npanel = { credential = \"x\" }\n"));
        }
    }
}
