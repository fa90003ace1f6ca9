//! The one control call for which there is no safe binding.

use parallax_block::ByteRange;
use rustix::{
    io::Errno,
    ioctl::{Opcode, Setter},
};
use std::fs::File;

/// `_IO(0x12, 119)`.
const BLKDISCARD: Opcode = rustix::ioctl::opcode::none(0x12, 119);

/// Tells a block device that a range is no longer wanted. Blocks.
pub(crate) fn discard(file: &File, range: ByteRange) -> Result<(), Errno> {
    // SAFETY: BLKDISCARD reads two 64-bit numbers, start and length, which is what the array is, and writes
    // to no memory of ours.
    unsafe {
        rustix::ioctl::ioctl(file, Setter::<BLKDISCARD, [u64; 2]>::new([range.offset(), range.length()]))
    }
}
