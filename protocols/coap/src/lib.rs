//! CoAP as a pure engine: datagrams and time in; datagrams, events and one deadline out.
//!
//! Covers RFC 7252 (messages, requests, responses), RFC 7641 (observe), RFC 7959 (blocks), RFC 6690 (link format) and
//! RFC 7967 (No-Response). There is no clock, no socket and no thread here. An [`Endpoint`] is server and client in
//! one:
//!
//! 1. Give it what comes: [`Endpoint::handle_datagram`], [`Endpoint::handle_timeout`] when [`Endpoint::deadline`] has
//!    passed, [`Endpoint::respond`] when a resource has its answer, [`Endpoint::notify`] when one has changed,
//!    [`Endpoint::request`] to ask others.
//! 2. After each, send everything [`Endpoint::poll_transmit`] has, and look at everything [`Endpoint::poll_event`] has.
//!
//! What it serves is a [`Resources`]. Nothing that a peer sends makes it fail: noise is dropped and counted, every
//! table has a bound in [`Limits`].

mod client;
mod config;
mod counters;
mod dedup;
mod endpoint;
mod exchange;
mod link;
mod observe;
mod outbox;
mod peer;
mod random;
mod request;
mod resource;
mod transfer;
mod wire;

pub use client::{Event, Failure, Outgoing, Received, RequestId};
pub use config::{Config, Limits, Timing};
pub use counters::Counters;
pub use endpoint::Endpoint;
pub use link::{Link, OwnedLink, parse_links};
pub use peer::Peer;
pub use request::Request;
pub use resource::{Answer, Methods, NoResources, Resource, ResourceId, Resources, Response, Ticket};
pub use wire::{
    Block, Code, ETag, Format, Kind, Malformed, Message, OptionIter, Token, Writer, is_critical, number,
};

/// The port of CoAP over UDP (RFC 7252 §12.6).
pub const PORT: u16 = 5683;
