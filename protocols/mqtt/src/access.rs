//! Who may do what: the decision is the caller's, the engine only asks.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::{Filter, ReasonCode, Topic, Version};

/// Decides what a client may do. The engine asks on every CONNECT, PUBLISH and SUBSCRIBE, so the answers have to be
/// quick; one that takes time (a password hash) is [`Verdict::Later`].
pub trait Access {
    /// Whether this client may connect, and as whom.
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict;

    /// Whether `who` may publish on `topic`; asked for its will, too.
    fn may_publish(&self, who: &Principal, topic: &Topic, retain: bool) -> bool;

    /// Whether `who` may subscribe to `filter`.
    fn may_subscribe(&self, who: &Principal, filter: &Filter) -> bool;

    /// Whether `who` may be given a message on `topic` that one of its subscriptions matches.
    fn may_receive(&self, who: &Principal, topic: &Topic) -> bool;
}

/// Allows everything to everyone, anonymous or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allow;

/// What is known about a client that wants to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// Where it comes from.
    pub peer: &'a Peer,
    /// The version it speaks.
    pub version: Version,
    /// Its client id; empty when it asks the broker for one.
    pub client_id: &'a str,
    /// The user name it gave.
    pub user: Option<&'a str>,
    /// The password it gave.
    pub password: Option<&'a [u8]>,
}

/// The answer to a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Welcome, under this name if the client is known by one.
    Accept(Option<Arc<str>>),
    /// Refused with this code.
    Refuse(ReasonCode),
    /// The answer comes through [`crate::Broker::decide`]; until then nothing more is read from the client.
    Later,
}

/// A connected client, as the access rules know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The name under which it was accepted; `None` is anonymous.
    pub user: Option<Arc<str>>,
    /// Its client id.
    pub client_id: Arc<str>,
}

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; `None` for a connection inside the process.
    pub address: Option<SocketAddr>,
    /// What carries it.
    pub transport: Transport,
    /// The subject of the client certificate that TLS verified.
    pub certificate: Option<Arc<str>>,
    /// The name under which whatever carries it has let it in already.
    pub user: Option<Arc<str>>,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// TLS on TCP.
    Tls,
    /// WebSocket on HTTP.
    WebSocket,
    /// WebSocket on HTTPS.
    SecureWebSocket,
    /// Memory: within the process.
    Memory,
}

impl Peer {
    /// A peer known by its transport alone.
    pub fn new(address: Option<SocketAddr>, transport: Transport) -> Self {
        Self { address, transport, certificate: None, user: None }
    }
}

impl Access for Allow {
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        Verdict::Accept(request.user.map(Arc::from))
    }

    fn may_publish(&self, _: &Principal, _: &Topic, _: bool) -> bool {
        true
    }

    fn may_subscribe(&self, _: &Principal, _: &Filter) -> bool {
        true
    }

    fn may_receive(&self, _: &Principal, _: &Topic) -> bool {
        true
    }
}
