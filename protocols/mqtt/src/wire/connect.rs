//! CONNECT (MQTT 5.0 §3.1, 3.1.1 §3.1, and 3.1): the packet that says which protocol follows.

use std::time::Duration;

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::Property;

use super::properties::once;
use super::{Reader, Version, decode_message_properties, read_properties};
use crate::{Message, Qos, ReasonCode, Topic};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) clean_start: bool,
    /// Zero is off.
    pub(crate) keep_alive_secs: u16,
    pub(crate) client_id: String,
    pub(crate) will: Option<Will>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    /// How long the session is to outlive the connection; `None` is for ever.
    pub(crate) session_expiry: Option<Duration>,
    pub(crate) receive_maximum: u16,
    pub(crate) maximum_packet: u32,
    /// How many topic aliases the client takes.
    pub(crate) topic_aliases: u16,
    pub(crate) wants_authentication: bool,
}

/// The message to publish when the client is gone without saying so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Will {
    pub(crate) message: Message,
    pub(crate) delay: Duration,
}

/// Why a CONNECT cannot be taken, and in which version's words to say so; `None` closes without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectError {
    pub(crate) version: Option<Version>,
    pub(crate) reason: ReasonCode,
}

impl Connect {
    pub(crate) fn read(body: &[u8]) -> Result<Self, ConnectError> {
        let mut reader = Reader(body);
        let version = read_version(&mut reader)?;
        Self::read_rest(version, reader).map_err(|reason| ConnectError { version: Some(version), reason })
    }

    fn read_rest(version: Version, mut reader: Reader<'_>) -> Result<Self, ReasonCode> {
        let flags = reader.byte()?;
        let [clean_start, has_will, will_retain, has_password, has_user] =
            [0x02, 0x04, 0x20, 0x40, 0x80].map(|bit| flags & bit != 0);
        let will_qos = Qos::new((flags >> 3) & 3).ok_or(ReasonCode::MALFORMED_PACKET)?;
        // The reserved bit is zero [MQTT-3.1.2-3]; without a will its other flags are zero [MQTT-3.1.2-11, -13].
        if flags & 1 != 0 || (!has_will && flags & 0x38 != 0) {
            return Err(ReasonCode::MALFORMED_PACKET);
        }
        // A password without a user name is allowed since 5.0.
        if has_password && !has_user && version != Version::V5 {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        let keep_alive_secs = reader.number()?;

        let mut session_expiry = None;
        let mut receive_maximum = None;
        let mut maximum_packet = None;
        let mut topic_alias_maximum = None;
        let mut method = None;
        let mut method_data = None;
        let mut wants_response_information = None;
        let mut wants_problem_information = None;
        if version == Version::V5 {
            read_properties(reader.properties()?, |property| {
                match property {
                    Property::SessionExpiryInterval(value) => once(&mut session_expiry, value.val())?,
                    Property::ReceiveMaximum(value) => once(&mut receive_maximum, value.val())?,
                    Property::MaximumPacketSize(value) => once(&mut maximum_packet, value.val())?,
                    Property::TopicAliasMaximum(value) => once(&mut topic_alias_maximum, value.val())?,
                    Property::AuthenticationMethod(_) => once(&mut method, ())?,
                    Property::AuthenticationData(_) => once(&mut method_data, ())?,
                    Property::RequestResponseInformation(_) => once(&mut wants_response_information, ())?,
                    Property::RequestProblemInformation(_) => once(&mut wants_problem_information, ())?,
                    Property::UserProperty(_) => {}
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
        }
        // Data for a method that is not named belong to nothing (MQTT 5.0 §3.1.2.11.10).
        if receive_maximum == Some(0)
            || maximum_packet == Some(0)
            || (method_data.is_some() && method.is_none())
        {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }

        let client_id = reader.text()?.to_owned();
        let will = if has_will {
            let (properties, extras) = if version == Version::V5 {
                decode_message_properties(reader.properties()?)?
            } else {
                <_>::default()
            };
            if extras.topic_alias.is_some() || !extras.subscription_ids.is_empty() {
                return Err(ReasonCode::PROTOCOL_ERROR);
            }
            let topic = Topic::new(reader.text()?).map_err(|_| ReasonCode::TOPIC_INVALID)?;
            let payload = Bytes::copy_from_slice(reader.binary()?);
            let delay = Duration::from_secs(u64::from(extras.will_delay.unwrap_or(0)));
            Some(Will {
                message: Message { topic, payload, qos: will_qos, retain: will_retain, properties },
                delay,
            })
        } else {
            None
        };
        let user = has_user.then(|| reader.text()).transpose()?.map(str::to_owned);
        let password = has_password.then(|| reader.binary()).transpose()?.map(<[u8]>::to_vec);
        reader.end()?;

        Ok(Self {
            version,
            clean_start,
            keep_alive_secs,
            client_id,
            will,
            user,
            password,
            session_expiry: match (version, session_expiry) {
                (Version::V5, None) => Some(Duration::ZERO),
                (Version::V5, Some(u32::MAX)) => None,
                (Version::V5, Some(seconds)) => Some(Duration::from_secs(u64::from(seconds))),
                // Before 5.0 the clean-session flag decides both ends [MQTT-3.1.2-4 of 3.1.1].
                _ => clean_start.then_some(Duration::ZERO),
            },
            receive_maximum: receive_maximum.unwrap_or(u16::MAX),
            maximum_packet: maximum_packet.unwrap_or(u32::MAX),
            topic_aliases: topic_alias_maximum.unwrap_or(0),
            wants_authentication: method.is_some(),
        })
    }
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, ConnectError> {
    let unreadable = |reason| ConnectError { version: None, reason };
    let name = reader.binary().map_err(unreadable)?;
    let level = reader.byte().map_err(unreadable)?;
    match (name, level) {
        (b"MQTT", 4) => Ok(Version::V311),
        (b"MQTT", 5) => Ok(Version::V5),
        (b"MQIsdp", 3) => Ok(Version::V31),
        (b"MQTT" | b"MQIsdp", _) => {
            // Answered in the nearest version the client can be expected to read [MQTT-3.1.2-2].
            let version = if level > 5 { Version::V5 } else { Version::V311 };
            Err(ConnectError { version: Some(version), reason: ReasonCode::UNSUPPORTED_VERSION })
        }
        _ => Err(unreadable(ReasonCode::PROTOCOL_ERROR)),
    }
}

#[cfg(test)]
mod tests {
    use mqtt_protocol_core::mqtt::packet::{self, v3_1_1, v5_0};

    use super::*;
    use crate::wire::next_frame;

    fn body(packet: &[u8]) -> Vec<u8> {
        next_frame(Version::V5, packet, 10_000).unwrap().unwrap().body.to_vec()
    }

    #[test]
    fn a_full_version_5_connect_is_read_field_by_field() {
        let packet = v5_0::Connect::builder()
            .client_id("été/+#$")
            .unwrap()
            .clean_start(false)
            .keep_alive(30)
            .user_name("u")
            .unwrap()
            .password(b"p".to_vec())
            .unwrap()
            .will_message("will/t", b"bye", packet::Qos::ExactlyOnce, true)
            .unwrap()
            .will_props(vec![packet::WillDelayInterval::new(7).unwrap().into()])
            .props(vec![
                packet::SessionExpiryInterval::new(60).unwrap().into(),
                packet::ReceiveMaximum::new(9).unwrap().into(),
            ])
            .build()
            .unwrap();
        let connect = Connect::read(&body(&packet.to_continuous_buffer())).unwrap();
        assert_eq!(connect.version, Version::V5);
        assert_eq!((connect.client_id.as_str(), connect.clean_start), ("été/+#$", false));
        assert_eq!((connect.keep_alive_secs, connect.receive_maximum), (30, 9));
        assert_eq!((connect.user.as_deref(), connect.password.as_deref()), (Some("u"), Some(&b"p"[..])));
        assert_eq!(connect.session_expiry, Some(Duration::from_secs(60)));
        let will = connect.will.unwrap();
        assert_eq!((will.message.topic.as_str(), &will.message.payload[..]), ("will/t", &b"bye"[..]));
        assert_eq!((will.message.qos, will.message.retain), (Qos::ExactlyOnce, true));
        assert_eq!(will.delay, Duration::from_secs(7));
    }

    #[test]
    fn mqtt_3_1_is_read_like_3_1_1() {
        let packet =
            v3_1_1::Connect::builder().client_id("old").unwrap().clean_session(true).build().unwrap();
        let mut old = b"\x00\x06MQIsdp\x03".to_vec();
        old.extend_from_slice(&body(&packet.to_continuous_buffer())[7..]);
        let connect = Connect::read(&old).unwrap();
        assert_eq!((connect.version, connect.client_id.as_str()), (Version::V31, "old"));
        assert_eq!(connect.session_expiry, Some(Duration::ZERO));
    }

    #[test]
    fn connects_that_break_the_rules_are_refused_with_the_version_to_answer_in() {
        let head = |level: u8, flags: u8| {
            let mut bytes = b"\x00\x04MQTT".to_vec();
            bytes.extend_from_slice(&[level, flags, 0, 0]);
            bytes.extend_from_slice(b"\x00\x01c");
            bytes
        };
        let error = |bytes: &[u8]| {
            let error = Connect::read(bytes).unwrap_err();
            (error.version, error.reason)
        };
        assert_eq!(error(&head(4, 0x01)), (Some(Version::V311), ReasonCode::MALFORMED_PACKET));
        assert_eq!(error(&head(4, 0x18)), (Some(Version::V311), ReasonCode::MALFORMED_PACKET));
        assert_eq!(error(&head(4, 0x40)), (Some(Version::V311), ReasonCode::PROTOCOL_ERROR));
        assert_eq!(error(&head(9, 0x02)), (Some(Version::V5), ReasonCode::UNSUPPORTED_VERSION));
        assert_eq!(error(&head(2, 0x02)), (Some(Version::V311), ReasonCode::UNSUPPORTED_VERSION));
        assert_eq!(error(b"\x00\x04HTTP\x04"), (None, ReasonCode::PROTOCOL_ERROR));
    }
}
