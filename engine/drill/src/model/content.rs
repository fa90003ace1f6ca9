//! What the drill writes into a sector, so that one read tells which write it came from.

use parallax_block::SECTOR_SIZE;
use std::fmt;

/// Identity of one write. Zero stands for zeroes: a hole, a discard, or nothing ever written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Zeroes.
    pub const ZERO: Self = Self(0);

    /// Fills one sector: who wrote it, where it was meant to go, and a pattern that shows tears.
    pub fn fill(self, lba: u64, sector: &mut [u8]) {
        for (index, word) in sector.chunks_mut(8).enumerate() {
            word.copy_from_slice(&self.word(lba, index as u64).to_le_bytes());
        }
    }

    fn word(self, lba: u64, index: u64) -> u64 {
        match (self, index) {
            (Self::ZERO, _) => 0,
            (_, 0) => self.0,
            (_, 1) => lba | 1 << 63,
            _ => self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lba.rotate_left(32) ^ index,
        }
    }

    /// Which write a sector read at `lba` came from.
    pub fn read(lba: u64, sector: &[u8]) -> Result<Self, Garbage> {
        debug_assert_eq!(sector.len(), SECTOR_SIZE);
        let word = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&sector[index * 8..index * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        let stamp = Self(word(0));
        let wrong = (0..sector.len() / 8).find(|index| word(*index) != stamp.word(lba, *index as u64));
        match wrong {
            None => Ok(stamp),
            Some(index) => {
                Err(Garbage { claims: stamp, meant_for: word(1) & !(1 << 63), wrong_at: index * 8 })
            }
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ZERO { f.write_str("zeroes") } else { write!(f, "w{}", self.0) }
    }
}

/// A sector that no single write can have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage {
    /// Its first word, taken for a stamp.
    pub claims: Stamp,
    /// Its second word, taken for a sector number.
    pub meant_for: u64,
    /// First byte that does not fit.
    pub wrong_at: usize,
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "garbage: begins like {} for sector {}, wrong from byte {}",
            self.claims, self.meant_for, self.wrong_at
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_tells_its_writer_its_place_and_its_tears() {
        let mut sector = [0; SECTOR_SIZE];
        assert_eq!(Stamp::read(5, &sector), Ok(Stamp::ZERO));
        Stamp(77).fill(5, &mut sector);
        assert_eq!(Stamp::read(5, &sector), Ok(Stamp(77)));
        assert_eq!(Stamp::read(6, &sector).unwrap_err().meant_for, 5);
        sector[300] ^= 1;
        assert_eq!(Stamp::read(5, &sector).unwrap_err().wrong_at, 296);
    }
}
