//! What an image's header may say, before anybody believes it.
//!
//! Tables are as long as the header says, and a reader allocates them before it reads them; so they must lie in the
//! file, and be no longer than the format's own limits.

use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    os::unix::fs::FileExt,
};

/// Bytes of a header of version 2, and of one of version 3 at least.
const V2_BYTES: u32 = 72;
const V3_BYTES: u32 = 104;
/// Clusters of 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Limits of the tables: what other programs for this format take.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65_536;
const BACKING_NAME_BYTES_MAX: u32 = 1023;

struct Fields([u8; V3_BYTES as usize]);

impl Fields {
    fn u32(&self, at: usize) -> u32 {
        self.0[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

/// Refuses a header that no sound image has.
pub(super) fn check(file: &File) -> Result<()> {
    let bytes = file.metadata()?.len();
    let mut fields = Fields([0; V3_BYTES as usize]);
    let mut filled = 0;
    while filled < fields.0.len() {
        match file.read_at(&mut fields.0[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    let wrong = |what: String| Err(Error::new(ErrorKind::InvalidData, what));
    let version = fields.u32(4);
    let header = match version {
        2 => V2_BYTES,
        3 => V3_BYTES,
        _ => return wrong(format!("it has version {version} of the format; 2 and 3 are known")),
    };
    if filled < header as usize {
        return wrong("it ends within its header".into());
    }
    let cluster_bits = fields.u32(20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return wrong(format!("its clusters of 2^{cluster_bits} bytes are not of 512 bytes to 2 MiB"));
    }
    let cluster = 1_u64 << cluster_bits;
    if version == 3 {
        let (length, order) = (fields.u32(100), fields.u32(96));
        if length < V3_BYTES || u64::from(length) > cluster || length % 8 != 0 {
            return wrong(format!("its header of {length} bytes cannot be"));
        }
        if order > 6 {
            return wrong(format!("its reference counts of 2^{order} bits cannot be"));
        }
    }
    if fields.u32(32) != 0 {
        let what = "it is encrypted; decrypt it with qemu-img convert";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    if fields.u64(8) != 0 && fields.u32(16) > BACKING_NAME_BYTES_MAX {
        return wrong("the name of its backing file is too long".into());
    }
    if fields.u32(60) > SNAPSHOTS_MAX {
        return wrong(format!("it says that it has {} snapshots", fields.u32(60)));
    }
    let l1 = Table { what: "L1 table", at: fields.u64(40), length: u64::from(fields.u32(36)) * 8 };
    l1.check(L1_BYTES_MAX, cluster, bytes).or_else(wrong)?;
    let refcounts = Table {
        what: "reference count table",
        at: fields.u64(48),
        length: u64::from(fields.u32(56)) * cluster,
    };
    refcounts.check(REFCOUNT_TABLE_BYTES_MAX, cluster, bytes).or_else(wrong)?;
    // One entry of the L1 table maps a cluster of L2 entries.
    let mapped = (l1.length / 8).saturating_mul(cluster * (cluster / 8));
    if fields.u64(24) > mapped {
        return wrong(format!(
            "its L1 table maps {mapped} bytes of the {} that it says it has",
            fields.u64(24)
        ));
    }
    Ok(())
}

struct Table {
    what: &'static str,
    at: u64,
    length: u64,
}

impl Table {
    fn check(&self, longest: u64, cluster: u64, file: u64) -> std::result::Result<(), String> {
        let Self { what, at, length } = self;
        if *length > longest {
            return Err(format!("its {what} of {length} bytes is longer than any"));
        }
        if !at.is_multiple_of(cluster) {
            return Err(format!("its {what} does not begin at a cluster"));
        }
        if *length > 0 && at.checked_add(*length).is_none_or(|end| end > file) {
            return Err(format!("its {what} does not lie in the file"));
        }
        Ok(())
    }
}
