//! Allocation bitmaps: two checksummed copies at the head of every data and metadata extent.
//!
//! ```text
//! block 0 .. n-1    copy 0 of bitmap blocks 0 .. n-1
//! block n .. 2n-1   copy 1
//! block 2n ..       what the extent holds
//! ```
//!
//! A bitmap block covers [`BITS`] blocks. Writes alternate between its copies; the valid copy with the higher
//! (incarnation, sequence) counts. A copy of another birth of the extent does not count at all.

use crate::{
    BlockAddress, ExtentId,
    codec::{Reader, Writer},
    seal::{self, Kind, PoolSalt},
};
use parallax_block::{Buffer, Error, Result};

/// Blocks that one bitmap block covers.
pub const BITS: u32 = 32_256;

/// 64-bit words of one bitmap block.
pub const WORDS: usize = BITS as usize / 64;

/// Bitmap blocks of one copy.
pub fn blocks_per_copy(extent_blocks: u32) -> u32 {
    extent_blocks.div_ceil(BITS)
}

/// First block of an extent that can be allocated.
pub fn first_usable(extent_blocks: u32) -> u32 {
    2 * blocks_per_copy(extent_blocks)
}

/// Where a copy of a bitmap block lies.
pub fn location(extent: ExtentId, extent_blocks: u32, index: u32, copy: u32) -> BlockAddress {
    BlockAddress::new(extent, copy * blocks_per_copy(extent_blocks) + index)
        .expect("bitmaps lie at the head of an extent")
}

/// One bitmap block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapBlock {
    /// Who wrote it.
    pub incarnation: u64,
    /// Which life of the extent it belongs to.
    pub birth: u64,
    /// A set bit is an allocated block.
    pub words: Vec<u64>,
}

impl BitmapBlock {
    /// The block for the disk.
    pub fn encode(&self, at: BlockAddress, sequence: u64, salt: PoolSalt) -> Buffer {
        let mut w = Writer::default();
        w.u64(self.incarnation);
        w.u64(self.birth);
        for word in &self.words {
            w.u64(*word);
        }
        seal::seal(Kind::Bitmap, at.to_bits(), sequence, salt, &w.0)
    }

    /// Verifies; returns it with its sequence.
    pub fn decode(bytes: &[u8], at: BlockAddress, salt: PoolSalt) -> Result<(Self, u64)> {
        let sealed = seal::open(bytes, Kind::Bitmap, at.to_bits(), salt)?;
        let mut r = Reader::new(sealed.payload, "bitmap");
        let (incarnation, birth) = (r.count()?, r.count()?);
        if r.remaining() != WORDS * 8 {
            return Err(Error::corrupt("a bitmap block has the wrong length"));
        }
        let words = (0..WORDS).map(|_| r.u64()).collect::<Result<Vec<_>>>()?;
        Ok((Self { incarnation, birth, words }, sealed.sequence))
    }
}
