//! A message's properties, between the wire and [`Properties`] (MQTT 5.0 §2.2.2, §3.3.2.3).

use std::time::Duration;

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::{PayloadFormat, Properties as WireProperties, Property};

use super::{write_field, write_length};
use crate::{Properties, ReasonCode, Topic};

/// What may stand beside a message in PUBLISH or in a will, apart from the message's own properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    pub(crate) topic_alias: Option<u16>,
    pub(crate) will_delay: Option<u32>,
    pub(crate) subscription_ids: Vec<u32>,
}

/// Sorts wire properties into the message's own and the extras; what fits neither is refused.
pub(crate) fn decode_message_properties(
    wire: WireProperties,
) -> Result<(Option<Box<Properties>>, Extras), ReasonCode> {
    if wire.is_empty() {
        return Ok((None, Extras::default()));
    }
    let mut own = Properties::default();
    let mut extras = Extras::default();
    for property in wire {
        match property {
            Property::PayloadFormatIndicator(value) => {
                once(&mut own.is_text, value.val() == PayloadFormat::String as u8)?;
            }
            Property::MessageExpiryInterval(value) => {
                once(&mut own.expiry, Duration::from_secs(u64::from(value.val())))?;
            }
            Property::ContentType(value) => once(&mut own.content_type, value.val().to_owned())?,
            Property::ResponseTopic(value) => {
                // A response topic must not contain wildcards [MQTT-3.3.2-14].
                let topic = Topic::new(value.val()).map_err(|_| ReasonCode::PROTOCOL_ERROR)?;
                once(&mut own.response_topic, topic)?;
            }
            Property::CorrelationData(value) => {
                once(&mut own.correlation_data, Bytes::copy_from_slice(value.val()))?;
            }
            Property::UserProperty(pair) => own.user.push((pair.key().to_owned(), pair.val().to_owned())),
            Property::TopicAlias(value) => once(&mut extras.topic_alias, value.val())?,
            Property::WillDelayInterval(value) => once(&mut extras.will_delay, value.val())?,
            Property::SubscriptionIdentifier(value) => extras.subscription_ids.push(value.val()),
            _ => return Err(ReasonCode::PROTOCOL_ERROR),
        }
    }
    let own = (own != Properties::default()).then(|| Box::new(own));
    Ok((own, extras))
}

/// Writes the property section of a PUBLISH: the message's own properties in a fixed order, the seconds it has left,
/// then the identifiers of the subscriptions it is sent for.
pub(crate) fn encode_message_properties(
    out: &mut Vec<u8>,
    own: Option<&Properties>,
    expiry_secs: Option<u32>,
    subscription_ids: &[u32],
) {
    if own.is_none() && expiry_secs.is_none() && subscription_ids.is_empty() {
        out.push(0);
        return;
    }
    let mut section = Vec::with_capacity(64);
    if let Some(own) = own {
        if let Some(is_text) = own.is_text {
            section.extend_from_slice(&[1, u8::from(is_text)]);
        }
        if let Some(content_type) = &own.content_type {
            section.push(3);
            write_field(&mut section, content_type.as_bytes());
        }
        if let Some(topic) = &own.response_topic {
            section.push(8);
            write_field(&mut section, topic.as_str().as_bytes());
        }
        if let Some(data) = &own.correlation_data {
            section.push(9);
            write_field(&mut section, data);
        }
        for (name, value) in &own.user {
            section.push(38);
            write_field(&mut section, name.as_bytes());
            write_field(&mut section, value.as_bytes());
        }
    }
    if let Some(seconds) = expiry_secs {
        section.push(2);
        section.extend_from_slice(&seconds.to_be_bytes());
    }
    for id in subscription_ids {
        section.push(11);
        write_length(&mut section, *id as usize);
    }
    write_length(out, section.len());
    out.extend_from_slice(&section);
}

/// Refuses U+0000 in any string of a property section [MQTT-1.5.4-2].
pub(super) fn refuse_nul(wire: &WireProperties) -> Result<(), ReasonCode> {
    let has_nul = wire.iter().any(|property| match property {
        Property::ContentType(value) => value.val().contains('\0'),
        Property::ResponseTopic(value) => value.val().contains('\0'),
        Property::ReasonString(value) => value.val().contains('\0'),
        Property::AssignedClientIdentifier(value) => value.val().contains('\0'),
        Property::AuthenticationMethod(value) => value.val().contains('\0'),
        Property::ResponseInformation(value) => value.val().contains('\0'),
        Property::ServerReference(value) => value.val().contains('\0'),
        Property::UserProperty(pair) => pair.key().contains('\0') || pair.val().contains('\0'),
        _ => false,
    });
    if has_nul { Err(ReasonCode::MALFORMED_PACKET) } else { Ok(()) }
}

/// Takes each property through `take`, which answers `false` to one that is not allowed in this packet.
pub(crate) fn read_properties(
    wire: WireProperties,
    mut take: impl FnMut(Property) -> Result<bool, ReasonCode>,
) -> Result<(), ReasonCode> {
    for property in wire {
        if !take(property)? {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
    }
    Ok(())
}

/// Sets what may be given once; a second time is a protocol error.
pub(super) fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), ReasonCode> {
    if slot.replace(value).is_some() { Err(ReasonCode::PROTOCOL_ERROR) } else { Ok(()) }
}
