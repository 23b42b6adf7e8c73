//! Reason codes (MQTT 5.0 §2.4) and what they become for a 3.1.1 client.

use std::fmt;

/// Why something was accepted or refused: the one-byte code of MQTT 5.0. Codes below 0x80 are successes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Done; also "normal disconnection" and "granted QoS 0".
    pub const SUCCESS: Self = Self(0x00);
    /// A DISCONNECT that asks for the will to be published.
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    /// UNSUBSCRIBE of a filter that was not subscribed.
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    /// No better code fits.
    pub const UNSPECIFIED: Self = Self(0x80);
    /// The packet cannot be read.
    pub const MALFORMED_PACKET: Self = Self(0x81);
    /// The packet can be read and is not allowed here.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// Valid, but this implementation could not do it (here: it could not be stored).
    pub const IMPLEMENTATION_SPECIFIC: Self = Self(0x83);
    /// The protocol level of CONNECT is not spoken.
    pub const UNSUPPORTED_VERSION: Self = Self(0x84);
    /// The client id is not allowed.
    pub const CLIENT_ID_INVALID: Self = Self(0x85);
    /// User name or password is wrong.
    pub const BAD_CREDENTIALS: Self = Self(0x86);
    /// The access rules forbid it.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// The broker cannot serve now.
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    /// The broker is at one of its limits.
    pub const SERVER_BUSY: Self = Self(0x89);
    /// The broker is stopping.
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8B);
    /// Extended authentication is not offered.
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8C);
    /// Nothing came for one and a half times the keep-alive.
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8D);
    /// Another connection came with the same client id.
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    /// The filter is not allowed.
    pub const FILTER_INVALID: Self = Self(0x8F);
    /// The topic is not allowed.
    pub const TOPIC_INVALID: Self = Self(0x90);
    /// A PUBREL or PUBREC names an unknown packet id.
    pub const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    /// More unacknowledged messages than the receive maximum.
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    /// A topic alias is zero, too large or unknown.
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    /// The packet is larger than agreed.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// A quota (sessions, subscriptions, storage) is used up.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);

    /// Whether the code says that something went wrong.
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// The CONNACK return code of MQTT 3.1.1 (§3.2.2.3), or `None` where 3.1.1 has nothing to say and the connection
    /// is just closed.
    pub(crate) fn to_v3_connack(self) -> Option<u8> {
        Some(match self {
            Self::SUCCESS => 0,
            Self::UNSUPPORTED_VERSION => 1,
            Self::CLIENT_ID_INVALID => 2,
            Self::SERVER_UNAVAILABLE | Self::SERVER_BUSY | Self::QUOTA_EXCEEDED | Self::UNSPECIFIED => 3,
            Self::BAD_CREDENTIALS => 4,
            Self::NOT_AUTHORIZED => 5,
            _ => return None,
        })
    }

    /// The reason that a 3.1.1 CONNACK return code stands for.
    pub(crate) fn from_v3_connack(code: u8) -> Self {
        match code {
            0 => Self::SUCCESS,
            1 => Self::UNSUPPORTED_VERSION,
            2 => Self::CLIENT_ID_INVALID,
            3 => Self::SERVER_UNAVAILABLE,
            4 => Self::BAD_CREDENTIALS,
            5 => Self::NOT_AUTHORIZED,
            _ => Self::UNSPECIFIED,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SUCCESS => "success",
            Self::DISCONNECT_WITH_WILL => "disconnect with will",
            Self::NO_SUBSCRIPTION_EXISTED => "no subscription existed",
            Self::UNSPECIFIED => "unspecified error",
            Self::MALFORMED_PACKET => "malformed packet",
            Self::PROTOCOL_ERROR => "protocol error",
            Self::IMPLEMENTATION_SPECIFIC => "implementation specific error",
            Self::UNSUPPORTED_VERSION => "unsupported protocol version",
            Self::CLIENT_ID_INVALID => "client identifier not valid",
            Self::BAD_CREDENTIALS => "bad user name or password",
            Self::NOT_AUTHORIZED => "not authorized",
            Self::SERVER_UNAVAILABLE => "server unavailable",
            Self::SERVER_BUSY => "server busy",
            Self::SERVER_SHUTTING_DOWN => "server shutting down",
            Self::BAD_AUTHENTICATION_METHOD => "bad authentication method",
            Self::KEEP_ALIVE_TIMEOUT => "keep alive timeout",
            Self::SESSION_TAKEN_OVER => "session taken over",
            Self::FILTER_INVALID => "topic filter invalid",
            Self::TOPIC_INVALID => "topic name invalid",
            Self::PACKET_ID_NOT_FOUND => "packet identifier not found",
            Self::RECEIVE_MAXIMUM_EXCEEDED => "receive maximum exceeded",
            Self::TOPIC_ALIAS_INVALID => "topic alias invalid",
            Self::PACKET_TOO_LARGE => "packet too large",
            Self::QUOTA_EXCEEDED => "quota exceeded",
            _ => "reason",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02x})", self.name(), self.0)
    }
}

impl fmt::Debug for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
