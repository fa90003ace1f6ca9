//! What lies on a device, told by its own bytes.
//!
//! Decides whether something may be formatted, so it errs on one side only: `Zeroes` means that every byte of
//! both ends was read and is zero; anything else is something, whether it has a name here or not. A byte that
//! cannot be read is an error, never `Zeroes`.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

/// Bytes that are looked at on either end. Every known signature lies within.
const END_BYTES: usize = 1 << 20;

/// Something that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signature {
    /// ext2, ext3 or ext4.
    Ext(Ext),
    /// XFS.
    Xfs {
        /// Bytes that it spans.
        bytes: u64,
        /// It has been mounted and unmounted since it was made.
        used: bool,
    },
    /// Btrfs.
    Btrfs,
    /// An encrypted container.
    Luks,
    /// A physical volume of LVM.
    Lvm,
    /// A partition table, new or old.
    Partitions,
    /// Swap space.
    Swap,
}

/// What mounting needs to know of an ext filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ext {
    /// Bytes that it spans.
    pub(crate) bytes: u64,
    /// Not unmounted cleanly, or its errors were noted.
    pub(crate) needs_check: bool,
    /// It has been mounted since it was made.
    pub(crate) used: bool,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext(_) => "an ext filesystem",
            Self::Xfs { .. } => "an xfs filesystem",
            Self::Btrfs => "a btrfs filesystem",
            Self::Luks => "a LUKS container",
            Self::Lvm => "an LVM physical volume",
            Self::Partitions => "a partition table",
            Self::Swap => "swap space",
        })
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Both ends are zero.
    Zeroes,
    /// Exactly one thing that has a name.
    Known(Signature),
    /// Several at once: remains of one below another.
    Ambiguous(Vec<Signature>),
    /// Bytes without a name.
    Unrecognised,
}

impl Content {
    /// The one filesystem that the kernel would mount. Beside it may lie what only looks like something: the last block
    /// of a filesystem may be the last block of somebody's disk image.
    pub(crate) fn filesystem(&self) -> Option<Signature> {
        let found = match self {
            Self::Known(one) => std::slice::from_ref(one),
            Self::Ambiguous(several) => several,
            Self::Zeroes | Self::Unrecognised => &[],
        };
        let mut mountable =
            found.iter().filter(|one| matches!(one, Signature::Ext(_) | Signature::Xfs { .. }));
        mountable.next().copied().filter(|_| mountable.next().is_none())
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("nothing"),
            Self::Known(signature) => signature.fmt(f),
            Self::Ambiguous(all) => {
                let all = all.iter().map(Signature::to_string).collect::<Vec<_>>();
                write!(f, "several things at once ({})", all.join(", "))
            }
            Self::Unrecognised => f.write_str("data that is no known filesystem"),
        }
    }
}

/// Reads both ends of a device and says what they are.
pub(crate) fn probe(device: &File) -> io::Result<Content> {
    let size = (&*device).seek(SeekFrom::End(0))?;
    let length = usize::try_from(size).map_or(END_BYTES, |size| size.min(END_BYTES));
    let mut head = vec![0; length];
    device.read_exact_at(&mut head, 0)?;
    let mut tail = vec![0; length];
    device.read_exact_at(&mut tail, size - length as u64)?;
    Ok(recognise(&head, &tail))
}

fn recognise(head: &[u8], tail: &[u8]) -> Content {
    let found =
        [ext(head), xfs(head), btrfs(head), luks(head), lvm(head), partitions(head, tail), swap(head)];
    let mut found = found.into_iter().flatten().collect::<Vec<_>>();
    match found.len() {
        0 if head.iter().chain(tail).all(|byte| *byte == 0) => Content::Zeroes,
        0 => Content::Unrecognised,
        1 => Content::Known(found.remove(0)),
        _ => Content::Ambiguous(found),
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn little_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn little_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn ext(head: &[u8]) -> Option<Signature> {
    const SUPERBLOCK: usize = 1024;
    const STATE_CLEAN: u16 = 1;
    const STATE_ERRORS: u16 = 2;
    const INCOMPAT_RECOVER: u32 = 0x4;
    const INCOMPAT_64BIT: u32 = 0x80;
    let superblock = head.get(SUPERBLOCK..SUPERBLOCK + 1024)?;
    if little_u16(superblock, 0x38)? != 0xef53 {
        return None;
    }
    let incompat = little_u32(superblock, 0x60)?;
    let high = if incompat & INCOMPAT_64BIT != 0 { little_u32(superblock, 0x150)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(little_u32(superblock, 0x4)?);
    let block_bytes = 1024_u64.checked_shl(little_u32(superblock, 0x18)?)?;
    let state = little_u16(superblock, 0x3a)?;
    let clean = state & STATE_CLEAN != 0 && state & STATE_ERRORS == 0 && incompat & INCOMPAT_RECOVER == 0;
    // When it was last mounted, and how often since its last check.
    let used = little_u32(superblock, 0x2c)? != 0 || little_u16(superblock, 0x34)? != 0;
    Some(Signature::Ext(Ext { bytes: blocks.saturating_mul(block_bytes), needs_check: !clean, used }))
}

#[expect(clippy::big_endian_bytes, reason = "XFS is big-endian on disk")]
fn xfs(head: &[u8]) -> Option<Signature> {
    if !head.starts_with(b"XFSB") {
        return None;
    }
    let block_bytes = u32::from_be_bytes(bytes_at(head, 4)?);
    let blocks = u64::from_be_bytes(bytes_at(head, 8)?);
    // Where in its log the kernel last wrote the superblock; mkfs leaves one of two values. Version 4 has no such field.
    let version = u16::from_be_bytes(bytes_at(head, 100)?) & 0xf;
    let place = u64::from_be_bytes(bytes_at(head, 240)?);
    let used = version == 5 && !matches!(place, 0 | u64::MAX);
    Some(Signature::Xfs { bytes: blocks.saturating_mul(block_bytes.into()), used })
}

fn btrfs(head: &[u8]) -> Option<Signature> {
    (head.get(0x1_0040..0x1_0048)? == b"_BHRfS_M").then_some(Signature::Btrfs)
}

fn luks(head: &[u8]) -> Option<Signature> {
    // The second header of LUKS2 stays when the first is damaged.
    let second =
        (14..=22).any(|power| head.get(1 << power..).is_some_and(|rest| rest.starts_with(b"SKUL\xba\xbe")));
    (head.starts_with(b"LUKS\xba\xbe") || second).then_some(Signature::Luks)
}

fn lvm(head: &[u8]) -> Option<Signature> {
    let label = |sector: usize| {
        let sector = head.get(sector * 512..(sector + 1) * 512)?;
        (sector.starts_with(b"LABELONE") && sector.get(24..32)? == b"LVM2 001").then_some(Signature::Lvm)
    };
    (0..4).find_map(label)
}

fn partitions(head: &[u8], tail: &[u8]) -> Option<Signature> {
    const GPT: &[u8] = b"EFI PART";
    let first = [512, 4096].into_iter().any(|at| head.get(at..).is_some_and(|rest| rest.starts_with(GPT)));
    let backup = [512, 4096]
        .into_iter()
        .any(|sector| tail.len().checked_sub(sector).is_some_and(|at| tail[at..].starts_with(GPT)));
    // The boot sector of a filesystem carries the same mark, so one entry must look like a partition.
    let old =
        head.get(510..512) == Some(&[0x55, 0xaa]) && (0..4).any(|entry| is_entry(head, 446 + entry * 16));
    (first || backup || old).then_some(Signature::Partitions)
}

/// Status is 0 or 0x80, the type is set, and so is the length.
fn is_entry(head: &[u8], at: usize) -> bool {
    let Some(entry) = head.get(at..at + 16) else { return false };
    matches!(entry[0], 0 | 0x80) && entry[4] != 0 && little_u32(entry, 12).is_some_and(|sectors| sectors != 0)
}

fn swap(head: &[u8]) -> Option<Signature> {
    let pages = [4096, 8192, 16384, 65536];
    let marked = |page: &usize| {
        head.get(page - 10..*page).is_some_and(|mark| mark == b"SWAPSPACE2" || mark == b"SWAP-SPACE")
    };
    pages.iter().any(marked).then_some(Signature::Swap)
}

#[cfg(test)]
mod tests;
