//! A running hash of everything that happened, so that two runs can be told apart in eight bytes.

use crate::prng::splitmix;

/// Hash of a run so far. Order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct History(u64);

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5bd1_e995_7b93_1d4f)
    }

    /// Adds one thing that happened: a small tag and two numbers about it.
    pub(crate) fn note(&mut self, tag: u64, first: u64, second: u64) {
        for value in [tag, first, second] {
            self.0 = splitmix(&mut (self.0.rotate_left(23) ^ value));
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

/// Hash of some bytes, for noting what a write carried.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash.rotate_left(29) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    hash
}
