//! Who may come in from beyond loopback: names and passwords, the same for MQTT and the page.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use mqtt::access::{Access, ConnectRequest, Peer, Principal, Transport, Verdict};
use mqtt::{Filter, ReasonCode, Topic};

use crate::config::quantity::{Secret, SecretSource};

/// The known users. Cheap to clone; every clone sees a reload.
#[derive(Debug, Clone, Default)]
pub struct Users(
    /// Shared with the broker's thread, which asks on every CONNECT; written only by a reload.
    Arc<RwLock<BTreeMap<String, Secret>>>,
);

impl Users {
    /// Reads the passwords anew. On an error the users stay as they were.
    ///
    /// # Errors
    /// Says whose password could not be read.
    pub fn load(&self, sources: &BTreeMap<String, SecretSource>) -> Result<(), String> {
        let users = sources
            .iter()
            .map(|(name, source)| {
                Ok((name.clone(), source.read().map_err(|error| format!("user {name}: {error}"))?))
            })
            .collect::<Result<_, String>>()?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = users;
        Ok(())
    }

    /// Whether name and password belong together.
    pub fn is_known(&self, credentials: Option<(String, Vec<u8>)>) -> bool {
        credentials.is_some_and(|(name, password)| self.is_password(&name, &password))
    }

    fn is_password(&self, name: &str, password: &[u8]) -> bool {
        let users = self.0.read().unwrap_or_else(PoisonError::into_inner);
        users.get(name).is_some_and(|secret| secret.is(password))
    }
}

impl Access for Users {
    /// Anonymous over loopback and over a plain WebSocket, whose upgrade was already checked; known users elsewhere. A
    /// wrong password is refused everywhere.
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        let Peer { address, transport, .. } = request.peer;
        let is_let_in = matches!(transport, Transport::Memory | Transport::WebSocket)
            || address.is_none_or(|address| address.ip().to_canonical().is_loopback());
        match (request.user, request.password) {
            (Some(user), Some(password)) if self.is_password(user, password) => {
                Verdict::Accept(Some(user.into()))
            }
            _ if is_let_in => Verdict::Accept(None),
            (Some(_), Some(_)) => Verdict::Refuse(ReasonCode::BAD_CREDENTIALS),
            _ => Verdict::Refuse(ReasonCode::NOT_AUTHORIZED),
        }
    }

    fn may_publish(&self, _: &Principal, _: &Topic, _: bool) -> bool {
        true
    }

    fn may_subscribe(&self, _: &Principal, _: &Filter) -> bool {
        true
    }

    fn may_receive(&self, _: &Principal, _: &Topic) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use mqtt::Version;

    use super::*;

    #[test]
    fn beyond_loopback_only_the_right_name_with_the_right_password_comes_in() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let users = Users::default();
        users
            .load(&BTreeMap::from([("panel".to_owned(), SecretSource::File(file.path().to_owned()))]))
            .unwrap();
        let verdict = |address: &str, user: Option<&str>, password: Option<&str>| {
            let peer = Peer::new(Some(address.parse().unwrap()), Transport::Tcp);
            let password = password.map(str::as_bytes);
            users.connect(&ConnectRequest {
                peer: &peer,
                version: Version::V5,
                client_id: "c",
                user,
                password,
            })
        };
        let (lan, own) = ("192.0.2.7:4711", "127.0.0.1:4711");
        assert_eq!(verdict(lan, Some("panel"), Some("secret")), Verdict::Accept(Some("panel".into())));
        assert_eq!(verdict(own, None, None), Verdict::Accept(None));
        assert_eq!(verdict("[::ffff:127.0.0.1]:4711", None, None), Verdict::Accept(None));
        assert_eq!(verdict(lan, None, None), Verdict::Refuse(ReasonCode::NOT_AUTHORIZED));
        for (user, password) in [("panel", "secre"), ("panel", "secret2"), ("other", "secret"), ("", "")] {
            let refused = Verdict::Refuse(ReasonCode::BAD_CREDENTIALS);
            assert_eq!(verdict(lan, Some(user), Some(password)), refused, "{user}");
        }
        assert!(users.is_known(Some(("panel".into(), b"secret".to_vec()))) && !users.is_known(None));
        // A reload that fails leaves the users as they were.
        assert!(
            users
                .load(&BTreeMap::from([("x".to_owned(), SecretSource::File("/nonexistent".into()))]))
                .is_err()
        );
        assert!(users.is_known(Some(("panel".into(), b"secret".to_vec()))));
    }
}
