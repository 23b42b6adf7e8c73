//! Claims-based security, as Azure's Event Hubs, Service Bus and IoT Hub want it: a shared-access token, signed by a
//! key that never leaves the gateway, is put to the node `$cbs` (OASIS AMQP Claims-based Security 1.0 §4.1 and
//! §5.1 "put-token"; the token's form is Azure's "Shared Access Signature"), and put again before it runs out.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fe2o3_amqp::link::{Receiver, Sender};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Message, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use ring::hmac;
use serde::Deserialize;

use crate::config::quantity::{Secret, SecretSource};

/// `sas = { resource = …, policy = …, key = … }`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sas {
    /// What the token is for: `sb://NAMESPACE.servicebus.windows.net/HUB`, `HUB.azure-devices.net/devices/DEVICE`.
    pub resource: String,
    /// The name of the key ("shared access policy"); a device of an IoT Hub has none.
    pub policy: Option<String>,
    /// The key, as the portal shows it.
    pub key: SecretSource,
    /// Whether the key is base64 of the bytes to sign with, as IoT Hub's are. Event Hubs and Service Bus sign with the
    /// text itself.
    #[serde(default)]
    pub key_is_base64: bool,
    /// How long a token holds; it is renewed after three quarters of that.
    #[serde(default = "default_lifetime")]
    pub lifetime: drivers::Period,
}

impl Sas {
    /// What is wrong with it.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.key.read() {
            Ok(key) => problems.extend(self.signing_key(&key).err().map(|error| format!("sas.key: {error}"))),
            Err(error) => problems.push(error),
        }
        if self.resource.is_empty() {
            problems.push("sas.resource is empty".into());
        }
        if !(Duration::from_secs(2)..=Duration::from_secs(7 * 24 * 3600)).contains(&self.lifetime.0) {
            problems.push("sas.lifetime out of range: 2s to 7d".into());
        }
        problems
    }

    /// After how long a token is put again.
    pub fn renew_after(&self) -> Duration {
        self.lifetime.0 * 3 / 4
    }

    /// A token that holds from `now` on.
    ///
    /// # Errors
    /// The key cannot be read.
    pub fn token(&self, now: SystemTime) -> anyhow::Result<String> {
        let key = self.key.read().map_err(|error| anyhow::anyhow!(error))?;
        let key = self.signing_key(&key)?;
        let expiry =
            (now + self.lifetime.0).duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        Ok(sign(&self.resource, self.policy.as_deref(), &key, expiry.as_secs()))
    }

    fn signing_key(&self, key: &Secret) -> anyhow::Result<Vec<u8>> {
        if self.key_is_base64 {
            STANDARD.decode(key.expose()).context("not base64")
        } else {
            Ok(key.expose().to_vec())
        }
    }
}

fn sign(resource: &str, policy: Option<&str>, key: &[u8], expiry_s: u64) -> String {
    let resource = percent(resource);
    let signed = format!("{resource}\n{expiry_s}");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    let signature = percent(&STANDARD.encode(tag));
    let policy = policy.map(|name| format!("&skn={}", percent(name))).unwrap_or_default();
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry_s}{policy}")
}

/// Percent-encoding of everything that is not unreserved (RFC 3986 §2.3).
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The two links to the node `$cbs` of one connection.
pub struct Cbs {
    requests: Sender,
    replies: Receiver,
    count: u64,
}

impl Cbs {
    /// Attaches both.
    pub async fn attach(session: &mut SessionHandle<()>) -> anyhow::Result<Self> {
        let requests = Sender::attach(session, "cbs-requests", NODE).await.context("$cbs")?;
        let replies = Receiver::builder()
            .name("cbs-replies")
            .source(NODE)
            .target(REPLY_TO)
            .attach(session)
            .await
            .context("$cbs")?;
        Ok(Self { requests, replies, count: 0 })
    }

    /// Puts a token for `sas.resource`; returns when the peer has taken it.
    pub async fn put(&mut self, sas: &Sas) -> anyhow::Result<()> {
        self.count += 1;
        let properties = ApplicationProperties::builder()
            .insert("operation", "put-token")
            .insert("type", "servicebus.windows.net:sastoken")
            .insert("name", sas.resource.as_str())
            .build();
        let message = Message::builder()
            .properties(Properties::builder().message_id(self.count).reply_to(REPLY_TO).build())
            .application_properties(properties)
            .body(Body::Value(AmqpValue(Value::String(sas.token(SystemTime::now())?))))
            .build();
        self.requests.send(message).await?.accepted_or_else(|outcome| anyhow::anyhow!("{outcome:?}"))?;
        let reply = self.replies.recv::<Body<Value>>().await?;
        self.replies.accept(&reply).await?;
        let words = reply.message().application_properties.as_ref();
        let code = words.and_then(|words| match words.get("status-code") {
            Some(SimpleValue::Int(code)) => Some(i64::from(*code)),
            Some(SimpleValue::Long(code)) => Some(*code),
            Some(SimpleValue::Uint(code)) => Some(i64::from(*code)),
            _ => None,
        });
        match code {
            Some(200..=299) => Ok(()),
            code => {
                let text = match words.and_then(|words| words.get("status-description")) {
                    Some(SimpleValue::String(text)) => text.as_str(),
                    _ => "",
                };
                bail!("the peer refused the token: {} {text}", code.unwrap_or_default())
            }
        }
    }
}

fn default_lifetime() -> drivers::Period {
    drivers::Period(Duration::from_secs(3600))
}

const NODE: &str = "$cbs";
const REPLY_TO: &str = "cbs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_as_azure_documents_it() {
        // Reckoned with openssl:
        // printf 'sb%3A%2F%2Fbarn.servicebus.windows.net%2Fhub\n1700000000' | openssl dgst -sha256 -hmac secret -binary | base64
        let token = sign("sb://barn.servicebus.windows.net/hub", Some("send"), b"secret", 1_700_000_000);
        assert_eq!(
            token,
            "SharedAccessSignature sr=sb%3A%2F%2Fbarn.servicebus.windows.net%2Fhub&sig=255ALhPjfVJdYbuPBh3sxaKqpurVhO01CmEbjmwkwKk%3D&se=1700000000&skn=send"
        );
    }
}
