//! Requests that were already carried out, and what was said to them: [`Duplicates`] (RFC 7252 §4.5).
//!
//! A set-associative table: a request's hash names a set of four lines of 64 bytes, and only those are looked at. The
//! cost of a request therefore does not depend on how many clients are known. The table is one zeroed allocation, so
//! that lines never used take no memory. Layout of a line, eight words:
//!
//! | word | holds |
//! |---|---|
//! | 0 | the whole hash; 0 is a free line |
//! | 1 | milliseconds since the table's epoch at which the line is forgotten |
//! | 2 | length of the reply, [`PENDING`] or [`LONG`] |
//! | 3..8 | the reply's first 40 bytes |
//!
//! The hash has 64 bits and a secret seed: two requests that are alive at once share one with a chance of about 2^-33
//! for a full table, and nobody can choose them so.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use crate::Peer;
use crate::wire::Token;

/// Names a message of a peer among all that are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageKey(u64);

/// What is known of a message that came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// It is being carried out.
    Pending,
    /// It was answered; [`Duplicates::write_reply`] has the words.
    Replied,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Duplicates {
    lines: Vec<[u64; 8]>,
    long: HashMap<u64, Box<[u8]>>,
    long_bytes: usize,
    long_limit: usize,
    seed: u64,
    epoch: Instant,
    evicted: u64,
}

impl Duplicates {
    /// `capacity` is rounded up to a power of two, at least one set.
    pub(crate) fn new(capacity: usize, long_limit: usize, seed: u64, epoch: Instant) -> Self {
        let lines = vec![[0; 8]; capacity.next_power_of_two().max(WAYS)];
        Self { lines, long: HashMap::new(), long_bytes: 0, long_limit, seed, epoch, evicted: 0 }
    }

    pub(crate) fn key(&self, peer: Peer, id: u16) -> MessageKey {
        let mut hasher = DefaultHasher::new();
        (self.seed, peer, id).hash(&mut hasher);
        MessageKey(hasher.finish().max(1))
    }

    /// Lines forgotten before their time.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(crate) fn find(&self, now: Instant, key: MessageKey) -> Option<Earlier> {
        let now_ms = self.millis(now);
        let line = self.set(key).iter().find(|line| line[KEY] == key.0 && line[EXPIRY] > now_ms)?;
        Some(if line[LENGTH] == PENDING { Earlier::Pending } else { Earlier::Replied })
    }

    /// Appends what was said to a message; nothing when it is not known or still pending.
    pub(crate) fn write_reply(&self, key: MessageKey, out: &mut Vec<u8>) {
        let Some(line) = self.set(key).iter().find(|line| line[KEY] == key.0) else {
            return;
        };
        match line[LENGTH] {
            PENDING => {}
            LONG => out.extend(self.long.get(&key.0).into_iter().flatten()),
            len => out.extend(line[FIRST..].iter().flat_map(|word| word.to_ne_bytes()).take(len as usize)),
        }
    }

    /// Remembers that a message is being carried out.
    pub(crate) fn begin(&mut self, now: Instant, key: MessageKey, expiry: Instant) {
        let (now_ms, expiry_ms) = (self.millis(now), self.millis(expiry));
        let set = self.set_range(key);
        let lines = &mut self.lines[set];
        let index = lines.iter().position(|line| line[KEY] == key.0).unwrap_or_else(|| {
            // A free line, else an expired one, else the oldest: all three are the smallest expiry.
            (0..WAYS).min_by_key(|index| lines[*index][EXPIRY]).unwrap_or_default()
        });
        let line = &mut lines[index];
        let old = *line;
        *line = [key.0, expiry_ms, PENDING, 0, 0, 0, 0, 0];
        if old[KEY] != key.0 && old[EXPIRY] > now_ms {
            self.evicted += 1;
        }
        if old[LENGTH] == LONG {
            self.forget_long(old[KEY]);
        }
    }

    /// Remembers what was said to a message that [`Duplicates::begin`] noted.
    pub(crate) fn finish(&mut self, key: MessageKey, reply: &[u8]) {
        let set = self.set_range(key);
        let Some(line) = self.lines[set].iter_mut().find(|line| line[KEY] == key.0) else {
            return;
        };
        let mut kept = reply;
        if reply.len() > INLINE_BYTES {
            if self.long_bytes + reply.len() <= self.long_limit {
                line[LENGTH] = LONG;
                self.long_bytes += reply.len();
                if let Some(old) = self.long.insert(key.0, reply.into()) {
                    self.long_bytes -= old.len();
                }
                return;
            }
            // Without room for the whole reply, its header and token still tell the client how it went.
            let token_len = usize::from(reply[0] & 15).min(Token::MAX_LEN);
            kept = &reply[..4 + token_len];
        }
        line[LENGTH] = kept.len() as u64;
        for (word, bytes) in line[FIRST..].iter_mut().zip(kept.chunks(8)) {
            let mut filled = [0; 8];
            filled[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(filled);
        }
    }

    fn forget_long(&mut self, key: u64) {
        if let Some(reply) = self.long.remove(&key) {
            self.long_bytes -= reply.len();
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        // Beginning at 1 keeps 0 for lines that were never used.
        at.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    fn set_range(&self, key: MessageKey) -> std::ops::Range<usize> {
        let first = key.0 as usize & (self.lines.len() - 1) & !(WAYS - 1);
        first..first + WAYS
    }

    fn set(&self, key: MessageKey) -> &[[u64; 8]] {
        &self.lines[self.set_range(key)]
    }
}

const WAYS: usize = 4;
const KEY: usize = 0;
const EXPIRY: usize = 1;
const LENGTH: usize = 2;
const FIRST: usize = 3;
const INLINE_BYTES: usize = 40;
const PENDING: u64 = u64::MAX;
const LONG: u64 = u64::MAX - 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(247);

    fn peer(port: u16) -> Peer {
        Peer { socket: 0, address: ([192, 0, 2, 1], port).into() }
    }

    fn reply(table: &Duplicates, key: MessageKey) -> Vec<u8> {
        let mut out = Vec::new();
        table.write_reply(key, &mut out);
        out
    }

    #[test]
    fn a_reply_of_any_length_is_kept_for_its_lifetime() {
        let now = Instant::now();
        let mut table = Duplicates::new(1024, 10_000, 7, now);
        for len in [4, 39, 40, 41, 1200] {
            let key = table.key(peer(len), 9);
            assert_eq!(table.find(now, key), None);
            table.begin(now, key, now + LIFETIME);
            assert_eq!(table.find(now, key), Some(Earlier::Pending));
            let said: Vec<u8> = (0..len).map(|n| n as u8 & 0x48).collect();
            table.finish(key, &said);
            assert_eq!(table.find(now + LIFETIME / 2, key), Some(Earlier::Replied));
            assert_eq!(reply(&table, key), said);
            assert_eq!(table.find(now + LIFETIME, key), None);
        }
        assert_ne!(table.key(peer(1), 9), table.key(peer(2), 9));
        assert_ne!(table.key(peer(1), 9), table.key(Peer { socket: 1, ..peer(1) }, 9));
    }

    #[test]
    fn a_long_reply_without_room_keeps_its_code_and_token() {
        let now = Instant::now();
        let mut table = Duplicates::new(4, 10, 7, now);
        let key = table.key(peer(1), 1);
        table.begin(now, key, now + LIFETIME);
        let mut said = vec![0x62, 0x45, 0, 1, 0xaa, 0xbb, 0xff];
        said.extend([b'x'; 100]);
        table.finish(key, &said);
        assert_eq!(reply(&table, key), said[..6]);
    }

    #[test]
    fn a_flood_forgets_the_oldest_and_memory_stays() {
        let now = Instant::now();
        let mut table = Duplicates::new(64, 4000, 7, now);
        for n in 0..10_000u16 {
            let at = now + Duration::from_millis(n.into());
            let key = table.key(peer(1), n);
            table.begin(at, key, at + LIFETIME);
            table.finish(key, &[0x60; 100]);
            assert_eq!(table.find(at, key), Some(Earlier::Replied));
            assert!(table.long_bytes <= 4000 && table.long.len() <= 40);
        }
        assert!(table.evicted() > 9000);
        assert_eq!(table.long_bytes, table.long.values().map(|reply| reply.len()).sum::<usize>());
    }
}
