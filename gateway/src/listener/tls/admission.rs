//! Who is let in because of a certificate: asked before anybody asks for a password.

use mqtt::access::{Access, ConnectRequest, Principal, Verdict};
use mqtt::{Filter, ReasonCode, Topic};

use super::Identity;

/// The rules of `[mqtt.tls]` in front of other rules.
pub struct ByCertificate<A> {
    identity: Identity,
    others: A,
}

impl<A: Access> ByCertificate<A> {
    /// Whom no certificate lets in, `others` decide about; and about what anybody may do.
    pub fn or(identity: Identity, others: A) -> Self {
        Self { identity, others }
    }
}

impl<A: Access> Access for ByCertificate<A> {
    /// With `certificate_users`, the certificate says who it is, whatever CONNECT says. Else a certificate that nobody
    /// comes in without stands for the password, but not for a wrong one, and the client stays anonymous.
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        let certificate = request.peer.certificate.as_ref();
        if let Some(name) = certificate
            && self.identity.has_certificate_users()
        {
            return Verdict::Accept(Some(name.clone()));
        }
        match self.others.connect(request) {
            Verdict::Refuse(ReasonCode::NOT_AUTHORIZED | ReasonCode::BAD_CREDENTIALS)
                if certificate.is_some()
                    && self.identity.requires_certificate()
                    && request.password.is_none() =>
            {
                Verdict::Accept(None)
            }
            verdict => verdict,
        }
    }

    fn may_publish(&self, who: &Principal, topic: &Topic, retain: bool) -> bool {
        self.others.may_publish(who, topic, retain)
    }

    fn may_subscribe(&self, who: &Principal, filter: &Filter) -> bool {
        self.others.may_subscribe(who, filter)
    }

    fn may_receive(&self, who: &Principal, topic: &Topic) -> bool {
        self.others.may_receive(who, topic)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mqtt::Version;
    use mqtt::access::{Peer, Transport};

    use super::*;
    use crate::config::quantity::SecretSource;
    use crate::listener::tls::identity::tests::Files;
    use crate::users::Users;

    /// What becomes of a client beyond loopback, with that name in its certificate and these words in CONNECT.
    fn verdicts(lines: &str) -> impl Fn(Option<&str>, Option<(&str, &str)>) -> Verdict {
        let files = Files::new();
        let password = files.write("password", "secret\n");
        let users = Users::default();
        users.load(&BTreeMap::from([("panel".to_owned(), SecretSource::File(password))]), &[]).unwrap();
        let access = ByCertificate::or(Identity::load(&files.settings(lines)).unwrap(), users);
        move |certificate, words| {
            let address = Some("192.0.2.7:4711".parse().unwrap());
            let verdict = |transport| {
                let peer = Peer { certificate: certificate.map(Into::into), ..Peer::new(address, transport) };
                access.connect(&ConnectRequest {
                    peer: &peer,
                    version: Version::V5,
                    client_id: "c",
                    user: words.map(|(user, _)| user),
                    password: words.map(|(_, password)| password.as_bytes()),
                })
            };
            let over_tls = verdict(Transport::Tls);
            assert_eq!(over_tls, verdict(Transport::SecureWebSocket), "a WebSocket is no other door");
            over_tls
        }
    }

    fn known(name: &str) -> Verdict {
        Verdict::Accept(Some(name.into()))
    }

    #[test]
    fn without_certificates_tls_asks_for_a_password_like_tcp() {
        let verdict = verdicts("");
        assert_eq!(verdict(None, Some(("panel", "secret"))), known("panel"));
        assert_eq!(verdict(None, Some(("panel", "wrong"))), Verdict::Refuse(ReasonCode::BAD_CREDENTIALS));
        assert_eq!(verdict(None, None), Verdict::Refuse(ReasonCode::NOT_AUTHORIZED));
    }

    #[test]
    fn where_certificates_name_users_the_certificate_says_who_it_is() {
        let verdict = verdicts(
            "client_ca = \"server.pem\"\nrequire_client_certificate = false\ncertificate_users = true\n",
        );
        assert_eq!(verdict(Some("tablet"), None), known("tablet"));
        assert_eq!(verdict(Some("tablet"), Some(("panel", "wrong"))), known("tablet"));
        // Who shows none has to give a password.
        assert_eq!(verdict(None, Some(("panel", "secret"))), known("panel"));
        assert_eq!(verdict(None, None), Verdict::Refuse(ReasonCode::NOT_AUTHORIZED));
    }

    #[test]
    fn a_certificate_that_nobody_comes_in_without_stands_for_a_password_but_not_for_a_wrong_one() {
        let verdict = verdicts("client_ca = \"server.pem\"\n");
        assert_eq!(verdict(Some("tablet"), None), Verdict::Accept(None));
        assert_eq!(verdict(Some("tablet"), Some(("panel", "secret"))), known("panel"));
        let refused = Verdict::Refuse(ReasonCode::BAD_CREDENTIALS);
        assert_eq!(verdict(Some("tablet"), Some(("panel", "wrong"))), refused);
    }

    #[test]
    fn a_certificate_that_is_merely_allowed_opens_nothing() {
        let verdict = verdicts("client_ca = \"server.pem\"\nrequire_client_certificate = false\n");
        assert_eq!(verdict(Some("tablet"), None), Verdict::Refuse(ReasonCode::NOT_AUTHORIZED));
    }
}
