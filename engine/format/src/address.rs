//! Addresses and the radix entry that carries them.
//!
//! ```text
//! bit 63   62..60   59..39        38..19      18..0
//!     ro   kind     check (21)    extent (20) block (19)
//! ```
//!
//! Extents are logical: the catalogue says on which device and where each lies. Extent 0 is never mapped, so
//! the entry 0 is a hole. *Check* is set in links to nodes and zero in links to data.

use std::fmt;

/// Most blocks that an extent can have: 2 GiB.
pub const EXTENT_BLOCKS_MAX: u32 = 1 << 19;

/// Most extents that a pool can have.
pub const EXTENTS_MAX: u32 = (1 << 20) - 1;

/// Bits of an entry's check.
pub const CHECK_BITS: u32 = 21;

/// A logical extent: 1 to 2^20 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId(u32);

impl ExtentId {
    /// `None` outside 1 ..= 2^20 - 1.
    pub fn new(number: u32) -> Option<Self> {
        (1..=EXTENTS_MAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A block inside a logical extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockAddress {
    extent: ExtentId,
    block: u32,
}

impl BlockAddress {
    /// `None` if `block` does not fit 19 bits.
    pub fn new(extent: ExtentId, block: u32) -> Option<Self> {
        (block < EXTENT_BLOCKS_MAX).then_some(Self { extent, block })
    }

    /// Decodes [`Self::to_bits`]; `None` for zero or out of range.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let extent = ExtentId::new(u32::try_from(bits >> 19).ok()?)?;
        Self::new(extent, (bits & 0x7_ffff) as u32)
    }

    /// Extent in bits 38..19, block in bits 18..0; never zero.
    pub fn to_bits(self) -> u64 {
        u64::from(self.extent.0) << 19 | u64::from(self.block)
    }

    /// The extent.
    pub fn extent(self) -> ExtentId {
        self.extent
    }

    /// Number of the block in its extent.
    pub fn block(self) -> u32 {
        self.block
    }

    /// The address `count` blocks further in the same extent; `None` past its largest size.
    pub fn offset(self, count: u32) -> Option<Self> {
        Self::new(self.extent, self.block.checked_add(count)?)
    }
}

impl fmt::Display for BlockAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.extent, self.block)
    }
}

/// A block counted from the start of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalBlock(pub u64);

impl fmt::Display for PhysicalBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What an entry means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// One block (or one node).
    Plain,
    /// Reserved: 2 MiB in one run.
    Run,
    /// Reserved: a compressed block.
    Compressed,
    /// Reserved: reading fails.
    Poison,
    /// Not known to this version.
    Unknown(u8),
}

/// A word of a radix node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Entry(u64);

impl Entry {
    /// Nothing mapped.
    pub const HOLE: Self = Self(0);
    const RO: u64 = 1 << 63;
    const LOCATION: u64 = (1 << 39) - 1;

    /// A link to a data block.
    pub fn data(address: BlockAddress, ro: bool) -> Self {
        Self(address.to_bits() | if ro { Self::RO } else { 0 })
    }

    /// A link to a node whose [`Node::check`](crate::Node::check) is `check`.
    pub fn node(address: BlockAddress, check: u32, ro: bool) -> Self {
        debug_assert!(check < 1 << CHECK_BITS, "check has 21 bits");
        Self(address.to_bits() | u64::from(check) << 39 | if ro { Self::RO } else { 0 })
    }

    /// From a word on disk; nothing is checked.
    pub fn from_raw(word: u64) -> Self {
        Self(word)
    }

    /// The word for the disk.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Whether nothing is mapped.
    pub fn is_hole(self) -> bool {
        self.0 & !Self::RO == 0
    }

    /// Whether everything below is shared and must be copied before it is changed.
    pub fn is_ro(self) -> bool {
        self.0 & Self::RO != 0
    }

    /// The same link, read-only (a hole stays as it is).
    #[must_use]
    pub fn with_ro(self) -> Self {
        if self.is_hole() { Self::HOLE } else { Self(self.0 | Self::RO) }
    }

    /// What it means.
    pub fn kind(self) -> EntryKind {
        match (self.0 >> 60) & 7 {
            0 => EntryKind::Plain,
            1 => EntryKind::Run,
            2 => EntryKind::Compressed,
            3 => EntryKind::Poison,
            other => EntryKind::Unknown(other as u8),
        }
    }

    /// The check of the node behind it; zero for data.
    pub fn check(self) -> u32 {
        ((self.0 >> 39) & ((1 << CHECK_BITS) - 1)) as u32
    }

    /// Where it points; `None` for a hole or a mapping into extent 0.
    pub fn address(self) -> Option<BlockAddress> {
        BlockAddress::from_bits(self.0 & Self::LOCATION)
    }

    /// Whether both name the same block, whatever their ro bits.
    pub fn same_target(self, other: Self) -> bool {
        (self.0 ^ other.0) & !Self::RO == 0
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            None if self.is_hole() => f.write_str("hole"),
            None => write!(f, "invalid {:#018x}", self.0),
            Some(address) => {
                write!(f, "{address}{}", if self.is_ro() { " ro" } else { "" })?;
                if self.check() != 0 {
                    write!(f, " check {:#x}", self.check())?;
                }
                if self.kind() != EntryKind::Plain {
                    write!(f, " {:?}", self.kind())?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_bits_are_where_the_format_says() {
        let address = BlockAddress::new(ExtentId::new(0x5_4321).unwrap(), 0x6_789a).unwrap();
        let entry = Entry::node(address, 0x1f_0f0f, true);
        assert_eq!(entry.raw(), 1 << 63 | 0x1f_0f0f << 39 | 0x5_4321 << 19 | 0x6_789a);
        assert_eq!(entry.address(), Some(address));
        assert_eq!(entry.check(), 0x1f_0f0f);
        assert!(entry.is_ro() && !entry.is_hole());
        assert_eq!(entry.kind(), EntryKind::Plain);
    }

    #[test]
    fn extent_zero_is_never_mapped() {
        assert!(ExtentId::new(0).is_none());
        assert!(BlockAddress::from_bits(17).is_none());
        assert!(Entry::HOLE.with_ro().is_hole());
        assert_eq!(Entry::HOLE.with_ro().raw(), 0);
    }

    #[test]
    fn reserved_kinds_are_named() {
        assert_eq!(Entry::from_raw(3 << 60 | 1 << 19).kind(), EntryKind::Poison);
        assert_eq!(Entry::from_raw(7 << 60 | 1 << 19).kind(), EntryKind::Unknown(7));
    }
}
