//! How a [`super::Client`] introduces itself: CONNECT, written by hand because it is the one packet that differs most
//! between the versions.

use std::ops::RangeInclusive;
use std::time::Duration;

use thiserror::Error;

use crate::Message;
use crate::wire::{Version, encode_message_properties, kind, write_field, write_length};

/// What a client asks of a broker and of itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// The protocol to speak: 3.1.1 or 5.0.
    pub version: Version,
    /// The client id, at most 65,535 bytes; empty asks the broker for one.
    pub client_id: String,
    /// Whether to begin with a new session. `false` resumes the one the broker may have kept.
    pub clean_start: bool,
    /// How long the broker is to keep the session after the connection is lost (5.0); whole seconds.
    pub session_expiry: Duration,
    /// After this long without a packet a PINGREQ is sent; zero is off. Whole seconds, at most 65,535.
    pub keep_alive: Duration,
    /// How long CONNACK and PINGRESP may take before the connection is given up.
    pub response_timeout: Duration,
    /// User name.
    pub user: Option<String>,
    /// Password; before 5.0 only together with a user name.
    pub password: Option<Vec<u8>>,
    /// What the broker publishes when this client is gone without saying so.
    pub will: Option<Message>,
    /// QoS 1 and 2 messages sent and not confirmed, unless the broker's receive maximum is lower.
    pub window: u16,
    /// QoS 1 and 2 messages the broker may have unacknowledged with us (5.0).
    pub receive_maximum: u16,
    /// The largest packet taken, in bytes.
    pub packet_bytes: u32,
    /// Whether a message is acknowledged as it comes, or only by [`super::Client::acknowledge`].
    pub acknowledges_by_itself: bool,
    /// Whether PUBREL follows PUBREC at once, or only [`super::Client::release`].
    pub releases_by_itself: bool,
    /// The packet ids that the client takes for subscriptions and for messages without one of the caller's choice.
    pub own_packet_ids: RangeInclusive<u16>,
}

/// Why options cannot be put into a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OptionsError {
    /// A text or binary field has more than 65,535 bytes.
    #[error("{0} is longer than 65535 bytes")]
    TooLong(&'static str),
    /// A text contains NUL.
    #[error("{0} contains NUL")]
    Nul(&'static str),
    /// A password without a user name, before 5.0.
    #[error("MQTT 3.1.1 knows no password without a user name")]
    PasswordAlone,
    /// MQTT 3.1 is spoken by the broker only.
    #[error("the client speaks MQTT 3.1.1 and 5.0 only")]
    Version,
    /// An empty client id asks for a new session, so it cannot resume one.
    #[error("MQTT 3.1.1 needs a client id to resume a session")]
    NoClientId,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: Version::V5,
            client_id: String::new(),
            clean_start: true,
            session_expiry: Duration::ZERO,
            keep_alive: Duration::from_secs(30),
            response_timeout: Duration::from_secs(10),
            user: None,
            password: None,
            will: None,
            window: 100,
            receive_maximum: 100,
            packet_bytes: 2 << 20,
            acknowledges_by_itself: true,
            releases_by_itself: true,
            own_packet_ids: 1..=u16::MAX,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<(), OptionsError> {
        let too_long = |field, length: usize| {
            if length > usize::from(u16::MAX) { Err(OptionsError::TooLong(field)) } else { Ok(()) }
        };
        too_long("client id", self.client_id.len())?;
        too_long("user name", self.user.as_ref().map_or(0, String::len))?;
        too_long("password", self.password.as_ref().map_or(0, Vec::len))?;
        too_long("will", self.will.as_ref().map_or(0, |will| will.payload.len()))?;
        if self.client_id.contains('\0') {
            return Err(OptionsError::Nul("client id"));
        }
        if self.user.as_ref().is_some_and(|user| user.contains('\0')) {
            return Err(OptionsError::Nul("user name"));
        }
        if self.version == Version::V31 {
            return Err(OptionsError::Version);
        }
        if self.version == Version::V311 && self.password.is_some() && self.user.is_none() {
            return Err(OptionsError::PasswordAlone);
        }
        if self.version == Version::V311 && self.client_id.is_empty() && !self.clean_start {
            return Err(OptionsError::NoClientId);
        }
        Ok(())
    }

    pub(super) fn write_connect(&self, out: &mut Vec<u8>) {
        let is_v5 = self.version == Version::V5;
        let mut body = Vec::with_capacity(64);
        write_field(&mut body, b"MQTT");
        body.push(if is_v5 { 5 } else { 4 });
        let will_flags =
            self.will.as_ref().map_or(0, |will| 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5);
        body.push(
            u8::from(self.clean_start) << 1
                | will_flags
                | u8::from(self.password.is_some()) << 6
                | u8::from(self.user.is_some()) << 7,
        );
        let keep_alive = u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX);
        body.extend_from_slice(&keep_alive.to_be_bytes());
        if is_v5 {
            let mut section = Vec::with_capacity(16);
            let expiry = u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX);
            section.push(0x11);
            section.extend_from_slice(&expiry.to_be_bytes());
            section.push(0x21);
            section.extend_from_slice(&self.receive_maximum.max(1).to_be_bytes());
            section.push(0x27);
            section.extend_from_slice(&self.packet_bytes.max(1).to_be_bytes());
            write_length(&mut body, section.len());
            body.extend_from_slice(&section);
        }
        write_field(&mut body, self.client_id.as_bytes());
        if let Some(will) = &self.will {
            if is_v5 {
                let expiry = will.expiry().map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
                encode_message_properties(&mut body, will.properties.as_deref(), expiry, &[]);
            }
            write_field(&mut body, will.topic.as_str().as_bytes());
            write_field(&mut body, &will.payload);
        }
        if let Some(user) = &self.user {
            write_field(&mut body, user.as_bytes());
        }
        if let Some(password) = &self.password {
            write_field(&mut body, password);
        }
        out.push(kind::CONNECT << 4);
        write_length(out, body.len());
        out.extend_from_slice(&body);
    }
}

#[cfg(test)]
mod tests {
    use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};

    use super::*;
    use crate::wire::{Connect, next_frame};
    use crate::{Properties, Qos, Topic};

    #[test]
    fn the_written_connect_is_read_back_and_the_codec_crate_agrees() {
        let properties = Properties { content_type: Some("text/plain".into()), ..Properties::default() };
        let will = Message::new(Topic::new("gone").unwrap(), "bye").with_qos(Qos::AtLeastOnce).retained();
        for version in [Version::V311, Version::V5] {
            let options = Options {
                version,
                client_id: "gate".into(),
                clean_start: false,
                session_expiry: Duration::from_secs(3_600),
                user: Some("u".into()),
                password: Some(b"p".to_vec()),
                will: Some(match version {
                    Version::V5 => will.clone().with_properties(properties.clone()),
                    _ => will.clone(),
                }),
                ..Options::default()
            };
            options.check().unwrap();
            let mut out = Vec::new();
            options.write_connect(&mut out);
            let frame = next_frame(Version::V5, &out, 1_000).unwrap().unwrap();
            let connect = Connect::read(frame.body).unwrap();
            assert_eq!((connect.client_id.as_str(), connect.clean_start), ("gate", false));
            assert_eq!(connect.will.unwrap().message, options.will.unwrap());
            assert_eq!((connect.user.as_deref(), connect.password.as_deref()), (Some("u"), Some(&b"p"[..])));
            let consumed = match version {
                Version::V5 => v5_0::Connect::parse(frame.body).unwrap().1,
                _ => v3_1_1::Connect::parse(frame.body).unwrap().1,
            };
            assert_eq!(consumed, frame.body.len());
        }
    }
}
