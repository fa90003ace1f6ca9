//! The superblock pair: what a pool is, and whether this version may open it.
//!
//! One copy in the first block of device 0, one in the last. Of two valid copies the higher sequence counts.
//! Its own checksum is salted with zero, since the pool's salt is inside.

use crate::{
    address::{EXTENT_BLOCKS_MAX, EXTENTS_MAX},
    codec::{Reader, Writer},
    seal::{self, Kind, PoolSalt},
};
use parallax_block::{BLOCK_SIZE, Buffer, Error, ErrorKind, Result};
use uuid::Uuid;

/// Version of the format that this code writes.
pub const FORMAT_VERSION: u32 = 1;

/// Blocks of one host's group, see [`crate::host`].
pub const HOST_GROUP_BLOCKS: u64 = 8;
/// Host slots that a pool may have at most; manager epochs are the slot modulo this.
pub const HOST_SLOTS_MAX: u32 = 4096;

/// Blocks of an extent at least: 256 KiB.
pub const EXTENT_BLOCKS_MIN: u32 = 64;

/// Most devices of a pool.
pub const DEVICES_MAX: usize = 16;

/// Incompatible features: a version that does not know one of them must not open the pool.
pub mod incompat {
    /// The format is not frozen: pools made by other versions may not open.
    pub const EXPERIMENTAL: u64 = 1 << 0;
    /// All that this version knows.
    pub const KNOWN: u64 = EXPERIMENTAL;

    /// Names of the set bits.
    pub fn names(flags: u64) -> Vec<String> {
        (0..64)
            .filter(|bit| flags & (1 << bit) != 0)
            .map(|bit| if bit == 0 { "experimental".to_owned() } else { format!("incompat-{bit}") })
            .collect()
    }
}

/// A device of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Identity.
    pub uuid: Uuid,
    /// Size in blocks when it was added.
    pub blocks: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the pool.
    pub uuid: Uuid,
    /// Mixed into every other checksum.
    pub salt: PoolSalt,
    /// Features that an older version may ignore.
    pub compat: u64,
    /// Features that an older version may read but not write.
    pub ro_compat: u64,
    /// Features that an older version must refuse.
    pub incompat: u64,
    /// Blocks of an extent: a power of two.
    pub extent_blocks: u32,
    /// Extents on device 0.
    pub extents: u32,
    /// Host groups.
    pub host_slots: u32,
    /// First block of the host groups.
    pub hosts_start: u64,
    /// First block of the first extent.
    pub extents_start: u64,
    /// Devices; the first holds this superblock.
    pub devices: Vec<DeviceEntry>,
}

impl Superblock {
    /// Lays out a device of `blocks` blocks.
    ///
    /// `extent_blocks` must be a power of two from 64 to 2^19; without it the largest is taken that still
    /// gives 256 extents.
    pub fn lay_out(uuid: Uuid, salt: PoolSalt, blocks: u64, extent_blocks: Option<u32>) -> Result<Self> {
        let extent_blocks = match extent_blocks {
            Some(size)
                if size.is_power_of_two() && (EXTENT_BLOCKS_MIN..=EXTENT_BLOCKS_MAX).contains(&size) =>
            {
                size
            }
            Some(size) => {
                return Err(Error::invalid(format!(
                    "an extent of {size} blocks is not a power of two from 256 KiB to 2 GiB"
                )));
            }
            None => {
                let largest = (blocks / 264).max(1);
                (1 << largest.ilog2()).clamp(u64::from(EXTENT_BLOCKS_MIN), u64::from(EXTENT_BLOCKS_MAX))
                    as u32
            }
        };
        let host_slots: u32 = if blocks >= 1 << 16 { 64 } else { 4 };
        let hosts_start = 1;
        let extents_start = (hosts_start + u64::from(host_slots) * HOST_GROUP_BLOCKS).next_multiple_of(16);
        let extents = blocks.saturating_sub(extents_start + 1) / u64::from(extent_blocks);
        let extents = extents.min(u64::from(EXTENTS_MAX)) as u32;
        if extents < 8 {
            return Err(Error::invalid(format!(
                "a device of {} KiB is too small for a pool: at least 8 extents of {} KiB are needed",
                blocks * 4,
                extent_blocks * 4
            )));
        }
        Ok(Self {
            uuid,
            salt,
            compat: 0,
            ro_compat: 0,
            incompat: incompat::EXPERIMENTAL,
            extent_blocks,
            extents,
            host_slots,
            hosts_start,
            extents_start,
            devices: vec![DeviceEntry { uuid, blocks }],
        })
    }

    /// The block for one of the two places.
    pub fn encode(&self, at: u64, sequence: u64) -> Buffer {
        let mut w = Writer::default();
        w.u32(FORMAT_VERSION);
        w.u32(BLOCK_SIZE as u32);
        w.u128(self.uuid.as_u128());
        w.u64(self.salt.0);
        w.u64(self.compat);
        w.u64(self.ro_compat);
        w.u64(self.incompat);
        w.u32(self.extent_blocks);
        w.u32(self.extents);
        w.u32(self.host_slots);
        w.u32(self.devices.len() as u32);
        w.u64(self.hosts_start);
        w.u64(self.extents_start);
        for device in &self.devices {
            w.u128(device.uuid.as_u128());
            w.u64(device.blocks);
        }
        seal::seal(Kind::Superblock, at, sequence, PoolSalt(0), &w.0)
    }

    /// Verifies the copy at block `at`; returns it with its sequence.
    pub fn decode(bytes: &[u8], at: u64) -> Result<(Self, u64)> {
        let sealed = seal::open(bytes, Kind::Superblock, at, PoolSalt(0))?;
        let mut r = Reader::new(sealed.payload, "superblock");
        let version = r.u32()?;
        if version != FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("the pool has format version {version}; this program knows version {FORMAT_VERSION}"),
            ));
        }
        if r.u32()? as usize != BLOCK_SIZE {
            return Err(Error::new(ErrorKind::Incompatible, "the pool's blocks are not 4 KiB"));
        }
        let uuid = Uuid::from_u128(r.u128()?);
        let salt = PoolSalt(r.u64()?);
        let (compat, ro_compat, incompat) = (r.u64()?, r.u64()?, r.u64()?);
        let unknown = incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!(
                    "the pool uses features that this program does not know ({}); use a newer version",
                    incompat::names(unknown).join(", ")
                ),
            ));
        }
        let (extent_blocks, extents, host_slots, devices) = (r.u32()?, r.u32()?, r.u32()?, r.u32()? as usize);
        let (hosts_start, extents_start) = (r.count()?, r.count()?);
        if !extent_blocks.is_power_of_two()
            || !(EXTENT_BLOCKS_MIN..=EXTENT_BLOCKS_MAX).contains(&extent_blocks)
            || extents > EXTENTS_MAX
            || devices == 0
            || devices > DEVICES_MAX
            || host_slots == 0
            || host_slots > HOST_SLOTS_MAX
        {
            return Err(Error::corrupt("the superblock's geometry is out of range"));
        }
        let devices = (0..devices)
            .map(|_| Ok(DeviceEntry { uuid: Uuid::from_u128(r.u128()?), blocks: r.count()? }))
            .collect::<Result<Vec<_>>>()?;
        let end = u64::from(extents)
            .checked_mul(u64::from(extent_blocks))
            .and_then(|blocks| blocks.checked_add(extents_start));
        let hosts_end = hosts_start + u64::from(host_slots) * HOST_GROUP_BLOCKS;
        if end.is_none_or(|end| end >= devices[0].blocks) || hosts_start == 0 || extents_start < hosts_end {
            return Err(Error::corrupt("the superblock's regions do not fit its device"));
        }
        let superblock = Self {
            uuid,
            salt,
            compat,
            ro_compat,
            incompat,
            extent_blocks,
            extents,
            host_slots,
            hosts_start,
            extents_start,
            devices,
        };
        Ok((superblock, sealed.sequence))
    }

    /// First block of a host's group.
    pub fn host_group(&self, slot: u32) -> u64 {
        self.hosts_start + u64::from(slot) * HOST_GROUP_BLOCKS
    }

    /// First block of the extent at `position`.
    pub fn extent_start(&self, position: u32) -> u64 {
        self.extents_start + u64::from(position) * u64::from(self.extent_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_2_gib_or_at_least_256_of_them() {
        let lay = |bytes: u64| Superblock::lay_out(Uuid::nil(), PoolSalt(1), bytes / 4096, None).unwrap();
        assert_eq!(lay(1 << 40).extent_blocks, 1 << 19);
        assert_eq!(lay(64 << 30).extent_blocks * 4096, 128 << 20);
        assert!(lay(64 << 30).extents >= 256);
        assert!(lay(1 << 30).extents >= 256);
        assert!(Superblock::lay_out(Uuid::nil(), PoolSalt(1), 100, None).is_err());
    }

    #[test]
    fn unknown_incompatible_features_are_refused_by_name() {
        let mut superblock = Superblock::lay_out(Uuid::nil(), PoolSalt(1), 1 << 20, None).unwrap();
        assert_eq!(Superblock::decode(&superblock.encode(0, 5), 0).unwrap(), (superblock.clone(), 5));
        superblock.incompat |= 1 << 9;
        let error = Superblock::decode(&superblock.encode(0, 1), 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("incompat-9"), "{error}");
    }
}
