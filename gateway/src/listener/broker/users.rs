//! Who may use the broker: everyone, or those with a name and a password.

use std::collections::BTreeMap;
use std::sync::Arc;

use mqtt::{Access, ConnectRequest, Filter, Principal, ReasonCode, Topic, Verdict};

/// Known users, each with the right to everything. Nobody is known: then nobody needs a name.
#[derive(Default)]
pub struct Users(BTreeMap<String, Vec<u8>>);

impl Users {
    /// Users by name, with their passwords.
    pub fn new(passwords: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self(passwords.into_iter().collect())
    }
}

impl Access for Users {
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        if self.0.is_empty() {
            return Verdict::Accept(None);
        }
        let name = request.user.unwrap_or_default();
        let given = request.password.unwrap_or_default();
        // An unknown name costs as much time as a wrong password.
        let (expected, is_known) =
            self.0.get(name).map_or((given, false), |password| (password.as_slice(), true));
        if is_same(expected, given) && is_known {
            Verdict::Accept(Some(Arc::from(name)))
        } else {
            Verdict::Refuse(ReasonCode::BAD_CREDENTIALS)
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

/// Compares without telling by its duration where the first difference is.
fn is_same(expected: &[u8], given: &[u8]) -> bool {
    let difference = expected.iter().zip(given).fold(0, |difference, (a, b)| difference | (a ^ b));
    expected.len() == given.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use mqtt::{Peer, Transport, Version};

    use super::*;

    fn verdict(users: &Users, user: Option<&str>, password: Option<&[u8]>) -> Verdict {
        let peer = Peer::new(None, Transport::Memory);
        users.connect(&ConnectRequest { peer: &peer, version: Version::V5, client_id: "c", user, password })
    }

    #[test]
    fn only_the_right_name_with_the_right_password_comes_in() {
        let users = Users::new([("panel".to_owned(), b"secret".to_vec())]);
        assert_eq!(verdict(&users, Some("panel"), Some(b"secret")), Verdict::Accept(Some("panel".into())));
        for (user, password) in [
            (Some("panel"), Some(&b"secre"[..])),
            (Some("panel"), Some(b"secret2")),
            (Some("panel"), None),
            (Some("other"), Some(b"secret")),
            (Some("other"), None),
            (None, None),
        ] {
            assert_eq!(verdict(&users, user, password), Verdict::Refuse(ReasonCode::BAD_CREDENTIALS));
        }
    }

    #[test]
    fn without_users_everyone_comes_in() {
        assert_eq!(verdict(&Users::default(), None, None), Verdict::Accept(None));
    }
}
