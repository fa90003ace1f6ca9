//! On-disk structures of a pool: bytes to types and back. No I/O, no policy.
//!
//! `docs/on-disk-format.md` draws every structure; the offsets there and here are held together by the golden
//! tests. Everything is little-endian. Three families of blocks, all of 4 KiB:
//!
//! * **Sealed blocks** ([`seal`]): a 32-byte header with kind, own address, sequence and CRC32C. Superblocks,
//!   host blocks, area blocks, bitmaps and root slots.
//! * **Journal blocks** ([`journal`]): sealed too, chained by the hash of their predecessor.
//! * **Nodes** ([`node`]): 512 words without any header; their check lies in the link that names them.
//!
//! Untrusted bytes are `&[u8]`; what has been verified has a type of its own.

#![forbid(unsafe_code)]

pub mod address;
pub mod area;
pub mod bitmap;
pub mod codec;
pub mod host;
pub mod journal;
pub mod node;
pub mod record;
pub mod root;
pub mod seal;
pub mod snapshot;
pub mod superblock;
pub mod tail;

pub use address::{BlockAddress, EXTENT_BLOCKS_MAX, Entry, EntryKind, ExtentId, PhysicalBlock};
pub use node::Node;
pub use seal::PoolSalt;
