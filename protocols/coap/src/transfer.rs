//! Bodies that cross the wire block by block, on the server's side: [`Snapshots`] of what is fetched (Block2) and
//! [`Assemblies`] of what is received (Block1). RFC 7959 §2; Request-Tag of RFC 9175 §3.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::request::Request;
use crate::resource::Response;
use crate::wire::{Block, number};

/// Names a transfer: peer, method and the options that make up the cache key, blocks apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TransferKey(u64);

impl TransferKey {
    pub(crate) fn of(request: &Request<'_>, seed: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, request.peer, request.code()).hash(&mut hasher);
        for option in request.message.options() {
            if matches!(
                option.0,
                number::URI_PATH
                    | number::URI_QUERY
                    | number::ACCEPT
                    | number::CONTENT_FORMAT
                    | number::REQUEST_TAG
            ) {
                option.hash(&mut hasher);
            }
        }
        Self(hasher.finish())
    }
}

/// Representations of which the first block was fetched, so that the others fit to it although the resource has
/// changed since.
#[derive(Debug)]
pub(crate) struct Snapshots {
    kept: VecDeque<(TransferKey, Instant, Response)>,
    limit: usize,
}

impl Snapshots {
    pub(crate) fn new(limit: usize) -> Self {
        Self { kept: VecDeque::new(), limit }
    }

    pub(crate) fn keep(&mut self, now: Instant, key: TransferKey, response: &Response) {
        self.kept.retain(|kept| kept.0 != key);
        if self.limit == 0 {
            return;
        }
        if self.kept.len() >= self.limit {
            self.kept.pop_front();
        }
        self.kept.push_back((key, now, response.clone()));
    }

    pub(crate) fn find(&mut self, now: Instant, key: TransferKey, lifetime: Duration) -> Option<&Response> {
        let kept = self.kept.iter_mut().find(|kept| kept.0 == key && now < kept.1 + lifetime)?;
        kept.1 = now;
        Some(&kept.2)
    }
}

/// Bodies of which some blocks have come.
#[derive(Debug)]
pub(crate) struct Assemblies {
    open: VecDeque<Assembly>,
    limit: usize,
    body_limit: usize,
    evicted: u64,
}

#[derive(Debug)]
struct Assembly {
    key: TransferKey,
    body: Vec<u8>,
    touched: Instant,
}

/// What a block did to its body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assembled {
    /// More are to come: 2.31.
    Continue,
    /// This is the whole body.
    Whole(Vec<u8>),
    /// A block is missing before this one: 4.08.
    Incomplete,
    /// The body is larger than we take: 4.13.
    TooLarge,
}

impl Assemblies {
    pub(crate) fn new(limit: usize, body_limit: usize) -> Self {
        Self { open: VecDeque::new(), limit, body_limit, evicted: 0 }
    }

    /// Bodies forgotten before they were complete.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Adds a block. Blocks come in order; the first begins anew.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        key: TransferKey,
        block: Block,
        payload: &[u8],
        lifetime: Duration,
    ) -> Assembled {
        let before = self.open.len();
        self.open.retain(|assembly| now < assembly.touched + lifetime);
        self.evicted += (before - self.open.len()) as u64;
        let known = self.open.iter().position(|assembly| assembly.key == key);
        let mut assembly = known
            .and_then(|index| self.open.remove(index))
            .filter(|_| block.number > 0)
            .unwrap_or_else(|| Assembly { key, body: Vec::new(), touched: now });
        // Only the last block may be shorter than its size says (RFC 7959 §2.2).
        if block.offset() != assembly.body.len() || (block.more && payload.len() != block.size()) {
            return Assembled::Incomplete;
        }
        if assembly.body.len() + payload.len() > self.body_limit {
            return Assembled::TooLarge;
        }
        assembly.body.extend_from_slice(payload);
        assembly.touched = now;
        if !block.more {
            return Assembled::Whole(assembly.body);
        }
        if self.open.len() >= self.limit {
            self.open.pop_front();
            self.evicted += 1;
        }
        self.open.push_back(assembly);
        Assembled::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(60);

    fn block(number: u32, more: bool) -> Block {
        Block { number, more, exponent: 0 }
    }

    #[test]
    fn blocks_in_order_make_the_body_and_a_gap_is_refused() {
        let now = Instant::now();
        let mut assemblies = Assemblies::new(2, 100);
        let key = TransferKey(1);
        assert_eq!(assemblies.add(now, key, block(0, true), &[1; 16], LIFETIME), Assembled::Continue);
        assert_eq!(assemblies.add(now, key, block(1, true), &[2; 16], LIFETIME), Assembled::Continue);
        let whole = assemblies.add(now, key, block(2, false), &[3; 4], LIFETIME);
        assert_eq!(whole, Assembled::Whole([vec![1; 16], vec![2; 16], vec![3; 4]].concat()));
        assert_eq!(assemblies.add(now, key, block(0, true), &[1; 16], LIFETIME), Assembled::Continue);
        assert_eq!(assemblies.add(now, key, block(2, false), &[1], LIFETIME), Assembled::Incomplete);
        assert_eq!(assemblies.add(now, key, block(1, false), &[1], LIFETIME), Assembled::Incomplete);
        assert_eq!(assemblies.add(now, key, block(0, true), &[1; 15], LIFETIME), Assembled::Incomplete);
        for (number, expected) in
            [(0, Assembled::Continue), (1, Assembled::Continue), (1, Assembled::Incomplete)]
        {
            assert_eq!(assemblies.add(now, key, block(number, true), &[1; 16], LIFETIME), expected);
        }
    }

    #[test]
    fn open_bodies_are_bounded_in_number_size_and_time() {
        let now = Instant::now();
        let mut assemblies = Assemblies::new(2, 40);
        for key in 0..3 {
            assert_eq!(
                assemblies.add(now, TransferKey(key), block(0, true), &[0; 16], LIFETIME),
                Assembled::Continue
            );
        }
        assert_eq!(assemblies.evicted(), 1);
        let add = |assemblies: &mut Assemblies, at, key, number| {
            assemblies.add(at, TransferKey(key), block(number, true), &[0; 16], LIFETIME)
        };
        assert_eq!(add(&mut assemblies, now, 0, 1), Assembled::Incomplete);
        assert_eq!(add(&mut assemblies, now, 1, 1), Assembled::Continue);
        assert_eq!(add(&mut assemblies, now, 1, 2), Assembled::TooLarge);
        assert_eq!(add(&mut assemblies, now + LIFETIME, 2, 1), Assembled::Incomplete);
        assert!(assemblies.open.is_empty());
    }
}
