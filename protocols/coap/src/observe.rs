//! Who observes what: [`Observers`] (RFC 7641 §4).

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::exchange::ExchangeId;
use crate::wire::Token;
use crate::{Peer, ResourceId};

/// Names an observer. The generation tells it from an earlier one in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObserverId {
    slot: u32,
    generation: u32,
}

/// A client's interest in a resource.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) peer: Peer,
    pub(crate) token: Token,
    pub(crate) resource: ResourceId,
    /// The registration up to its payload: it is carried out again for each notification.
    pub(crate) request: Box<[u8]>,
    /// The confirmable notification that is under way.
    pub(crate) exchange: Option<ExchangeId>,
    /// A newer representation waits to be sent.
    pub(crate) is_behind: bool,
    /// Notifications since the last confirmable one.
    pub(crate) unconfirmed: u32,
    /// When the client last showed that it is there.
    pub(crate) confirmed_at: Instant,
    // The ids of the last notifications: a reset names one of them.
    recent: [Option<u16>; 4],
}

/// All observers, found by who they are and by what they observe.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    slots: Vec<(u32, Option<Observer>)>,
    free: Vec<u32>,
    by_peer: HashMap<Peer, Vec<ObserverId>>,
    // Ordered, so that a run can be repeated.
    by_resource: BTreeMap<ResourceId, Vec<ObserverId>>,
    limit: usize,
    limit_per_peer: usize,
}

impl Observers {
    pub(crate) fn new(limit: usize, limit_per_peer: usize) -> Self {
        Self { limit, limit_per_peer, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn observer(&mut self, id: ObserverId) -> Option<&mut Observer> {
        let (generation, observer) = self.slots.get_mut(id.slot as usize)?;
        if *generation == id.generation { observer.as_mut() } else { None }
    }

    /// The observers of a resource, oldest first.
    pub(crate) fn of(&self, resource: ResourceId) -> &[ObserverId] {
        self.by_resource.get(&resource).map_or(&[], Vec::as_slice)
    }

    /// All observers, in the order of what they observe.
    pub(crate) fn all(&self) -> impl Iterator<Item = ObserverId> {
        self.by_resource.values().flatten().copied()
    }

    /// Notes an observer, or notes its new registration when the peer uses the token already (RFC 7641 §4.1). `None`
    /// when a table is full.
    pub(crate) fn register(
        &mut self,
        now: Instant,
        (peer, token): (Peer, Token),
        resource: ResourceId,
        request: &[u8],
    ) -> Option<ObserverId> {
        if let Some(id) = self.find(peer, token) {
            let observer = self.observer(id)?;
            if observer.resource == resource {
                observer.request = request.into();
                observer.confirmed_at = now;
                return Some(id);
            }
            self.remove(id);
        }
        let of_peer = self.by_peer.get(&peer).map_or(0, Vec::len);
        if self.len() >= self.limit || of_peer >= self.limit_per_peer {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (generation, place) = &mut self.slots[slot as usize];
        *place = Some(Observer {
            peer,
            token,
            resource,
            request: request.into(),
            exchange: None,
            is_behind: false,
            unconfirmed: 0,
            confirmed_at: now,
            recent: [None; 4],
        });
        let id = ObserverId { slot, generation: *generation };
        self.by_peer.entry(peer).or_default().push(id);
        self.by_resource.entry(resource).or_default().push(id);
        Some(id)
    }

    pub(crate) fn find(&mut self, peer: Peer, token: Token) -> Option<ObserverId> {
        let ids = self.by_peer.get(&peer)?;
        let is_token =
            |id: &&ObserverId| self.slots[id.slot as usize].1.as_ref().is_some_and(|o| o.token == token);
        ids.iter().find(is_token).copied()
    }

    /// The observer that was sent the message with this id lately.
    pub(crate) fn find_notified(&self, peer: Peer, message: u16) -> Option<ObserverId> {
        let was_sent = |id: &&ObserverId| {
            self.slots[id.slot as usize].1.as_ref().is_some_and(|o| o.recent.contains(&Some(message)))
        };
        self.by_peer.get(&peer)?.iter().find(was_sent).copied()
    }

    /// The peer's observers.
    pub(crate) fn of_peer(&self, peer: Peer) -> Vec<ObserverId> {
        self.by_peer.get(&peer).cloned().unwrap_or_default()
    }

    pub(crate) fn remove(&mut self, id: ObserverId) -> Option<Observer> {
        self.observer(id)?;
        let (generation, place) = &mut self.slots[id.slot as usize];
        let observer = place.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.slot);
        if let Some(ids) = self.by_peer.get_mut(&observer.peer) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_peer.remove(&observer.peer);
            }
        }
        if let Some(ids) = self.by_resource.get_mut(&observer.resource) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_resource.remove(&observer.resource);
            }
        }
        Some(observer)
    }
}

impl Observer {
    /// Notes the id of a notification that was sent.
    pub(crate) fn note_sent(&mut self, message: u16) {
        self.recent.rotate_right(1);
        self.recent[0] = Some(message);
    }
}

/// Whether a notification is newer than the one before (RFC 7641 §3.4): by its 24-bit number, or because 128 s lie
/// between them.
pub(crate) fn is_newer((old, old_at): (u32, Instant), (new, new_at): (u32, Instant)) -> bool {
    let ahead = new.wrapping_sub(old) & 0x00ff_ffff;
    (ahead != 0 && ahead < 1 << 23) || new_at.saturating_duration_since(old_at).as_secs() >= 128
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(port: u16) -> Peer {
        Peer { socket: 0, address: ([127, 0, 0, 1], port).into() }
    }

    fn token(n: u8) -> Token {
        Token::new(&[n]).unwrap()
    }

    #[test]
    fn observers_are_bounded_in_total_and_per_peer_and_leave_nothing_behind() {
        let now = Instant::now();
        let mut observers = Observers::new(5, 2);
        let mut register =
            |port, n| observers.register(now, (peer(port), token(n)), ResourceId(n.into()), b"");
        let first = register(1, 1).unwrap();
        assert_eq!(register(1, 1), Some(first), "a second registration renews the first");
        assert!(register(1, 2).is_some());
        assert!(register(1, 3).is_none());
        assert!(register(2, 1).is_some() && register(3, 1).is_some() && register(4, 1).is_some());
        assert!(register(5, 1).is_none());
        assert_eq!(observers.of(ResourceId(1)).len(), 4);
        for id in observers.all().collect::<Vec<_>>() {
            assert!(observers.remove(id).is_some());
            assert!(observers.remove(id).is_none());
        }
        assert!(observers.by_peer.is_empty() && observers.by_resource.is_empty() && observers.len() == 0);
    }

    #[test]
    fn newer_is_decided_as_in_rfc_7641_section_3_4() {
        let now = Instant::now();
        let later = now + Duration::from_secs(129);
        assert!(is_newer((1, now), (2, now)));
        assert!(!is_newer((2, now), (1, now)) && !is_newer((2, now), (2, now)));
        assert!(is_newer((0x00ff_ffff, now), (0, now)));
        assert!(!is_newer((0, now), (1 << 23, now)));
        assert!(is_newer((2, now), (1, later)));
    }
}
