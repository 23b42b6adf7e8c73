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
            Verdict::Refuse(ReasonCode::NOT_AUTHORIZED)
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
