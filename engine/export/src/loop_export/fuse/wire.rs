//! The part of the kernel's FUSE protocol that a filesystem of plain files needs: `include/uapi/linux/fuse.h`.
//!
//! Layouts only. Names follow the kernel's; every structure is as long as the kernel's, which is asserted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol that is spoken here. Kernels that speak a later minor version go back to it.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 40;

/// Kinds of requests.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
}

/// What the two sides agree on at the beginning.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const EXTENDED: u64 = 1 << 30;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
}

/// What opening a file answers.
pub(crate) mod open {
    pub(crate) const DIRECT_IO: u32 = 1;
    pub(crate) const NO_FLUSH: u32 = 1 << 5;
    pub(crate) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// A message without a request: the kernel queues again whatever was read and not answered.
pub(crate) const NOTIFY_RESEND: i32 = 7;

#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct InHeader {
    pub(crate) length: u32,
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: u32,
    pub(crate) extensions: u16,
    pub(crate) padding: u16,
}

#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct OutHeader {
    pub(crate) length: u32,
    pub(crate) error: i32,
    pub(crate) unique: u64,
}

/// The beginning that every kernel sends; those since 5.17 send [`InitExtended`] after it.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct InitIn {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) read_ahead_max: u32,
    pub(crate) flags: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct InitExtended {
    pub(crate) flags: u32,
}

#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct InitOut {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) read_ahead_max: u32,
    pub(crate) flags: u32,
    pub(crate) background_max: u16,
    pub(crate) congestion_threshold: u16,
    pub(crate) write_max: u32,
    pub(crate) time_granularity: u32,
    pub(crate) pages_max: u16,
    pub(crate) map_alignment: u16,
    pub(crate) flags_extended: u32,
    pub(crate) stack_depth_max: u32,
    pub(crate) unused: [u32; 6],
}

#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Attributes {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) times: [u64; 3],
    pub(crate) time_nanoseconds: [u32; 3],
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) device: u32,
    pub(crate) block_size: u32,
    pub(crate) flags: u32,
}

/// Names and attributes are never valid for longer than the answer: a size may change at any time.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct EntryOut {
    pub(crate) node: u64,
    pub(crate) generation: u64,
    pub(crate) valid: [u64; 2],
    pub(crate) valid_nanoseconds: [u32; 2],
    pub(crate) attributes: Attributes,
}

#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct AttributesOut {
    pub(crate) valid: u64,
    pub(crate) valid_nanoseconds: u32,
    pub(crate) padding: u32,
    pub(crate) attributes: Attributes,
}

#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct OpenOut {
    pub(crate) handle: u64,
    pub(crate) flags: u32,
    pub(crate) backing: i32,
}

/// The beginning of the arguments of both READ and WRITE.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct TransferIn {
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) size: u32,
    pub(crate) transfer_flags: u32,
    pub(crate) lock_owner: u64,
    pub(crate) flags: u32,
    pub(crate) padding: u32,
}

#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct WriteOut {
    pub(crate) size: u32,
    pub(crate) padding: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct FallocateIn {
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) mode: u32,
    pub(crate) padding: u32,
}

#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct StatfsOut {
    pub(crate) blocks: u64,
    pub(crate) blocks_free: u64,
    pub(crate) blocks_available: u64,
    pub(crate) files: u64,
    pub(crate) files_free: u64,
    pub(crate) block_size: u32,
    pub(crate) name_length_max: u32,
    pub(crate) fragment_size: u32,
    pub(crate) padding: u32,
    pub(crate) spare: [u32; 6],
}

const _: () = assert!(
    size_of::<InHeader>() == 40
        && size_of::<OutHeader>() == 16
        && size_of::<InitOut>() == 64
        && size_of::<Attributes>() == 88
        && size_of::<EntryOut>() == 128
        && size_of::<AttributesOut>() == 104
        && size_of::<OpenOut>() == 16
        && size_of::<TransferIn>() == 40
        && size_of::<FallocateIn>() == 32
        && size_of::<StatfsOut>() == 80
);
