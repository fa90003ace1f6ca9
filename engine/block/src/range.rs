//! A range of bytes on a device.

use crate::{BLOCK_SIZE, Error, Result};
use std::fmt;

/// `offset .. offset + length`, in bytes, never wrapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    offset: u64,
    length: u64,
}

impl ByteRange {
    /// A range; fails if its end would not fit 64 bits.
    pub fn new(offset: u64, length: u64) -> Result<Self> {
        if offset.checked_add(length).is_none() {
            return Err(Error::invalid(format!("range at {offset} of {length} bytes wraps around")));
        }
        Ok(Self { offset, length })
    }

    /// First byte.
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// Number of bytes.
    pub fn length(self) -> u64 {
        self.length
    }

    /// One past the last byte.
    pub fn end(self) -> u64 {
        self.offset + self.length
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(self) -> bool {
        self.length == 0
    }

    /// Fails unless the range lies inside `capacity` bytes and both ends are multiples of `sector`.
    pub fn check(self, capacity: u64, sector: u32) -> Result<()> {
        if self.end() > capacity {
            return Err(Error::invalid(format!("{self} ends past the device's {capacity} bytes")));
        }
        if !self.offset.is_multiple_of(u64::from(sector)) || !self.length.is_multiple_of(u64::from(sector)) {
            return Err(Error::invalid(format!("{self} is not a multiple of the {sector}-byte sector")));
        }
        Ok(())
    }

    /// The whole blocks inside the range, as `first..end` block numbers; empty if there are none.
    pub fn inner_blocks(self) -> std::ops::Range<u64> {
        let size = BLOCK_SIZE as u64;
        let first = self.offset.div_ceil(size);
        first..(self.end() / size).max(first)
    }

    /// Every block that the range touches, as `first..end` block numbers.
    pub fn outer_blocks(self) -> std::ops::Range<u64> {
        let size = BLOCK_SIZE as u64;
        let first = self.offset / size;
        if self.is_empty() { first..first } else { first..self.end().div_ceil(size) }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.offset, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_blocks_are_outside_the_inner_range() {
        let range = ByteRange::new(512, 8192).unwrap();
        assert_eq!(range.inner_blocks(), 1..2);
        assert_eq!(range.outer_blocks(), 0..3);
        assert!(ByteRange::new(512, 512).unwrap().inner_blocks().is_empty());
    }

    #[test]
    fn wrapping_and_misaligned_ranges_are_refused() {
        assert!(ByteRange::new(u64::MAX, 1).is_err());
        assert!(ByteRange::new(1, 512).unwrap().check(4096, 512).is_err());
        assert!(ByteRange::new(4096, 512).unwrap().check(4096, 512).is_err());
    }
}
