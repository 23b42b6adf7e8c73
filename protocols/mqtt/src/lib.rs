//! MQTT 3.1, 3.1.1 and 5.0 as pure engines: a [`Broker`] that owns every connection and session, and a
//! [`Client`] for the way out.
//!
//! Nothing here reads a clock, opens a socket or starts a thread. The caller brings bytes and `now`; the engine
//! gives back bytes to write, events to act on, and one deadline at which it wants to be called again. The same
//! engine therefore runs on TCP, TLS, WebSocket, and on a wire made of two `Vec`s in a test.
//!
//! What comes from `mqtt-protocol-core`: properties and their rules, reason codes, and the builders and readers of
//! every packet that is not on the hot path. What is ours: framing and PUBLISH are read in place, and a PUBLISH that
//! goes to a hundred subscribers is encoded once, with packet id and flags patched for each. The crate's own
//! connection type is not used: it ties unfinished packets to a connection where MQTT ties them to a session, it
//! closes on a stray PUBACK, and an acknowledgement that waits for a commit has no place in it.
//!
//! References `[MQTT-x.y.z-n]` are the normative statements of MQTT 5.0 (OASIS, 7 March 2019).

pub mod access;
mod arena;
pub mod broker;
pub mod client;
mod connection;
mod journal;
pub mod limits;
mod message;
mod reason;
pub mod record;
mod retained;
mod router;
mod session;
mod topic;
mod wire;

pub use access::{Access, Allow, ConnectRequest, Peer, Principal, Transport, Verdict};
pub use broker::{
    Broker, ClientStatus, ConnectionId, Event, IngressToken, LocalId, Origin, Restored, Taking,
};
pub use client::Client;
pub use journal::Waiting;
pub use limits::{Counters, Limits};
pub use message::{Message, Properties, Qos};
pub use reason::ReasonCode;
pub use record::{Change, Record, Shelf};
pub use topic::{Filter, MAX_LEVELS, Topic, TopicError};
pub use wire::Version;
