//! What is on its way to the broker: which of the caller's messages went out under which packet id, and how far each
//! got. Packet ids live here, so that none is ever used for two things at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use super::Unfinished;
use crate::Qos;

/// Messages and subscriptions without a final answer.
pub(super) struct Outbox {
    /// Messages, by the caller's id.
    sent: HashMap<u64, Sent>,
    /// The caller's id of each packet id in use.
    ids: HashMap<u16, u64>,
    /// Packet ids of messages given up while their answer may still come: not used until it has, or cannot any more.
    burned: BTreeMap<u16, Qos>,
    /// SUBSCRIBE and UNSUBSCRIBE packets without an answer.
    subscribing: BTreeSet<u16>,
    /// Packet ids that the client takes for itself; the caller gives out the others.
    own: RangeInclusive<u16>,
    next_packet_id: u16,
    next_turn: u64,
    /// Messages that went out on this connection: what the window bounds.
    offered: usize,
    /// Messages of an earlier connection of which only the end of the handshake is missing.
    resumed: usize,
}

/// One message on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) packet_id: u16,
    pub(super) qos: Qos,
    /// PUBREC has come.
    pub(super) is_received: bool,
    /// PUBREL may be written.
    pub(super) is_released: bool,
    /// Whether it went out on this connection.
    is_offered: bool,
    /// Its place in the order in which messages were first sent.
    turn: u64,
}

impl Sent {
    pub(super) fn is_offered(&self) -> bool {
        self.is_offered
    }
}

impl Outbox {
    pub(super) fn new(own: RangeInclusive<u16>) -> Self {
        let next_packet_id = (*own.start()).max(1);
        Self {
            sent: HashMap::new(),
            ids: HashMap::new(),
            burned: BTreeMap::new(),
            subscribing: BTreeSet::new(),
            own,
            next_packet_id,
            next_turn: 0,
            offered: 0,
            resumed: 0,
        }
    }

    pub(super) fn import(&mut self, unfinished: &[Unfinished], are_released: bool) {
        for entry in unfinished {
            let Unfinished { id, packet_id, qos, is_received } = *entry;
            let turn = self.take_turn();
            let sent = Sent {
                packet_id,
                qos,
                is_received,
                is_released: is_received && are_released,
                is_offered: false,
                turn,
            };
            self.sent.insert(id, sent);
            self.ids.insert(packet_id, id);
            self.resumed += usize::from(is_received);
        }
    }

    /// All messages, in the order in which they were first sent.
    pub(super) fn unfinished(&self) -> Vec<(u64, Sent)> {
        let mut list: Vec<(u64, Sent)> = self.sent.iter().map(|(id, sent)| (*id, *sent)).collect();
        list.sort_unstable_by_key(|(_, sent)| sent.turn);
        list
    }

    /// The message with the caller's id.
    pub(super) fn find(&self, id: u64) -> Option<Sent> {
        self.sent.get(&id).copied()
    }

    /// The message under a packet id, with the caller's id.
    pub(super) fn under(&self, packet_id: u16) -> Option<(u64, Sent)> {
        let id = *self.ids.get(&packet_id)?;
        Some((id, self.find(id)?))
    }

    /// Messages that the broker has to finish with: those of this connection, and those of earlier ones that only lack
    /// their end.
    pub(super) fn busy(&self) -> usize {
        self.offered + self.resumed
    }

    /// A packet id for a message or subscription of the client's own choice; `None` when all are in use.
    pub(super) fn take_packet_id(&mut self) -> Option<u16> {
        for _ in self.own.clone() {
            let packet_id = self.next_packet_id;
            self.next_packet_id =
                if packet_id == *self.own.end() { (*self.own.start()).max(1) } else { packet_id + 1 };
            if self.is_free(packet_id) {
                return Some(packet_id);
            }
        }
        None
    }

    /// Whether nothing stands under this packet id.
    pub(super) fn is_free(&self, packet_id: u16) -> bool {
        packet_id != 0
            && !self.ids.contains_key(&packet_id)
            && !self.burned.contains_key(&packet_id)
            && !self.subscribing.contains(&packet_id)
    }

    /// The message went out on this connection.
    pub(super) fn offer(&mut self, id: u64, packet_id: u16, qos: Qos) {
        let turn = self.find(id).map_or_else(|| self.take_turn(), |sent| sent.turn);
        let sent = Sent { packet_id, qos, is_received: false, is_released: false, is_offered: true, turn };
        self.sent.insert(id, sent);
        self.ids.insert(packet_id, id);
        self.offered += 1;
    }

    /// PUBREC has come for it.
    pub(super) fn mark_received(&mut self, id: u64, is_released: bool) {
        if let Some(sent) = self.sent.get_mut(&id) {
            self.resumed += usize::from(!sent.is_received && !sent.is_offered);
            sent.is_received = true;
            sent.is_released |= is_released;
        }
    }

    /// Its final answer has come: the packet id is free again.
    pub(super) fn finish(&mut self, id: u64) -> Option<Sent> {
        let sent = self.sent.remove(&id)?;
        self.ids.remove(&sent.packet_id);
        self.offered -= usize::from(sent.is_offered);
        self.resumed -= usize::from(!sent.is_offered && sent.is_received);
        Some(sent)
    }

    /// The caller gives it up: a new message under its packet id would be taken for the old one, or confirmed by the
    /// old one's answer.
    pub(super) fn burn(&mut self, id: u64) {
        if let Some(sent) = self.finish(id) {
            self.burned.insert(sent.packet_id, sent.qos);
        }
    }

    /// An answer under a packet id that no message has.
    pub(super) fn settle_burned(&mut self, packet_id: u16) {
        self.burned.remove(&packet_id);
    }

    pub(super) fn note_subscription(&mut self, packet_id: u16) {
        self.subscribing.insert(packet_id);
    }

    pub(super) fn end_subscription(&mut self, packet_id: u16) -> bool {
        self.subscribing.remove(&packet_id)
    }

    /// The connection is gone; messages stay.
    pub(super) fn handle_gone(&mut self) {
        self.subscribing.clear();
        // Only a QoS 2 message outlives its connection at the broker.
        self.burned.retain(|_, qos| *qos == Qos::ExactlyOnce);
        self.offered = 0;
        self.resumed = 0;
        for sent in self.sent.values_mut() {
            sent.is_offered = false;
            self.resumed += usize::from(sent.is_received);
        }
    }

    /// The session is gone, and with it all that was on its way.
    pub(super) fn forget_session(&mut self) {
        self.sent.clear();
        self.ids.clear();
        self.burned.clear();
        self.offered = 0;
        self.resumed = 0;
    }

    fn take_turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }
}
