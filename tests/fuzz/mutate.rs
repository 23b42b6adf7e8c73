//! Inputs that grow out of valid ones: most are nearly right, which is where parsers are wrong.

use super::Rng;

/// Makes one input after the other; the same seed and corpus make the same ones.
pub(crate) struct Mutator {
    rng: Rng,
    corpus: Vec<Vec<u8>>,
    input: Vec<u8>,
}

impl Mutator {
    pub(crate) fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "a corpus has at least one input");
        Self { rng: Rng::new(seed), corpus, input: Vec::new() }
    }

    /// The next input.
    pub(crate) fn input(&mut self) -> &[u8] {
        let chosen = self.rng.below(self.corpus.len());
        self.input.clear();
        self.input.extend_from_slice(&self.corpus[chosen]);
        for _ in 0..=self.rng.below(6) {
            self.change();
        }
        self.input.truncate(MAX_INPUT);
        &self.input
    }

    fn change(&mut self) {
        let length = self.input.len();
        let at = self.rng.below(length + 1);
        match self.rng.below(10) {
            0 if at < length => self.input[at] ^= 1 << self.rng.below(8),
            1 if at < length => self.input[at] = self.rng.bits() as u8,
            // Lengths and counters are wrong at their ends.
            2 if at < length => self.input[at] = EDGES[self.rng.below(EDGES.len())],
            3 if at + 2 <= length => {
                let edge = WIDE_EDGES[self.rng.below(WIDE_EDGES.len())];
                self.input[at..at + 2].copy_from_slice(&edge.to_be_bytes());
            }
            4 => self.input.insert(at, EDGES[self.rng.below(EDGES.len())]),
            5 if at < length => {
                let end = (at + 1 + self.rng.below(8)).min(length);
                self.input.drain(at..end);
            }
            6 => self.input.truncate(at),
            // What is allowed once comes twice.
            7 if at < length => {
                let end = (at + 1 + self.rng.below(32)).min(length);
                let piece = self.input[at..end].to_vec();
                for _ in 0..=self.rng.below(4) {
                    self.input.splice(at..at, piece.iter().copied());
                }
            }
            // The beginning of one and the end of another.
            8 => {
                let other = &self.corpus[self.rng.below(self.corpus.len())];
                let from = self.rng.below(other.len() + 1);
                self.input.truncate(at);
                self.input.extend_from_slice(&other[from..]);
            }
            _ => {
                let count = self.rng.below(16);
                let noise: Vec<u8> = (0..count).map(|_| self.rng.bits() as u8).collect();
                self.input.splice(at..at, noise);
            }
        }
    }
}

const MAX_INPUT: usize = 64 * 1024;
const EDGES: [u8; 16] = [0, 1, 2, 7, 8, 0x0D, 0x0F, 0x7F, 0x80, 0xC3, 0xFD, 0xFE, 0xFF, b'"', b'/', b'*'];
const WIDE_EDGES: [u16; 8] = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_and_most_of_them_differ_from_the_corpus() {
        let corpus = vec![b"GET /index".to_vec(), b"a=1&b=2".to_vec()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed, corpus.clone());
            (0..1000).map(|_| mutator.input().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
        assert!(inputs(7).iter().filter(|input| !corpus.contains(input)).count() > 900);
    }
}
