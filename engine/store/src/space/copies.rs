//! The two copies of a bitmap block on the device, and which of them counts.

use crate::disk::Disk;
use parallax_block::{Error, ErrorKind, Result};
use parallax_format::{
    ExtentId,
    bitmap::{self, BitmapBlock},
};

/// What the device holds.
pub(crate) struct Copies {
    /// The newest that verifies and is of this claim of the extent, with its sequence.
    pub(crate) newest: Option<(BitmapBlock, u64)>,
    /// Why others do not verify or cannot be read. Claiming writes both, so each of them may have been the newest.
    pub(crate) strange: Vec<Error>,
}

/// Reads both copies of bitmap block `index` of an extent that was claimed at `birth`.
pub(crate) async fn read_copies(disk: &Disk, extent: ExtentId, birth: u64, index: u32) -> Result<Copies> {
    let mut copies = Copies { newest: None, strange: Vec::new() };
    for copy in 0..2 {
        let at = bitmap::location(extent, disk.superblock.extent_blocks, index, copy);
        let bytes = disk.read_block(at).await;
        match bytes.and_then(|bytes| BitmapBlock::decode(&bytes, at, disk.salt())) {
            Ok((block, sequence)) if block.birth == birth => {
                let rank = |block: &BitmapBlock, sequence| (block.incarnation, sequence);
                if copies.newest.as_ref().is_none_or(|(old, s)| rank(old, *s) < rank(&block, sequence)) {
                    copies.newest = Some((block, sequence));
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                copies.strange.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(copies)
}
