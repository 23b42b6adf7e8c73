//! The broker: every connection, session and subscription of one server, as one state machine.
//!
//! ```text
//! accept ──► handle_input ──► poll_event ──► transmit          handle_gone
//!                 ▲               │ Output, Close, Local, Ingress, Authenticate
//!  handle_timeout ┘ (at deadline) └─► acknowledge · decide
//! ```
//!
//! The caller feeds bytes, then drains [`Broker::poll_event`], and writes what [`Broker::transmit`] gives it. Nothing
//! an event says is repeated; an event that is not acted upon is lost.

mod connect;
mod deliver;
mod inbound;
mod keep;
mod lifecycle;
mod subscribe;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{Access, Allow, Peer, Transport, Verdict};
use crate::arena::{Arena, Key};
use crate::connection::{Connection, Phase, Stall};
use crate::journal::{Journal, Round};
use crate::retained::Retained;
use crate::router::Router;
use crate::session::Session;
use crate::wire::{SubscribeOptions, Version};
use crate::{Counters, Filter, Limits, Message, Qos, ReasonCode};
use deliver::Found;
use keep::Missed;
pub use keep::Restored;

/// An MQTT server without sockets; see the [module](self).
pub struct Broker {
    limits: Limits,
    counters: Counters,
    access: Box<dyn Access>,
    connections: Arena<Connection>,
    /// How many of them come from an address beyond loopback.
    by_address: HashMap<IpAddr, usize>,
    sessions: Arena<Session>,
    by_client: HashMap<Arc<str>, Key>,
    router: Router<Subscriber, SubscribeOptions>,
    forwarded: Router<(), ()>,
    retained: Retained,
    journal: Journal,
    /// Wills of clients that were connected before a restart, by the number of their record, and those by client.
    missed: HashMap<u64, Missed>,
    missed_by_client: HashMap<Arc<str>, u64>,
    /// Connections that wait for changes to be safe, in the order of those.
    waiting_for_round: VecDeque<(Round, Key)>,
    deadlines: BTreeSet<(Instant, Timer)>,
    events: VecDeque<Event>,
    /// Messages handed out as ingress and not yet acknowledged, by token.
    ingress: HashMap<u64, IngressOrigin>,
    next_token: u64,
    /// Connections that are not read until ingress has room, first come first served.
    waiting_for_ingress: VecDeque<Key>,
    locals: HashMap<LocalId, (Filter, Taking)>,
    /// The filters among them whose messages are acknowledged by their reader.
    answering: Router<(), ()>,
    /// Messages that wait for such a reader.
    waiting_for_locals: usize,
    next_local: u64,
    /// Bytes queued in all sessions.
    queued_bytes: usize,
    /// Counts routings, so that a session found twice in one is told from one found in two.
    routing: u64,
    /// Kept between routings for its capacity.
    found: Vec<Found>,
    random: u64,
}

/// One connection of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(Key);

/// One subscription of the process itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalId(u64);

/// A message that has to be stored before its sender may forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IngressToken(u64);

/// Who published a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The process itself, through [`Broker::publish`].
    Gateway,
    /// The client with this id.
    Client(Arc<str>),
}

/// When the sender of a message that matched a subscription of the process is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// At once, whatever becomes of the message.
    Unseen,
    /// When the reader says so, at QoS 1 and 2: a reader that is behind is felt by those who publish.
    Answered,
}

/// What the caller has to do.
#[derive(Clone, Debug)]
pub enum Event {
    /// There is something to [`Broker::transmit`], or the connection may be read again.
    Output(ConnectionId),
    /// Write what [`Broker::transmit`] still gives, close the connection, then [`Broker::handle_gone`].
    Close(ConnectionId),
    /// A message matched a subscription of the process.
    Local {
        /// The subscription.
        id: LocalId,
        /// To be given to [`Broker::acknowledge`] once the reader has dealt with it; `None` where nobody waits.
        token: Option<IngressToken>,
        /// The message.
        message: Arc<Message>,
        /// Who published it.
        origin: Origin,
    },
    /// A client's message matched a forwarded filter.
    Ingress {
        /// To be given to [`Broker::acknowledge`] once the message is stored; `None` at QoS 0, which waits for nobody.
        token: Option<IngressToken>,
        /// The message.
        message: Arc<Message>,
        /// Who published it.
        origin: Origin,
    },
    /// The access rules answered [`Verdict::Later`]: find out, then call [`Broker::decide`].
    Authenticate {
        /// The connection that waits.
        connection: ConnectionId,
        /// The client id it gave.
        client_id: String,
        /// The user name it gave.
        user: Option<String>,
        /// The password it gave.
        password: Option<Vec<u8>>,
    },
}

/// A client as [`Broker::clients`] shows it.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    /// Its client id.
    pub client_id: Arc<str>,
    /// The name under which it was accepted.
    pub user: Option<Arc<str>>,
    /// Whether it is connected now; the next four are `None` if it is not.
    pub is_connected: bool,
    /// The protocol it speaks.
    pub version: Option<Version>,
    /// Its address.
    pub address: Option<SocketAddr>,
    /// What carries the connection.
    pub transport: Option<Transport>,
    /// Its keep-alive; zero is off.
    pub keep_alive: Option<Duration>,
    /// Filters it has subscribed.
    pub subscriptions: usize,
    /// Messages sent to it and not acknowledged.
    pub in_flight: usize,
    /// Messages that wait for it.
    pub queued: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Too long without CONNECT, or silent for too long.
    Connection(Key),
    /// A client that published too fast is read again.
    Rate(Key),
    /// The will of a client that has not come back since a restart is due, by the number of its record.
    Missed(u64),
    /// The will of this session is due.
    Will(Key),
    /// This session ends.
    Expiry(Key),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subscriber {
    Session(Key),
    Local(LocalId),
}

/// Where an ingress message came from, and who has it.
struct IngressOrigin {
    session: Key,
    packet_id: u16,
    qos: Qos,
    /// How many have not answered for it yet.
    holders: usize,
    /// Whether a reader in the process is among them.
    is_local: bool,
    /// What the first said who could not take it.
    failed: Option<ReasonCode>,
}

impl Broker {
    /// A broker without connections. `seed` makes the client ids it assigns hard to guess and a test repeatable.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let retained = Retained::new(limits.retained_messages, limits.retained_bytes);
        Self {
            limits,
            counters: Counters::default(),
            access: Box::new(Allow),
            connections: Arena::new(),
            by_address: HashMap::new(),
            sessions: Arena::new(),
            by_client: HashMap::new(),
            router: Router::new(),
            forwarded: Router::new(),
            retained,
            journal: Journal::default(),
            missed: HashMap::new(),
            missed_by_client: HashMap::new(),
            waiting_for_round: VecDeque::new(),
            deadlines: BTreeSet::new(),
            events: VecDeque::new(),
            ingress: HashMap::new(),
            next_token: 1,
            waiting_for_ingress: VecDeque::new(),
            locals: HashMap::new(),
            answering: Router::new(),
            waiting_for_locals: 0,
            next_local: 0,
            queued_bytes: 0,
            routing: 0,
            found: Vec::new(),
            random: seed,
        }
    }

    /// Replaces the access rules; they hold from the next packet on.
    pub fn set_access(&mut self, access: Box<dyn Access>) {
        self.access = access;
    }

    /// Replaces the filters whose messages are stored before they are acknowledged.
    pub fn set_forwarded(&mut self, filters: &[Filter]) {
        self.forwarded = Router::new();
        for filter in filters {
            self.forwarded.subscribe(filter, (), ());
        }
    }

    /// A new connection, or `None` if there are too many: then close it.
    pub fn accept(&mut self, now: Instant, peer: Peer) -> Option<ConnectionId> {
        if self.connections.len() >= self.limits.connections {
            self.counters.refused_connections += 1;
            return None;
        }
        if let Some(address) = address_of(&peer) {
            let count = self.by_address.entry(address).or_insert(0);
            if *count >= self.limits.connections_per_address {
                self.counters.crowded_addresses += 1;
                return None;
            }
            *count += 1;
        }
        self.counters.connections += 1;
        let key = self.connections.insert(Connection::new(now, peer));
        self.set_connection_timer(key, Some(now + self.limits.connect_timeout));
        Some(ConnectionId(key))
    }

    /// Bytes came from a connection.
    pub fn handle_input(&mut self, now: Instant, id: ConnectionId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(id.0) else { return };
        if matches!(connection.phase, Phase::Closing) {
            return;
        }
        if connection.stall.is_some() {
            connection.input.extend_from_slice(bytes);
        } else if connection.input.is_empty() {
            let read = self.read_packets(now, id.0, bytes);
            self.keep_unread(id.0, bytes[read..].to_vec());
        } else {
            connection.input.extend_from_slice(bytes);
            self.read_kept(now, id.0);
        }
    }

    /// Whether the connection is to be read. While it is not, its bytes are left where they are, so that the sender
    /// feels the back-pressure; [`Event::Output`] comes when it is to be read again.
    pub fn wants_input(&self, id: ConnectionId) -> bool {
        self.connections.get(id.0).is_some_and(|connection| {
            connection.stall.is_none() && !matches!(connection.phase, Phase::Closing)
        })
    }

    /// The connection is closed, by the peer or after [`Event::Close`]. To be called exactly once.
    pub fn handle_gone(&mut self, now: Instant, id: ConnectionId) {
        self.finish(now, id.0, true);
        let Some(connection) = self.connections.remove(id.0) else { return };
        let Some(address) = address_of(&connection.peer) else { return };
        if let Entry::Occupied(mut count) = self.by_address.entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Swaps the bytes to write to this connection into `buffer`, which has to be empty; its capacity is used for
    /// what comes next. Call it again when they are written: an empty buffer says that there is nothing more.
    pub fn transmit(&mut self, now: Instant, id: ConnectionId, buffer: &mut Vec<u8>) {
        debug_assert!(buffer.is_empty(), "what was taken before has to be written first");
        let Some(connection) = self.connections.get_mut(id.0) else { return };
        std::mem::swap(&mut connection.output, buffer);
        connection.is_announced = false;
        if let Some(session) = connection.session() {
            self.pump(now, session);
        }
    }

    /// What is to be done next; `None` when nothing is.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the access rules say to a CONNECT that waited for them.
    pub fn decide(&mut self, now: Instant, id: ConnectionId, verdict: Verdict) {
        self.admit_judged(now, id.0, verdict);
    }

    /// The answer to [`Event::Ingress`] or [`Event::Local`], one for each: stored or dealt with, or why it could not
    /// be. Its sender hears when all have answered. A failure tells a 5.0 client the reason and closes the connection
    /// of an older one, which will send the message again.
    pub fn acknowledge(&mut self, now: Instant, token: IngressToken, stored: Result<(), ReasonCode>) {
        let Some(origin) = self.ingress.get_mut(&token.0) else { return };
        origin.holders -= 1;
        origin.failed = origin.failed.or(stored.err());
        if origin.holders > 0 {
            return;
        }
        let origin = self.ingress.remove(&token.0).expect("looked at");
        self.waiting_for_locals -= usize::from(origin.is_local);
        self.settle_ingress(now, token.0, &origin, origin.failed.map_or(Ok(()), Err));
        // Who finds no room again stands at the end.
        for _ in 0..self.waiting_for_ingress.len() {
            if self.ingress.len() >= self.limits.ingress {
                break;
            }
            if let Some(key) = self.waiting_for_ingress.pop_front() {
                self.resume(now, key, Stall::Ingress);
            }
        }
    }

    /// When [`Broker::handle_timeout`] wants to be called next, unless something happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Does what is due: gives up silent clients, publishes delayed wills, ends sessions.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, timer)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            match timer {
                Timer::Connection(key) => self.handle_silence(now, key),
                Timer::Rate(key) => self.resume(now, key, Stall::Rate),
                Timer::Missed(number) => self.publish_missed(now, number),
                Timer::Will(key) => {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.will_due = None;
                        self.publish_will(now, key);
                    }
                }
                Timer::Expiry(key) => {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.expires = None;
                        self.counters.expired_sessions += 1;
                        self.end_session(now, key);
                    }
                }
            }
        }
    }

    /// Publishes a message of the process itself, at its QoS, retained if it says so.
    pub fn publish(&mut self, now: Instant, message: Message) {
        self.route(now, None, &Origin::Gateway, &Arc::new(message), None);
    }

    /// Subscribes the process itself: what matches from now on comes as [`Event::Local`], what is retained already
    /// comes at once.
    pub fn subscribe_local(&mut self, now: Instant, filter: Filter, taking: Taking) -> LocalId {
        let id = LocalId(self.next_local);
        self.next_local += 1;
        let options = SubscribeOptions { qos: Qos::ExactlyOnce, ..SubscribeOptions::default() };
        self.router.subscribe(&filter, Subscriber::Local(id), options);
        for topic in self.retained.matching(now, &filter) {
            if let Some(kept) = self.retained.get(now, topic) {
                // Who published a retained message is not kept; nothing that is replayed can be a loop.
                self.events.push_back(Event::Local {
                    id,
                    token: None,
                    message: kept.message.clone(),
                    origin: Origin::Gateway,
                });
            }
        }
        if taking == Taking::Answered {
            self.answering.subscribe(&filter, (), ());
        }
        self.locals.insert(id, (filter, taking));
        id
    }

    /// Ends a subscription of the process. What its reader still has, it still has to answer for.
    pub fn unsubscribe_local(&mut self, id: LocalId) {
        let Some((filter, taking)) = self.locals.remove(&id) else { return };
        self.router.unsubscribe(&filter, &Subscriber::Local(id));
        if taking == Taking::Answered && !self.locals.values().any(|other| *other == (filter.clone(), taking))
        {
            self.answering.unsubscribe(&filter, &());
        }
    }

    /// Closes every connection because the broker is about to stop; 5.0 clients are told so. Wills stay unpublished:
    /// the clients are well, it is the broker that leaves.
    pub fn shut_down(&mut self, now: Instant) {
        let keys: Vec<Key> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.say_goodbye(key, ReasonCode::SERVER_SHUTTING_DOWN);
            self.close(now, key, false);
        }
    }

    /// What has been counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The bounds the broker keeps.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Every session, in no particular order.
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.sessions
            .iter()
            .map(|(_, session)| {
                let connection = session.connection.and_then(|key| self.connections.get(key));
                ClientStatus {
                    client_id: session.principal.client_id.clone(),
                    user: session.principal.user.clone(),
                    is_connected: connection.is_some(),
                    version: connection.map(|connection| connection.version),
                    address: connection.and_then(|connection| connection.peer.address),
                    transport: connection.map(|connection| connection.peer.transport),
                    keep_alive: connection.map(|connection| connection.keep_alive),
                    subscriptions: session.subscriptions.len(),
                    in_flight: session.sent.len(),
                    queued: session.queue.len(),
                }
            })
            .collect()
    }

    /// Open connections, whether or not a CONNECT has come on them.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Subscriptions of all clients and of the process.
    pub fn subscription_count(&self) -> usize {
        self.router.len()
    }

    /// Retained messages kept.
    pub fn retained_count(&self) -> usize {
        self.retained.len()
    }

    /// `SplitMix64`: enough to make assigned client ids differ.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl ConnectionId {
    /// A small number that no other open connection has: an index for the caller's own table.
    pub fn slot(self) -> usize {
        self.0.index as usize
    }
}

/// The address that a connection counts against.
fn address_of(peer: &Peer) -> Option<IpAddr> {
    peer.address.map(|address| address.ip().to_canonical()).filter(|address| !address.is_loopback())
}

fn announce(events: &mut VecDeque<Event>, key: Key, connection: &mut Connection) {
    if !connection.is_announced {
        connection.is_announced = true;
        events.push_back(Event::Output(ConnectionId(key)));
    }
}
