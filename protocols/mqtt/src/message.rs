//! What is published: a topic, bytes, and how they are to be carried.

use std::time::Duration;

use bytes::Bytes;

use crate::Topic;

/// How surely a message is carried (MQTT 5.0 §4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl Qos {
    /// The QoS of the number 0, 1 or 2.
    pub fn new(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::AtMostOnce,
            1 => Self::AtLeastOnce,
            2 => Self::ExactlyOnce,
            _ => return None,
        })
    }
}

/// One application message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is published.
    pub topic: Topic,
    /// What is published.
    pub payload: Bytes,
    /// The QoS it was published with; a subscriber gets the lower of this and what it asked for.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers; an empty payload then deletes what was kept.
    pub retain: bool,
    /// MQTT 5.0 properties, when there are any. Most messages have none.
    pub properties: Option<Box<Properties>>,
}

/// The properties of a message that travel with it unaltered (MQTT 5.0 §3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Payload format indicator 1: the payload is UTF-8 text. `None` when the publisher said nothing.
    pub is_text: Option<bool>,
    /// How long the message is worth delivering. Whole seconds on the wire.
    pub expiry: Option<Duration>,
    /// What the payload is, such as a media type.
    pub content_type: Option<String>,
    /// Where an answer is expected.
    pub response_topic: Option<Topic>,
    /// What the answer is to carry so that its asker knows it.
    pub correlation_data: Option<Bytes>,
    /// User properties in their order; a name may be repeated.
    pub user: Vec<(String, String)>,
}

impl Message {
    /// A message of QoS 0, not retained, without properties.
    pub fn new(topic: Topic, payload: impl Into<Bytes>) -> Self {
        Self { topic, payload: payload.into(), qos: Qos::default(), retain: false, properties: None }
    }

    /// The same message at another QoS.
    #[must_use]
    pub fn with_qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// The same message, retained.
    #[must_use]
    pub fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    /// The same message with properties.
    #[must_use]
    pub fn with_properties(mut self, properties: Properties) -> Self {
        self.properties = Some(Box::new(properties));
        self
    }

    pub(crate) fn expiry(&self) -> Option<Duration> {
        self.properties.as_ref().and_then(|properties| properties.expiry)
    }

    /// What it costs to keep, in bytes: topic, payload and properties, with a little for the bookkeeping.
    pub(crate) fn weight(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |properties| {
            let user: usize = properties.user.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
            user + properties.content_type.as_ref().map_or(0, String::len)
                + properties.response_topic.as_ref().map_or(0, |topic| topic.as_str().len())
                + properties.correlation_data.as_ref().map_or(0, Bytes::len)
                + size_of::<Properties>()
        });
        self.topic.as_str().len() + self.payload.len() + properties + size_of::<Self>()
    }
}
