//! What the broker remembers of a client, connected or not (MQTT 5.0 §4.1): subscriptions, messages in flight, the
//! queue behind them, and the ids of messages it must not take twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arena::Key;
use crate::wire::{SubscribeOptions, Will};
use crate::{Filter, Message, Principal, Qos, Topic};

/// One client's session.
pub(crate) struct Session {
    /// Whose it is; asked about deliveries even while the client is away.
    pub(crate) principal: Principal,
    /// The connection it is on, if any.
    pub(crate) connection: Option<Key>,
    /// How long it outlives a connection; `None` is as long as the limits allow.
    pub(crate) expiry: Option<Duration>,
    pub(crate) subscriptions: BTreeMap<Filter, SubscribeOptions>,
    pub(crate) will: Option<Will>,
    /// When the will is due, after the connection was lost.
    pub(crate) will_due: Option<Instant>,
    /// When the session ends, after the connection was lost.
    pub(crate) expires: Option<Instant>,
    pub(crate) sent: Sent,
    pub(crate) queue: Queue,
    /// Topics whose retained message is still to be sent for a new subscription. Names only: what is sent is what is
    /// kept at that moment, so that an old value never follows a newer one. A topic stands here once, however often the
    /// client subscribes: that bounds it.
    pub(crate) retained: BTreeMap<Topic, SubscribeOptions>,
    /// QoS 2 messages taken from the client and not yet released by it.
    pub(crate) incoming: BTreeMap<u16, Incoming>,
    /// Where this session stands in the list of matches now being gathered.
    pub(crate) mark: Mark,
}

/// The number of the routing in which a session was last found, and its place in the list of that routing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) routing: u64,
    pub(crate) place: usize,
}

/// The state of a QoS 2 message on its way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// Its PUBREC waits for this ingress token.
    Waiting(u64),
    /// Its PUBREC may be (or was) sent.
    Taken,
}

/// A message for one session.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: Vec<u32>,
    pub(crate) expires: Option<Instant>,
    /// The shared subscription it came through: if this session ends, another member may take it.
    pub(crate) shared: Option<Filter>,
}

/// QoS 1 and 2 messages sent and not finished, in the order they were sent, which is the order they are sent again.
#[derive(Default)]
pub(crate) struct Sent {
    entries: VecDeque<SentEntry>,
    next: u64,
}

/// One unfinished message.
pub(crate) struct SentEntry {
    /// Counts up; the packet id is derived from it.
    serial: u64,
    /// `None` once PUBREC has come: then only PUBREL remains to be sent again.
    pub(crate) delivery: Option<Delivery>,
}

/// Messages that wait for the client or for a place in its window.
#[derive(Default)]
pub(crate) struct Queue {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
}

impl Session {
    pub(crate) fn new(principal: Principal) -> Self {
        Self {
            principal,
            connection: None,
            expiry: Some(Duration::ZERO),
            subscriptions: BTreeMap::new(),
            will: None,
            will_due: None,
            expires: None,
            sent: Sent::default(),
            queue: Queue::default(),
            retained: BTreeMap::new(),
            incoming: BTreeMap::new(),
            mark: Mark::default(),
        }
    }
}

impl SentEntry {
    pub(crate) fn packet_id(&self) -> u16 {
        packet_id(self.serial)
    }
}

impl Sent {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &SentEntry> {
        self.entries.iter()
    }

    /// Takes a message into flight and returns its packet id.
    pub(crate) fn begin(&mut self, delivery: Delivery) -> u16 {
        // Ids are handed out in turn, so one can only be in use still if the oldest is a whole round behind.
        while self.entries.front().is_some_and(|oldest| self.next - oldest.serial >= IDS)
            && self.position(packet_id(self.next)).is_some()
        {
            self.next += 1;
        }
        let serial = self.next;
        self.next += 1;
        self.entries.push_back(SentEntry { serial, delivery: Some(delivery) });
        packet_id(serial)
    }

    /// PUBACK: the message is done. `None` if no QoS 1 message with that id is in flight.
    pub(crate) fn acknowledge(&mut self, packet_id: u16) -> Option<Delivery> {
        self.take_if(packet_id, |delivery| delivery.qos == Qos::AtLeastOnce)
    }

    /// PUBREC with an error: the message is done, undelivered.
    pub(crate) fn reject(&mut self, packet_id: u16) -> Option<Delivery> {
        self.take_if(packet_id, |delivery| delivery.qos == Qos::ExactlyOnce)
    }

    /// PUBREC: the receiver has the message. `false` if no QoS 2 message with that id is in flight.
    pub(crate) fn receive(&mut self, packet_id: u16) -> bool {
        let Some(position) = self.position(packet_id) else { return false };
        let entry = &mut self.entries[position];
        match &entry.delivery {
            Some(delivery) if delivery.qos != Qos::ExactlyOnce => false,
            _ => {
                entry.delivery = None;
                true
            }
        }
    }

    /// The message is given up.
    pub(crate) fn remove(&mut self, packet_id: u16) {
        if let Some(position) = self.position(packet_id) {
            self.entries.remove(position);
        }
    }

    /// PUBCOMP: the message is done. `false` if it was not waited for.
    pub(crate) fn complete(&mut self, packet_id: u16) -> bool {
        match self.position(packet_id) {
            Some(position) if self.entries[position].delivery.is_none() => {
                self.entries.remove(position);
                true
            }
            _ => false,
        }
    }

    /// Everything that may still be given to someone else when the session ends: QoS 1 only, because a QoS 2 message
    /// must not reach two members [MQTT-4.8.2-5].
    pub(crate) fn drain_redeliverable(&mut self) -> impl Iterator<Item = Delivery> {
        self.entries
            .drain(..)
            .filter_map(|entry| entry.delivery)
            .filter(|delivery| delivery.qos == Qos::AtLeastOnce && delivery.shared.is_some())
    }

    fn take_if(&mut self, packet_id: u16, fits: impl Fn(&Delivery) -> bool) -> Option<Delivery> {
        let position = self.position(packet_id)?;
        if !self.entries[position].delivery.as_ref().is_some_and(fits) {
            return None;
        }
        self.entries.remove(position)?.delivery
    }

    fn position(&self, packet_id: u16) -> Option<usize> {
        // Acknowledgements come in order from nearly every client: the first is the one.
        self.entries.iter().position(|entry| entry.packet_id() == packet_id)
    }
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.deliveries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    pub(crate) fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.weight();
        self.deliveries.push_back(delivery);
    }

    pub(crate) fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.pop_front()?;
        self.bytes -= delivery.weight();
        if self.deliveries.is_empty() && self.deliveries.capacity() > 64 {
            self.deliveries = VecDeque::new();
        }
        Some(delivery)
    }
}

impl Delivery {
    pub(crate) fn weight(&self) -> usize {
        self.message.weight() + size_of::<Self>()
    }
}

fn packet_id(serial: u64) -> u16 {
    (serial % IDS) as u16 + 1
}

/// Packet ids run from 1 to 65,535.
const IDS: u64 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(qos: Qos) -> Delivery {
        let message = Arc::new(Message::new(Topic::new("a").unwrap(), "1").with_qos(qos));
        Delivery { message, qos, retain: false, subscription_ids: Vec::new(), expires: None, shared: None }
    }

    #[test]
    fn a_packet_id_still_in_use_is_passed_over() {
        let mut sent = Sent::default();
        let stuck = sent.begin(delivery(Qos::AtLeastOnce));
        let second = sent.begin(delivery(Qos::AtLeastOnce));
        for _ in 0..65_533 {
            let id = sent.begin(delivery(Qos::AtLeastOnce));
            assert!(sent.acknowledge(id).is_some());
        }
        let id = sent.begin(delivery(Qos::AtLeastOnce));
        assert_eq!((stuck, second, id), (1, 2, 3));
    }

    #[test]
    fn an_acknowledgement_of_the_wrong_kind_changes_nothing() {
        let mut sent = Sent::default();
        let one = sent.begin(delivery(Qos::AtLeastOnce));
        let two = sent.begin(delivery(Qos::ExactlyOnce));
        assert!(!sent.receive(one) && !sent.complete(two) && sent.acknowledge(two).is_none());
        assert!(sent.receive(two) && sent.receive(two), "a repeated PUBREC is answered again");
        assert!(sent.complete(two) && !sent.complete(two));
        assert!(sent.acknowledge(one).is_some() && sent.acknowledge(one).is_none());
        assert_eq!(sent.len(), 0);
    }
}
