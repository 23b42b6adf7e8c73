//! Datagrams on their way out: [`Outbox`], one buffer that is written and drained in turn.

use std::collections::VecDeque;

use crate::Peer;

/// A queue of datagrams that share one buffer; the buffer is reused whenever the queue has run empty.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    // Each entry ends where the next begins.
    queue: VecDeque<(Peer, usize)>,
    read: usize,
    limit: usize,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), queue: VecDeque::new(), read: 0, limit }
    }

    /// Whether what is sent for its own sake (notifications) should wait.
    pub(crate) fn is_crowded(&self) -> bool {
        !self.queue.is_empty() && self.bytes.len() >= self.limit / 2
    }

    /// Appends a datagram; `false` when the queue is full and nothing was written.
    pub(crate) fn write(&mut self, peer: Peer, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.reclaim();
        if self.bytes.len() >= self.limit {
            return false;
        }
        let before = self.bytes.len();
        write(&mut self.bytes);
        // Nothing to say is no datagram.
        if self.bytes.len() > before {
            self.queue.push_back((peer, self.bytes.len()));
        }
        true
    }

    /// The bytes written last.
    pub(crate) fn last(&self) -> &[u8] {
        let begin = self.queue.len().checked_sub(2).map_or(self.read, |before| self.queue[before].1);
        &self.bytes[begin..]
    }

    /// Takes the oldest datagram.
    pub(crate) fn pop(&mut self) -> Option<(Peer, &[u8])> {
        let (peer, end) = self.queue.pop_front()?;
        let begin = std::mem::replace(&mut self.read, end);
        Some((peer, &self.bytes[begin..end]))
    }

    fn reclaim(&mut self) {
        if self.queue.is_empty() && self.read > 0 {
            self.read = 0;
            self.bytes.clear();
            // A burst to thousands of observers must not stay in memory for ever.
            self.bytes.shrink_to(KEPT_BYTES);
        }
    }
}

const KEPT_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Peer {
        Peer { socket: 0, address: ([127, 0, 0, 1], port).into() }
    }

    #[test]
    fn datagrams_leave_in_order_and_the_buffer_is_reused() {
        let mut outbox = Outbox::new(1000);
        for round in 0..3 {
            for n in 0..3u8 {
                assert!(outbox.write(peer(n.into()), |out| out.extend([round, n])));
                assert_eq!(outbox.last(), [round, n]);
            }
            for n in 0..3u8 {
                assert_eq!(outbox.pop(), Some((peer(n.into()), &[round, n][..])));
            }
            assert!(outbox.pop().is_none());
        }
        assert!(outbox.bytes.len() <= 6);
    }

    #[test]
    fn a_full_outbox_takes_nothing_more() {
        let mut outbox = Outbox::new(10);
        assert!(outbox.write(peer(1), |out| out.extend([0; 12])));
        assert!(outbox.is_crowded());
        assert!(!outbox.write(peer(2), |out| out.push(0)));
        assert_eq!(outbox.pop().unwrap().0, peer(1));
        assert!(!outbox.is_crowded());
        assert!(outbox.write(peer(2), |out| out.push(0)));
    }
}
