//! Formats a device as a pool.
//!
//! Order: first area and its header, flush, then the superblocks. A crash before the second superblock leaves a
//! device that does not open, or a whole pool.

use super::Pool;
use crate::{
    CreatePool, Environment, Limits,
    disk::Disk,
    registry::{Area, Known},
};
use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, ByteRange, Error, ErrorKind, Result, ResultExt};
use parallax_format::{PoolSalt, area::AreaId, record::Record, superblock::Superblock};
use std::sync::Arc;
use uuid::Uuid;

impl Pool {
    /// Formats `device`. Refuses one that looks as if somebody may want what is on it, unless forced.
    pub async fn create(
        device: Arc<dyn BlockDevice>,
        options: CreatePool,
        environment: &Environment,
    ) -> Result<()> {
        let geometry = device.geometry();
        if geometry.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the device is read-only"));
        }
        if !options.force
            && let Some(what) = recognise(&*device).await?
        {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("the device holds {what}; use --force to format over it and lose it"),
            ));
        }
        let block = BLOCK_SIZE as u64;
        let extent_blocks = options
            .extent_bytes
            .map(|bytes| {
                u32::try_from(bytes / block).map_err(|_| Error::invalid("an extent is at most 2 GiB"))
            })
            .transpose()?;
        let uuid = Uuid::from_u128((environment.entropy)());
        let salt = PoolSalt((environment.entropy)() as u64);
        let blocks = geometry.capacity / block;
        let superblock = Superblock::lay_out(uuid, salt, blocks, extent_blocks)?;
        let last = blocks - 1;
        let disk = Disk::new(device, superblock.clone(), environment.runtime.clone(), 64);
        // Old superblocks and host groups must not be taken for ours.
        for at in 0..superblock.extents_start {
            disk.write_physical(at, Buffer::zeroed(BLOCK_SIZE), false).await?;
        }
        disk.write_physical(last, Buffer::zeroed(BLOCK_SIZE), false).await?;
        disk.flush().await?;
        let mut known = Known::default();
        known.apply(&Record::Counters { birth: 0, incarnation: 1 });
        let id = AreaId { epoch: 1, generation: 1 };
        Area::compact(&disk, id, superblock.host_group(0), &[], &mut known)
            .await
            .context(|| "writing the registry")?;
        disk.flush().await?;
        disk.write_physical(last, superblock.encode(last, 1), true).await?;
        disk.write_physical(0, superblock.encode(0, 1), true).await?;
        disk.flush().await
    }
}

/// Reads both superblocks; the newest valid one counts.
pub(crate) async fn read_superblock(device: &dyn BlockDevice) -> Result<Superblock> {
    let block = BLOCK_SIZE as u64;
    let blocks = device.geometry().capacity / block;
    let mut newest: Option<(Superblock, u64)> = None;
    let mut failure = None;
    for at in [0, blocks.saturating_sub(1)] {
        let (bytes, result) = device.read(at * block, Buffer::zeroed(BLOCK_SIZE)).await;
        let decoded = result.and_then(|()| Superblock::decode(&bytes, at));
        match decoded {
            Ok((superblock, sequence)) if newest.as_ref().is_none_or(|(_, best)| *best < sequence) => {
                newest = Some((superblock, sequence));
            }
            Ok(_) => {}
            // An incompatible pool must be called so, not a damaged one.
            Err(error) if error.kind() == ErrorKind::Incompatible => return Err(error),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match (newest, failure) {
        (Some((superblock, _)), _) => {
            if superblock.devices[0].blocks > blocks {
                return Err(Error::corrupt(format!(
                    "the pool was made on {} blocks and the device has only {blocks}",
                    superblock.devices[0].blocks
                )));
            }
            Ok(superblock)
        }
        (None, failure) => Err(Error::new(
            ErrorKind::NotFound,
            "no Parallax pool is on this device; `parallax pool create` makes one",
        )
        .context(failure.map(|error| error.to_string()).unwrap_or_default())),
    }
}

/// Whether the device looks like something that somebody may want to keep; names it.
pub async fn recognise(device: &dyn BlockDevice) -> Result<Option<String>> {
    let capacity = device.geometry().capacity;
    let length = capacity.min(256 << 10) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    let (head, result) = device.read(0, Buffer::zeroed(length as usize)).await;
    result.context(|| "looking at what is on the device")?;
    if Superblock::decode(&head[..BLOCK_SIZE], 0).is_ok()
        || parallax_format::seal::looks_sealed(&head[..BLOCK_SIZE])
    {
        return Ok(Some("a Parallax pool".to_owned()));
    }
    let magics: [(usize, &[u8], &str); 16] = [
        (0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
        (0, b"XFSB", "an XFS filesystem"),
        (0x10040, b"_BHRfS_M", "a btrfs filesystem"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (0x200, b"LABELONE", "an LVM physical volume"),
        (0x200, b"EFI PART", "a GPT partition table"),
        (0x1000, b"EFI PART", "a GPT partition table"),
        (0xff6, b"SWAPSPACE2", "swap space"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"hsqs", "a squashfs image"),
        (3, b"NTFS    ", "an NTFS filesystem"),
        (0x52, b"FAT32   ", "a FAT filesystem"),
        (0x36, b"FAT16   ", "a FAT filesystem"),
        (0x8001, b"CD001", "an ISO 9660 image"),
        (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
        (0, b"NAMESPACE_INDEX", "NVDIMM labels"),
    ];
    for (at, magic, what) in magics {
        if head.get(at..at + magic.len()) == Some(magic) {
            return Ok(Some(what.to_owned()));
        }
    }
    if head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        return Ok(Some("a boot sector or MBR partition table".to_owned()));
    }
    if head.iter().any(|byte| *byte != 0) {
        return Ok(Some("data that is not blank".to_owned()));
    }
    // A pool whose first superblock was lost.
    let last = capacity / BLOCK_SIZE as u64 - 1;
    let start = (last + 1) * BLOCK_SIZE as u64 - length;
    let (tail, result) = device.read(start, Buffer::zeroed(length as usize)).await;
    result.context(|| "looking at what is at the end of the device")?;
    if Superblock::decode(&tail[tail.len() - BLOCK_SIZE..], last).is_ok() {
        return Ok(Some("a Parallax pool whose first superblock is damaged".to_owned()));
    }
    // The copy of a partition table, a RAID member's description.
    if tail.iter().any(|byte| *byte != 0) {
        return Ok(Some("data at its end that is not blank".to_owned()));
    }
    debug_assert!(ByteRange::new(0, capacity).is_ok(), "a device's capacity fits 64 bits");
    Ok(None)
}

impl Limits {
    /// Nodes that fit the cache.
    pub(crate) fn cache_nodes(&self) -> usize {
        (self.cache_bytes / BLOCK_SIZE as u64) as usize
    }
}
