//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 §3.8, §3.10).

use mqtt_protocol_core::mqtt::packet::Property;

use super::{Reader, Version, read_properties};
use crate::{Qos, ReasonCode};

/// What a subscription asks for beyond its filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SubscribeOptions {
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// 0: send retained messages; 1: only if the subscription is new; 2: don't.
    pub(crate) retain_handling: u8,
    /// The subscription identifier; 0 is none.
    pub(crate) id: u32,
}

/// A received SUBSCRIBE. The filters are not yet judged: each gets its own answer.
#[derive(Debug)]
pub(crate) struct Subscribe<'a> {
    pub(crate) packet_id: u16,
    pub(crate) entries: Vec<(&'a str, SubscribeOptions)>,
}

/// A received UNSUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Unsubscribe<'a> {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<&'a str>,
}

impl<'a> Subscribe<'a> {
    pub(crate) fn read(version: Version, body: &'a [u8]) -> Result<Self, ReasonCode> {
        let mut reader = Reader(body);
        let packet_id = reader.packet_id()?;
        let mut id = 0;
        if version == Version::V5 {
            read_properties(reader.properties()?, |property| match property {
                Property::SubscriptionIdentifier(value) if id == 0 && value.val() != 0 => {
                    id = value.val();
                    Ok(true)
                }
                property => Ok(matches!(property, Property::UserProperty(_))),
            })?;
        }
        let mut entries = Vec::new();
        while !reader.0.is_empty() {
            let filter = reader.text()?;
            let bits = reader.byte()?;
            let qos = Qos::new(bits & 3).ok_or(ReasonCode::MALFORMED_PACKET)?;
            let reserved = if version == Version::V5 { 0xc0 } else { 0xfc };
            let retain_handling = (bits >> 4) & 3;
            if bits & reserved != 0 || retain_handling == 3 {
                return Err(ReasonCode::MALFORMED_PACKET);
            }
            let no_local = bits & 4 != 0;
            // No-local and shared exclude each other [MQTT-3.8.3-4].
            if no_local && filter.starts_with("$share/") {
                return Err(ReasonCode::PROTOCOL_ERROR);
            }
            let retain_as_published = bits & 8 != 0;
            entries
                .push((filter, SubscribeOptions { qos, no_local, retain_as_published, retain_handling, id }));
        }
        // At least one filter [MQTT-3.8.3-2].
        if entries.is_empty() {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        Ok(Self { packet_id, entries })
    }
}

impl<'a> Unsubscribe<'a> {
    pub(crate) fn read(version: Version, body: &'a [u8]) -> Result<Self, ReasonCode> {
        let mut reader = Reader(body);
        let packet_id = reader.packet_id()?;
        if version == Version::V5 {
            read_properties(reader.properties()?, |property| {
                Ok(matches!(property, Property::UserProperty(_)))
            })?;
        }
        let mut filters = Vec::new();
        while !reader.0.is_empty() {
            filters.push(reader.text()?);
        }
        if filters.is_empty() {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        Ok(Self { packet_id, filters })
    }
}
