//! The client side, for the way out: publishes the caller's log and says when each entry is safe.
//!
//! The caller keeps the messages, the client only what the protocol needs to finish them: which of the caller's ids
//! went out under which packet id, and how far it got. After a reconnect the caller offers everything unconfirmed
//! again, in the order of its log; what the broker already holds is not sent twice. That state can be exported and
//! imported, so that QoS 2 stays exactly-once over a restart of the process, provided the broker kept the session.
//!
//! A caller that has to survive its own end at any moment chooses the packet ids ([`Client::publish_as`]) and says
//! itself when PUBREL may be written: after [`Event::Received`] is on its disk ([`Options::releases_by_itself`],
//! [`Client::release`]). From then on a restart imports the message as received, and it is not published again.
//!
//! ```text
//! connect ──► transmit ⇄ handle_input ──► poll_event: Connected, Confirmed, Failed, Message, Subscribed, Closed
//!                 ▲
//! publish ────────┘        handle_timeout (at deadline)         handle_gone, then connect again
//! ```

mod inbound;
mod options;
mod outbox;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use thiserror::Error;

use outbox::Outbox;

pub use options::{Options, OptionsError};

use crate::wire::{
    self, Version, encode_publish, kind, write_ack, write_disconnect, write_field, write_length,
};
use crate::{Filter, Message, Qos, ReasonCode, Topic};

/// One connection after another to one broker; see the [module](self).
pub struct Client {
    options: Options,
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    events: VecDeque<Event>,
    outbox: Outbox,
    /// QoS 2 messages taken and not yet released by the broker: the token of each, and whether the caller is done.
    incoming: BTreeMap<u16, (u64, bool)>,
    /// PUBACKs and PUBRECs owed to the broker, in the order of its PUBLISH packets [MQTT-4.6.0-2].
    owed: VecDeque<Owed>,
    next_token: u64,
    aliases: HashMap<u16, Topic>,
    /// What the broker granted, once connected.
    granted: Granted,
    heard: Instant,
    written: Instant,
    /// Until when the broker has to have answered a PINGREQ.
    answer_due: Option<Instant>,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The broker accepted the connection: offer what is unconfirmed, then go on.
    Connected {
        /// Whether the broker had kept the session. If not, subscriptions have to be made again.
        session_present: bool,
        /// The client id the broker chose, if it was asked to.
        assigned_client_id: Option<String>,
    },
    /// The broker has received this message (PUBREC) and waits for PUBREL; only where the caller has taken it upon
    /// itself to say when ([`Options::releases_by_itself`]).
    Received {
        /// The caller's id.
        id: u64,
    },
    /// The broker has taken responsibility for this message (PUBACK or PUBCOMP).
    Confirmed {
        /// The caller's id.
        id: u64,
    },
    /// The broker refused this message, or could never be sent it.
    Failed {
        /// The caller's id.
        id: u64,
        /// Why.
        reason: ReasonCode,
    },
    /// A message came.
    Message {
        /// The message.
        message: Message,
        /// To be given to [`Client::acknowledge`]; `None` if nothing is owed for it.
        token: Option<AckToken>,
    },
    /// SUBACK or UNSUBACK.
    Subscribed {
        /// What [`Client::subscribe`] or [`Client::unsubscribe`] returned.
        packet_id: u16,
        /// One answer per filter, in order; empty for a 3.1.1 UNSUBACK.
        codes: Vec<ReasonCode>,
    },
    /// The connection is over: write what [`Client::transmit`] still gives and close it.
    Closed {
        /// Why; success if we asked for it.
        reason: ReasonCode,
    },
}

/// A received message that is not acknowledged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AckToken(u64);

/// A message that was sent and has no final answer: what has to outlive the process so that QoS 2 stays exactly-once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The caller's id.
    pub id: u64,
    /// The packet id it was sent under.
    pub packet_id: u16,
    /// Its QoS.
    pub qos: Qos,
    /// Whether PUBREC has come: then only PUBREL and PUBCOMP are missing, and the message must not be sent again.
    pub is_received: bool,
}

/// Why [`Client::publish`] did not take a message. Nothing is lost: it is the caller's still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// There is no connection; offer it again after [`Event::Connected`].
    #[error("not connected")]
    NotConnected,
    /// As many messages as agreed are unconfirmed; offer it again after [`Event::Confirmed`].
    #[error("window full")]
    WindowFull,
    /// The packet id belongs to something unfinished; offer it again after that is confirmed.
    #[error("packet id {0} in use")]
    PacketIdInUse(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Connecting { until: Instant },
    Connected,
}

struct Owed {
    kind: u8,
    packet_id: u16,
    token: u64,
    is_ready: bool,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    window: usize,
    packet_bytes: usize,
    qos: Qos,
    retain: bool,
    keep_alive: Duration,
}

impl Client {
    /// A client without a connection.
    pub fn new(now: Instant, options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        let granted = Granted {
            window: usize::from(options.window),
            packet_bytes: wire::MAX_PACKET,
            qos: Qos::ExactlyOnce,
            retain: true,
            keep_alive: options.keep_alive,
        };
        Ok(Self {
            outbox: Outbox::new(options.own_packet_ids.clone()),
            options,
            phase: Phase::Closed,
            input: Vec::new(),
            output: Vec::new(),
            events: VecDeque::new(),
            incoming: BTreeMap::new(),
            owed: VecDeque::new(),
            next_token: 1,
            aliases: HashMap::new(),
            granted,
            heard: now,
            written: now,
            answer_due: None,
        })
    }

    /// Takes over what another client, of an earlier process perhaps, left unfinished in the same session; before the
    /// first [`Client::connect`]. The order is that in which the messages were sent. What is imported as received is not
    /// published again; it wants [`Client::release`] as if PUBREC had just come, unless the client releases by itself.
    pub fn import(&mut self, unfinished: &[Unfinished], incoming: &[u16]) {
        self.outbox.import(unfinished, self.options.releases_by_itself);
        self.incoming.extend(incoming.iter().map(|packet_id| (*packet_id, (0, true))));
    }

    /// What is sent and has no final answer, in the order in which it was sent.
    pub fn unfinished(&self) -> Vec<Unfinished> {
        let list = self.outbox.unfinished().into_iter();
        list.map(|(id, sent)| Unfinished {
            id,
            packet_id: sent.packet_id,
            qos: sent.qos,
            is_received: sent.is_received,
        })
        .collect()
    }

    /// Packet ids of QoS 2 messages that the caller has acknowledged and the broker has not yet released; they belong
    /// to [`Client::import`].
    pub fn incoming(&self) -> Vec<u16> {
        self.incoming.iter().filter(|(_, (_, is_done))| *is_done).map(|(packet_id, _)| *packet_id).collect()
    }

    /// Begins a connection: the transport is open, CONNECT is ready to be written.
    pub fn connect(&mut self, now: Instant) {
        self.handle_gone();
        self.output.clear();
        if self.options.clean_start && self.options.session_expiry.is_zero() {
            self.forget_session();
        }
        self.options.write_connect(&mut self.output);
        self.phase = Phase::Connecting { until: now + self.options.response_timeout };
        self.heard = now;
    }

    /// The transport is closed, by whomever. What is unfinished stays so.
    pub fn handle_gone(&mut self) {
        self.phase = Phase::Closed;
        self.input = Vec::new();
        self.owed.clear();
        self.outbox.handle_gone();
        self.aliases.clear();
        self.answer_due = None;
    }

    /// Whether CONNACK has come.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// How many messages the broker takes unfinished at QoS 1 and 2, and we send.
    pub fn window(&self) -> usize {
        self.granted.window
    }

    /// How many more messages [`Client::publish`] takes now at QoS 1 and 2.
    pub fn capacity(&self) -> usize {
        if self.is_connected() { self.granted.window.saturating_sub(self.busy()) } else { 0 }
    }

    /// Sends a message under the caller's id. At QoS 1 and 2 [`Event::Confirmed`] or [`Event::Failed`] follows; at
    /// QoS 0 nothing does. An id that is in flight already is not sent a second time on one connection.
    pub fn publish(&mut self, id: u64, message: &Message) -> Result<(), PublishError> {
        self.publish_under(id, None, message)
    }

    /// The same under a packet id of the caller's choice, above 0 and outside [`Options::own_packet_ids`]: a caller
    /// that can tell the packet id from the message needs no table of them to survive its own end.
    pub fn publish_as(&mut self, id: u64, packet_id: u16, message: &Message) -> Result<(), PublishError> {
        self.publish_under(id, Some(packet_id), message)
    }

    fn publish_under(&mut self, id: u64, chosen: Option<u16>, message: &Message) -> Result<(), PublishError> {
        if !self.is_connected() {
            return Err(PublishError::NotConnected);
        }
        let known = self.outbox.find(id);
        let qos = known.map_or(message.qos, |sent| sent.qos);
        if known.is_some_and(|sent| sent.is_offered() || sent.is_received) {
            return Ok(());
        }
        if qos != Qos::AtMostOnce && self.busy() >= self.granted.window {
            return Err(PublishError::WindowFull);
        }
        if let Some(reason) = self.refusal(message, qos) {
            self.forget(id);
            self.events.push_back(Event::Failed { id, reason });
            return Ok(());
        }
        let packet_id = match (known, chosen) {
            (Some(sent), _) => sent.packet_id,
            (None, _) if qos == Qos::AtMostOnce => 0,
            (None, Some(packet_id)) if self.outbox.is_free(packet_id) => packet_id,
            (None, Some(packet_id)) => return Err(PublishError::PacketIdInUse(packet_id)),
            (None, None) => self.outbox.take_packet_id().ok_or(PublishError::WindowFull)?,
        };
        let start = self.output.len();
        encode_publish(&mut self.output, self.options.version, message, known.is_some(), qos, packet_id);
        if self.output.len() - start > self.granted.packet_bytes {
            self.output.truncate(start);
            self.forget(id);
            self.events.push_back(Event::Failed { id, reason: ReasonCode::PACKET_TOO_LARGE });
            return Ok(());
        }
        if qos != Qos::AtMostOnce {
            self.outbox.offer(id, packet_id, qos);
        }
        Ok(())
    }

    /// The caller has noted for good that the broker received this message: PUBREL may be written, now or, without a
    /// connection, after the next one has shown that the session is kept. Nothing happens for any other id.
    pub fn release(&mut self, id: u64) {
        let Some(sent) = self.outbox.find(id).filter(|sent| sent.is_received && !sent.is_released) else {
            return;
        };
        self.outbox.mark_received(id, true);
        if self.is_connected() {
            let version = self.options.version;
            write_ack(&mut self.output, version, kind::PUBREL, sent.packet_id, ReasonCode::SUCCESS);
        }
    }

    /// The caller will not offer this message again; a late answer to it is passed over.
    pub fn forget(&mut self, id: u64) {
        self.outbox.burn(id);
    }

    /// Asks for messages; [`Event::Subscribed`] answers with the packet id returned here.
    pub fn subscribe(&mut self, filters: &[(Filter, Qos)]) -> Result<u16, PublishError> {
        self.write_subscription(kind::SUBSCRIBE, filters.iter().map(|(filter, qos)| (filter, Some(*qos))))
    }

    /// Asks for no more messages; [`Event::Subscribed`] answers with the packet id returned here.
    pub fn unsubscribe(&mut self, filters: &[Filter]) -> Result<u16, PublishError> {
        self.write_subscription(kind::UNSUBSCRIBE, filters.iter().map(|filter| (filter, None)))
    }

    /// The caller is done with a message: the broker may forget it. Acknowledgements leave in the order the messages
    /// came. If the connection on which the message came is gone, the broker sends it again: a QoS 2 message is then
    /// acknowledged at once, a QoS 1 message comes a second time.
    pub fn acknowledge(&mut self, token: AckToken) {
        for (known, is_done) in self.incoming.values_mut() {
            *is_done |= *known == token.0;
        }
        // A message that was sent again is owed for twice.
        for owed in self.owed.iter_mut().filter(|owed| owed.token == token.0) {
            owed.is_ready = true;
        }
        self.settle();
    }

    /// Says goodbye: no will is published. [`Event::Closed`] follows.
    pub fn disconnect(&mut self) {
        if self.is_connected() {
            write_disconnect(&mut self.output, self.options.version, ReasonCode::SUCCESS);
        }
        self.close(ReasonCode::SUCCESS);
    }

    /// Swaps the bytes to write into `buffer`, which has to be empty.
    pub fn transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) {
        debug_assert!(buffer.is_empty(), "what was taken before has to be written first");
        if !self.output.is_empty() {
            self.written = now;
            std::mem::swap(&mut self.output, buffer);
        }
    }

    /// Bytes came from the broker.
    pub fn handle_input(&mut self, now: Instant, bytes: &[u8]) {
        if self.phase == Phase::Closed {
            return;
        }
        self.heard = now;
        self.answer_due = None;
        let mut input = std::mem::take(&mut self.input);
        let mut read = 0;
        input.extend_from_slice(bytes);
        while self.phase != Phase::Closed {
            let result = match wire::next_frame(
                self.options.version,
                &input[read..],
                self.options.packet_bytes as usize,
            ) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    read += frame.len;
                    self.handle_packet(&frame)
                }
                Err(reason) => Err(reason),
            };
            if let Err(reason) = result {
                self.fail(reason);
            }
        }
        if self.phase != Phase::Closed && read < input.len() {
            input.drain(..read);
            self.input = input;
        }
    }

    /// What has happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Client::handle_timeout`] wants to be called next.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Connecting { until } => Some(until),
            Phase::Connected => self.answer_due.or_else(|| self.ping_due()),
        }
    }

    /// Sends a PINGREQ or gives up a connection that does not answer.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if self.phase != Phase::Connected || self.answer_due.is_some() {
            self.close(ReasonCode::KEEP_ALIVE_TIMEOUT);
            return;
        }
        self.output.extend_from_slice(&[kind::PINGREQ << 4, 0]);
        self.written = now;
        self.answer_due = Some(now + self.options.response_timeout);
    }

    /// What counts against the window: what went out on this connection, and what of an earlier one waits for its end.
    /// MQTT 5.0 counts anew on each connection, and PUBREL not at all (§4.9), but mosquitto 2.0 goes on counting what it
    /// holds, and closes the connection over it.
    fn busy(&self) -> usize {
        self.outbox.busy()
    }

    fn settle(&mut self) {
        while self.owed.front().is_some_and(|owed| owed.is_ready)
            && let Some(owed) = self.owed.pop_front()
        {
            write_ack(&mut self.output, self.options.version, owed.kind, owed.packet_id, ReasonCode::SUCCESS);
        }
    }

    /// Why this broker would never take this message.
    fn refusal(&self, message: &Message, qos: Qos) -> Option<ReasonCode> {
        if qos > self.granted.qos {
            return Some(ReasonCode(0x9b));
        }
        (message.retain && !self.granted.retain).then_some(ReasonCode(0x9a))
    }

    fn write_subscription<'a>(
        &mut self,
        kind: u8,
        filters: impl Iterator<Item = (&'a Filter, Option<Qos>)>,
    ) -> Result<u16, PublishError> {
        if !self.is_connected() {
            return Err(PublishError::NotConnected);
        }
        let packet_id = self.outbox.take_packet_id().ok_or(PublishError::WindowFull)?;
        let mut body = packet_id.to_be_bytes().to_vec();
        if self.options.version == Version::V5 {
            body.push(0);
        }
        for (filter, qos) in filters {
            write_field(&mut body, filter.as_str().as_bytes());
            body.extend(qos.map(|qos| qos as u8));
        }
        self.output.push((kind << 4) | 2);
        write_length(&mut self.output, body.len());
        self.output.extend_from_slice(&body);
        self.outbox.note_subscription(packet_id);
        Ok(packet_id)
    }

    fn forget_session(&mut self) {
        self.outbox.forget_session();
        self.incoming.clear();
    }

    fn fail(&mut self, reason: ReasonCode) {
        if self.is_connected() && self.options.version == Version::V5 {
            write_disconnect(&mut self.output, Version::V5, reason);
        }
        self.close(reason);
    }

    fn close(&mut self, reason: ReasonCode) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            self.events.push_back(Event::Closed { reason });
        }
    }

    /// A PINGREQ is due when one direction has been silent for the keep-alive: ours, as the protocol demands; theirs,
    /// so that a dead link is noticed while we are sending into it.
    fn ping_due(&self) -> Option<Instant> {
        let keep_alive = self.granted.keep_alive;
        (!keep_alive.is_zero()).then(|| self.written.min(self.heard) + keep_alive)
    }
}
