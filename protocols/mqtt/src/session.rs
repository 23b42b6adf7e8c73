//! What the broker remembers of a client, connected or not (MQTT 5.0 §4.1): subscriptions, messages in flight, the
//! queue behind them, and the ids of messages it must not take twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arena::Key;
use crate::journal::Round;
use crate::wire::{SubscribeOptions, Will};
use crate::{Filter, Message, Principal, Qos, Topic};

/// One client's session.
pub(crate) struct Session {
    /// Whose it is; asked about deliveries even while the client is away.
    pub(crate) principal: Principal,
    /// The number of its record; 0 for one that ends with its connection, or where nothing is kept.
    pub(crate) record: u64,
    /// The connection it is on, if any.
    pub(crate) connection: Option<Key>,
    /// The connection that will have it once its record is safe.
    pub(crate) claimed: Option<Key>,
    /// How long it outlives a connection; `None` is as long as the limits allow.
    pub(crate) expiry: Option<Duration>,
    pub(crate) subscriptions: BTreeMap<Filter, SubscribeOptions>,
    pub(crate) will: Option<Will>,
    /// The number of its record; 0 when it has none.
    pub(crate) will_record: u64,
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
    /// Of a session that was put back: up to where its messages were sent, and whether its client was connected.
    pub(crate) restored: Option<(u64, bool)>,
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
pub(crate) struct Incoming {
    /// The ingress token that its PUBREC waits for; 0 when it waits for none.
    pub(crate) token: u64,
    /// The changes that it waits for.
    pub(crate) after: Round,
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
    /// Counts up in its session; the packet id is derived from it, and so is the same after a restart.
    pub(crate) serial: u64,
    /// Where it is kept, while it is in the queue; then its entry knows.
    pub(crate) records: Records,
    /// It may have been sent before.
    pub(crate) is_again: bool,
    /// The changes that have to be safe before it is sent.
    pub(crate) after: Round,
}

/// The records of a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    /// Its own number; 0 where it is not kept.
    pub(crate) delivery: u64,
    /// The number of a message that it shares with other deliveries.
    pub(crate) message: Option<u64>,
}

/// QoS 1 and 2 messages sent and not finished, in the order they were sent, which is the order they are sent again.
#[derive(Default)]
pub(crate) struct Sent {
    entries: VecDeque<SentEntry>,
    next: u64,
}

/// One unfinished message.
pub(crate) struct SentEntry {
    pub(crate) serial: u64,
    pub(crate) records: Records,
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
            record: 0,
            connection: None,
            claimed: None,
            expiry: Some(Duration::ZERO),
            subscriptions: BTreeMap::new(),
            will: None,
            will_record: 0,
            will_due: None,
            expires: None,
            sent: Sent::default(),
            queue: Queue::default(),
            retained: BTreeMap::new(),
            incoming: BTreeMap::new(),
            restored: None,
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

    /// The serial of the next message for this session, whether it is sent at once or waits.
    pub(crate) fn next_serial(&mut self) -> u64 {
        // Ids are handed out in turn, so one can only be in use still if another is about a whole round behind; the
        // queue is shorter than half a round.
        while self.entries.front().is_some_and(|first| self.next.saturating_sub(first.serial) >= IDS / 2)
            && self.position(packet_id(self.next)).is_some()
        {
            self.next += 1;
        }
        self.next += 1;
        self.next - 1
    }

    /// Every message before this serial has been sent, or was never to be.
    pub(crate) fn sent_to(&self) -> u64 {
        self.entries.iter().map(|entry| entry.serial + 1).max().unwrap_or_default()
    }

    /// Takes out, in their order, the messages for which a client that takes only so many at once has no room yet.
    pub(crate) fn hold_back(&mut self, window: usize) -> Vec<Delivery> {
        let mut held = Vec::new();
        if self.entries.len() > window {
            let mut kept = VecDeque::new();
            for entry in self.entries.drain(..) {
                match entry.delivery {
                    Some(delivery) if kept.len() >= window => {
                        held.push(Delivery { records: entry.records, is_again: true, ..delivery });
                    }
                    _ => kept.push_back(entry),
                }
            }
            self.entries = kept;
        }
        held
    }

    /// A serial that was used before a restart.
    pub(crate) fn reserve(&mut self, serial: u64) {
        self.next = self.next.max(serial.saturating_add(1));
    }

    /// Takes a message into flight and returns its packet id.
    pub(crate) fn begin(&mut self, mut delivery: Delivery) -> u16 {
        let (serial, records) = (delivery.serial, std::mem::take(&mut delivery.records));
        self.entries.push_back(SentEntry { serial, records, delivery: Some(delivery) });
        packet_id(serial)
    }

    /// A message that its receiver has and that was not finished before a restart.
    pub(crate) fn restore_released(&mut self, serial: u64, records: Records) {
        self.entries.push_back(SentEntry { serial, records, delivery: None });
    }

    /// PUBACK: the message is done. `None` if no QoS 1 message with that id is in flight.
    pub(crate) fn acknowledge(&mut self, packet_id: u16) -> Option<Records> {
        self.take_if(packet_id, |delivery| delivery.qos == Qos::AtLeastOnce)
    }

    /// PUBREC with an error: the message is done, undelivered.
    pub(crate) fn reject(&mut self, packet_id: u16) -> Option<Records> {
        self.take_if(packet_id, |delivery| delivery.qos == Qos::ExactlyOnce)
    }

    /// PUBREC: the receiver has the message. `None` if no QoS 2 message with that id is in flight; else its entry, and
    /// whether this is the first time that the receiver says so.
    pub(crate) fn receive(&mut self, packet_id: u16) -> Option<(&mut SentEntry, bool)> {
        let position = self.position(packet_id)?;
        let entry = &mut self.entries[position];
        match &entry.delivery {
            Some(delivery) if delivery.qos != Qos::ExactlyOnce => None,
            delivery => {
                let is_first = delivery.is_some();
                entry.delivery = None;
                Some((entry, is_first))
            }
        }
    }

    /// The message is given up.
    pub(crate) fn remove(&mut self, packet_id: u16) -> Option<Records> {
        let position = self.position(packet_id)?;
        self.entries.remove(position).map(|entry| entry.records)
    }

    /// PUBCOMP: the message is done. `None` if it was not waited for.
    pub(crate) fn complete(&mut self, packet_id: u16) -> Option<Records> {
        let position = self.position(packet_id)?;
        if self.entries[position].delivery.is_some() {
            return None;
        }
        self.entries.remove(position).map(|entry| entry.records)
    }

    pub(crate) fn records(&mut self) -> impl Iterator<Item = &mut Records> {
        self.entries.iter_mut().map(|entry| &mut entry.records)
    }

    /// Everything that may still be given to someone else when the session ends: QoS 1 only, because a QoS 2 message
    /// must not reach two members [MQTT-4.8.2-5].
    pub(crate) fn drain_redeliverable(&mut self) -> impl Iterator<Item = Delivery> {
        self.entries
            .drain(..)
            .filter_map(|entry| entry.delivery)
            .filter(|delivery| delivery.qos == Qos::AtLeastOnce && delivery.shared.is_some())
    }

    fn take_if(&mut self, packet_id: u16, fits: impl Fn(&Delivery) -> bool) -> Option<Records> {
        let position = self.position(packet_id)?;
        if !self.entries[position].delivery.as_ref().is_some_and(fits) {
            return None;
        }
        self.entries.remove(position).map(|entry| entry.records)
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

    /// The changes that have to be safe before the next one is sent.
    pub(crate) fn next_after(&self) -> Round {
        self.deliveries.front().map_or(0, |delivery| delivery.after)
    }

    pub(crate) fn records(&mut self) -> impl Iterator<Item = &mut Records> {
        self.deliveries.iter_mut().map(|delivery| &mut delivery.records)
    }

    pub(crate) fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.weight();
        self.deliveries.push_back(delivery);
    }

    /// Puts a message that was sent before in front of those that were not.
    pub(crate) fn push_front(&mut self, delivery: Delivery) {
        self.bytes += delivery.weight();
        self.deliveries.push_front(delivery);
    }

    /// Every message before this serial may have been sent.
    pub(crate) fn sent_to(&self) -> u64 {
        let again = self.deliveries.iter().take_while(|delivery| delivery.is_again);
        again.map(|delivery| delivery.serial + 1).last().unwrap_or_default()
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
        Delivery {
            message,
            qos,
            retain: false,
            subscription_ids: Vec::new(),
            expires: None,
            shared: None,
            serial: 0,
            records: Records::default(),
            is_again: false,
            after: 0,
        }
    }

    fn begin(sent: &mut Sent, qos: Qos) -> u16 {
        let serial = sent.next_serial();
        sent.begin(Delivery { serial, ..delivery(qos) })
    }

    #[test]
    fn a_packet_id_still_in_use_is_passed_over() {
        let mut sent = Sent::default();
        let stuck = begin(&mut sent, Qos::AtLeastOnce);
        let second = begin(&mut sent, Qos::AtLeastOnce);
        for _ in 0..65_533 {
            let id = begin(&mut sent, Qos::AtLeastOnce);
            assert!(sent.acknowledge(id).is_some());
        }
        let id = begin(&mut sent, Qos::AtLeastOnce);
        assert_eq!((stuck, second, id), (1, 2, 3));
    }

    #[test]
    fn an_acknowledgement_of_the_wrong_kind_changes_nothing() {
        let mut sent = Sent::default();
        let one = begin(&mut sent, Qos::AtLeastOnce);
        let two = begin(&mut sent, Qos::ExactlyOnce);
        assert!(
            sent.receive(one).is_none() && sent.complete(two).is_none() && sent.acknowledge(two).is_none()
        );
        assert!(sent.receive(two).is_some_and(|(_, is_first)| is_first));
        assert!(
            sent.receive(two).is_some_and(|(_, is_first)| !is_first),
            "a repeated PUBREC is answered again"
        );
        assert!(sent.complete(two).is_some() && sent.complete(two).is_none());
        assert!(sent.acknowledge(one).is_some() && sent.acknowledge(one).is_none());
        assert_eq!(sent.len(), 0);
    }
}
