//! Who may come in from beyond loopback: names and passwords, the same for MQTT and the page.

pub mod acl;
pub mod password;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mqtt::access::{Access, ConnectRequest, Peer, Principal, Transport, Verdict};
use mqtt::{Filter, ReasonCode, Topic};
use ring::hmac;
use ring::rand::SystemRandom;

use self::acl::{Acl, Right, Rule};
use self::password::Password;
use crate::config::quantity::SecretSource;

/// The known users and what they may do. Cheap to clone; every clone sees a reload.
#[derive(Debug, Clone, Default)]
pub struct Users(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Asked by the broker's thread on every CONNECT and, where there are rules, on every message; written only by a
    /// reload.
    known: RwLock<Known>,
    /// Whether there are rules: asked for every delivery.
    has_rules: AtomicBool,
    /// Held by whoever works out a hash: one at a time, whoever else tries waits.
    hashing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    users: BTreeMap<String, Password>,
    acl: Acl,
    seen: Option<Seen>,
}

/// Passwords that were right since the last reload, as sums under a key that nobody else knows: a hash is worked out once.
struct Seen {
    key: hmac::Key,
    sums: Mutex<HashSet<Vec<u8>>>,
}

/// What is known of a password without working anything out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guess {
    Right,
    Wrong,
    /// It has to be worked out.
    Unknown,
}

impl Users {
    /// Reads passwords and rules anew. On an error everything stays as it was.
    ///
    /// # Errors
    /// Says whose password could not be read, or which rule cannot be meant.
    pub fn load(&self, sources: &BTreeMap<String, SecretSource>, rules: &[Rule]) -> Result<(), String> {
        let users = sources
            .iter()
            .map(|(name, source)| {
                let password = source.read().and_then(Password::read);
                Ok((name.clone(), password.map_err(|error| format!("user {name}: {error}"))?))
            })
            .collect::<Result<BTreeMap<_, _>, String>>()?;
        let acl = Acl::new(rules)?;
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let seen = key.ok().map(|key| Seen { key, sums: Mutex::default() });
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        self.0.has_rules.store(!acl.is_open(), Ordering::Relaxed);
        *known = Known { users, acl, seen };
        Ok(())
    }

    /// Whether name and password belong together, for somebody who must not wait.
    fn guess(&self, name: &str, password: &[u8]) -> Guess {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let guess = |is_right| if is_right { Guess::Right } else { Guess::Wrong };
        match known.users.get(name) {
            None => Guess::Wrong,
            Some(kept) if !kept.is_slow() => guess(kept.is(password)),
            Some(_) if known.seen.as_ref().is_some_and(|seen| seen.has(name, password)) => Guess::Right,
            Some(_) => Guess::Unknown,
        }
    }

    /// Whether name and password belong together, worked out where it has to be: not on a thread that others wait for.
    pub fn is_password(&self, name: &str, password: &[u8]) -> bool {
        match self.guess(name, password) {
            Guess::Right => return true,
            Guess::Wrong => return false,
            Guess::Unknown => {}
        }
        let _one_at_a_time = self.0.hashing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.0.known.read().unwrap_or_else(PoisonError::into_inner).users.get(name).cloned();
        let is_right = kept.is_some_and(|kept| kept.is(password));
        if is_right {
            let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = &known.seen {
                seen.note(name, password);
            }
        }
        is_right
    }

    fn is_name(&self, name: &str) -> bool {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).users.contains_key(name)
    }

    fn may(&self, right: Right, who: &Principal, name: &str) -> bool {
        if !self.0.has_rules.load(Ordering::Relaxed) {
            return true;
        }
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        known.acl.decide(right, who.user.as_deref(), &who.client_id, name).is_allowed()
    }
}

impl Seen {
    fn sum(&self, name: &str, password: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(name.len() as u64).to_be_bytes());
        context.update(name.as_bytes());
        context.update(password);
        context.sign().as_ref().to_vec()
    }

    fn has(&self, name: &str, password: &[u8]) -> bool {
        let sum = self.sum(name, password);
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).contains(&sum)
    }

    /// One a user: there is one right password.
    fn note(&self, name: &str, password: &[u8]) {
        let sum = self.sum(name, password);
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).insert(sum);
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Access for Users {
    /// Anonymous over loopback and over a plain WebSocket, whose upgrade was already checked; known users elsewhere. A
    /// name of ours with a wrong password is refused everywhere.
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        let Peer { address, transport, user, .. } = request.peer;
        let is_let_in = matches!(transport, Transport::Memory | Transport::WebSocket)
            || address.is_none_or(|address| address.ip().to_canonical().is_loopback());
        match (request.user, request.password) {
            (Some(name), Some(password)) => match self.guess(name, password) {
                Guess::Right => Verdict::Accept(Some(name.into())),
                Guess::Unknown => Verdict::Later,
                Guess::Wrong if is_let_in && !self.is_name(name) => Verdict::Accept(user.clone()),
                Guess::Wrong => Verdict::Refuse(ReasonCode::BAD_CREDENTIALS),
            },
            _ if is_let_in => Verdict::Accept(user.clone()),
            _ => Verdict::Refuse(ReasonCode::NOT_AUTHORIZED),
        }
    }

    fn may_publish(&self, who: &Principal, topic: &Topic, _: bool) -> bool {
        self.may(Right::Publish, who, topic.as_str())
    }

    fn may_subscribe(&self, who: &Principal, filter: &Filter) -> bool {
        self.may(Right::Subscribe, who, filter.pattern())
    }

    fn may_receive(&self, who: &Principal, topic: &Topic) -> bool {
        self.may(Right::Subscribe, who, topic.as_str())
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
            .load(&BTreeMap::from([("panel".to_owned(), SecretSource::File(file.path().to_owned()))]), &[])
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
        assert!(users.is_password("panel", b"secret") && !users.is_password("", b""));
        // Over loopback everybody comes in, but not under a name of ours; one that is not ours is no name.
        assert_eq!(verdict(own, Some("panel"), Some("x")), Verdict::Refuse(ReasonCode::BAD_CREDENTIALS));
        assert_eq!(verdict(own, Some("other"), Some("x")), Verdict::Accept(None));
        // A reload that fails leaves the users as they were.
        assert!(
            users
                .load(&BTreeMap::from([("x".to_owned(), SecretSource::File("/nonexistent".into()))]), &[])
                .is_err()
        );
        assert!(users.is_password("panel", b"secret"));
    }

    #[test]
    fn a_hash_is_worked_out_once_and_rules_are_asked_about_everything() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), password::hash(b"secret", [1; 16]).unwrap()).unwrap();
        let users = Users::default();
        let sources = BTreeMap::from([("panel".to_owned(), SecretSource::File(file.path().to_owned()))]);
        let rule =
            Rule { users: vec!["panel".into()], publish: vec!["a/%c".into()], subscribe: vec!["b/#".into()] };
        users.load(&sources, std::slice::from_ref(&rule)).unwrap();
        assert_eq!(users.guess("panel", b"secret"), Guess::Unknown);
        assert!(!users.is_password("panel", b"other") && users.is_password("panel", b"secret"));
        assert_eq!(users.guess("panel", b"secret"), Guess::Right);
        assert_eq!(users.guess("panel", b"other"), Guess::Unknown);
        assert_eq!(users.guess("other", b"secret"), Guess::Wrong);
        let who = |user: Option<&str>| Principal { user: user.map(Into::into), client_id: "c".into() };
        let (topic, filter) =
            (|text: &str| Topic::new(text).unwrap(), |text: &str| Filter::new(text).unwrap());
        assert!(users.may_publish(&who(Some("panel")), &topic("a/c"), true));
        assert!(!users.may_publish(&who(Some("panel")), &topic("a/d"), false));
        assert!(!users.may_publish(&who(None), &topic("a/c"), false));
        assert!(users.may_subscribe(&who(Some("panel")), &filter("$share/g/b/+")));
        assert!(!users.may_subscribe(&who(Some("panel")), &filter("#")));
        assert!(
            users.may_receive(&who(Some("panel")), &topic("b/x"))
                && !users.may_receive(&who(None), &topic("b/x"))
        );
        // After a reload what was known is asked again.
        users.load(&sources, &[]).unwrap();
        assert_eq!(users.guess("panel", b"secret"), Guess::Unknown);
        assert!(users.may_publish(&who(None), &topic("a/c"), false));
    }
}
