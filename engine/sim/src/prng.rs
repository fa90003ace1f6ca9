//! The one source of chance in a world.
//!
//! xoshiro256** over a splitmix64 seed: small, fast, the same on every machine. Not for secrets.

use std::ops::Range;

/// A seeded stream of numbers. Two with the same seed give the same stream for ever.
#[derive(Debug, Clone)]
pub struct Prng {
    state: [u64; 4],
}

impl Prng {
    /// A stream for `seed`; neighbouring seeds give unrelated streams.
    pub fn new(seed: u64) -> Self {
        let mut mixer = seed;
        Self { state: std::array::from_fn(|_| splitmix(&mut mixer)) }
    }

    /// A stream of its own, so that drawing more from one does not shift the other.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }

    /// 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let answer = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        answer
    }

    /// 128 bits.
    pub fn next_u128(&mut self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }

    /// A number in `range`. Panics if it is empty, which is a bug in the caller.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        let width = range
            .end
            .checked_sub(range.start)
            .filter(|width| *width > 0)
            .expect("a range with numbers in it");
        // The high half of a widening product is close to even for every width that a test uses.
        range.start + ((u128::from(self.next_u64()) * u128::from(width)) >> 64) as u64
    }

    /// An index below `length`. Panics if there is none.
    pub fn index(&mut self, length: usize) -> usize {
        self.range(0..length as u64) as usize
    }

    /// True in `times` of `out_of` cases.
    pub fn chance(&mut self, times: u64, out_of: u64) -> bool {
        self.range(0..out_of) < times
    }

    /// One of `items`. Panics if there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Any order of `items`, each equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// One step of splitmix64; also a good mixer of a single number.
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_never_changes() {
        // Seeds are kept in bug reports: a change of these numbers would make them worthless.
        let mut prng = Prng::new(1);
        assert_eq!(
            [prng.next_u64(), prng.next_u64()],
            [0xb3f2_af6d_0fc7_10c5, 0x853b_5596_4736_4cea],
            "the generator changed: every recorded seed is now another run"
        );
    }

    #[test]
    fn ranges_are_covered_and_kept() {
        let mut prng = Prng::new(7);
        let mut seen = [0u32; 6];
        for _ in 0..6000 {
            seen[prng.range(10..16) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..50).collect();
        Prng::new(3).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
