//! Radix nodes: 512 words, no header.
//!
//! A node's check is the low 21 bits of CRC32C over pool salt, own address, level and content; it lies in the
//! link that names the node. Levels count from the leaves: a leaf of the block map is level 0. The leaves of
//! the snapshot table use [`TABLE_LEVEL`] and up, so that no tree's node verifies in the other.

use crate::{BlockAddress, Entry, PoolSalt, address::CHECK_BITS, seal::crc32c};
use parallax_block::{BLOCK_SIZE, Buffer, Error, Result};

/// Words of a node.
pub const FANOUT: usize = 512;

/// Added to the level of every node of a snapshot table.
pub const TABLE_LEVEL: u8 = 0x40;

/// Deepest block map: four levels map 256 TiB.
pub const DEPTH_MAX: u8 = 4;

/// A verified node, or one being made.
#[derive(Clone, PartialEq, Eq)]
pub struct Node(Box<[u64; FANOUT]>);

impl Node {
    /// All holes.
    pub fn empty() -> Self {
        Self(Box::new([0; FANOUT]))
    }

    /// Verifies the bytes of the node that `link` names.
    pub fn open(bytes: &[u8], link: Entry, level: u8, salt: PoolSalt) -> Result<Self> {
        let address =
            link.address().ok_or_else(|| Error::corrupt(format!("{link:?} is no link to a node")))?;
        if bytes.len() != BLOCK_SIZE || check(bytes, address, level, salt) != link.check() {
            return Err(Error::corrupt(format!(
                "the radix node at {address} (level {level}) does not match the check in its link"
            )));
        }
        let mut words = Box::new([0; FANOUT]);
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(Self(words))
    }

    /// Bytes for the disk.
    pub fn to_buffer(&self) -> Buffer {
        let mut buffer = Buffer::zeroed(BLOCK_SIZE);
        self.write_to(&mut buffer);
        buffer
    }

    /// Bytes for the disk, into a block of a larger buffer.
    pub fn write_to(&self, block: &mut [u8]) {
        for (word, bytes) in self.0.iter().zip(block.as_chunks_mut::<8>().0) {
            *bytes = word.to_le_bytes();
        }
    }

    /// An entry.
    pub fn entry(&self, index: usize) -> Entry {
        Entry::from_raw(self.0[index])
    }

    /// Replaces an entry.
    pub fn set(&mut self, index: usize, entry: Entry) {
        self.0[index] = entry.raw();
    }

    /// All words.
    pub fn words(&self) -> &[u64; FANOUT] {
        &self.0
    }

    /// All words, to be changed.
    pub fn words_mut(&mut self) -> &mut [u64; FANOUT] {
        &mut self.0
    }

    /// Marks every link read-only.
    pub fn mark_ro(&mut self) {
        for word in self.0.iter_mut() {
            *word = Entry::from_raw(*word).with_ro().raw();
        }
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} mapped)", self.0.iter().filter(|word| **word != 0).count())
    }
}

/// The check of a node's bytes; see the module.
pub fn check(bytes: &[u8], address: BlockAddress, level: u8, salt: PoolSalt) -> u32 {
    crc32c(salt, &[&address.to_bits().to_le_bytes(), &[level], bytes]) & ((1 << CHECK_BITS) - 1)
}

/// Blocks that a map of `depth` levels covers.
pub fn blocks_at_depth(depth: u8) -> u64 {
    1 << (9 * u32::from(depth))
}

/// Blocks that the deepest block map covers.
pub const BLOCKS_MAX: u64 = 1 << (9 * DEPTH_MAX as u32);

/// Levels that a map of `blocks` blocks needs: at least one.
pub fn depth_for(blocks: u64) -> u8 {
    (1..=DEPTH_MAX).find(|depth| blocks <= blocks_at_depth(*depth)).unwrap_or(DEPTH_MAX + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExtentId;

    /// A link has room for 21 bits of the check; no single bit may slip through them.
    #[test]
    fn every_single_bit_matters() {
        let at = BlockAddress::new(ExtentId::new(7).unwrap(), 9).unwrap();
        let mut node = Node::empty();
        for index in (0..FANOUT).step_by(3) {
            node.set(
                index,
                Entry::data(BlockAddress::new(ExtentId::new(3).unwrap(), index as u32).unwrap(), false),
            );
        }
        let mut bytes = node.to_buffer().to_vec();
        let whole = check(&bytes, at, 1, PoolSalt(5));
        for bit in 0..BLOCK_SIZE * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(check(&bytes, at, 1, PoolSalt(5)), whole, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn three_levels_map_512_gib_and_four_256_tib() {
        assert_eq!(blocks_at_depth(3) * 4096, 512 << 30);
        assert_eq!(blocks_at_depth(4) * 4096, 256 << 40);
        assert_eq!(depth_for(1), 1);
        assert_eq!(depth_for(513), 2);
        assert_eq!(depth_for((512u64 << 30) / 4096), 3);
        assert_eq!(depth_for((512u64 << 30) / 4096 + 1), 4);
    }

    #[test]
    fn a_node_opens_only_through_its_own_link() {
        let address = BlockAddress::new(ExtentId::new(3).unwrap(), 17).unwrap();
        let mut node = Node::empty();
        node.set(5, Entry::data(address, false));
        let bytes = node.to_buffer();
        let salt = PoolSalt(9);
        let link = Entry::node(address, check(&bytes, address, 1, salt), false);
        assert_eq!(Node::open(&bytes, link, 1, salt).unwrap(), node);
        assert!(Node::open(&bytes, link, 0, salt).is_err());
        let elsewhere = Entry::node(address.offset(1).unwrap(), link.check(), false);
        assert!(Node::open(&bytes, elsewhere, 1, salt).is_err());
    }
}
