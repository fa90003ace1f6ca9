//! The Parallax store.
mod types;
pub use parallax_block::{Tail, TailStore};
pub use types::*;

use parallax_block::*;
use std::sync::Arc;

/// What the store needs from outside.
#[derive(Clone)]
pub struct Environment {
    /// Tasks and time.
    pub runtime: Arc<dyn Runtime>,
    /// Shared memory that outlives the process.
    pub tails: Arc<dyn TailStore>,
    /// Name of this host in the pool's host slots.
    pub host: Name,
    /// Randomness for identities (never for decisions): seeded in tests.
    pub entropy: Arc<dyn Fn() -> u128 + Send + Sync>,
}

/// Formatting a device as a pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct CreatePool {
    /// Bytes of an extent; `None` chooses by capacity. A power of two from 64 KiB to 2 GiB.
    pub extent_bytes: Option<u64>,
    /// Format over something recognisable.
    pub force: bool,
}

/// An open pool; cheap to clone.
#[derive(Clone)]
pub struct Pool;

#[expect(unused_variables, reason = "not written yet")]
impl Pool {
    /// Formats `device`.
    pub async fn create(device: Arc<dyn BlockDevice>, options: CreatePool, environment: &Environment) -> Result<()> { Err(Error::new(ErrorKind::Unsupported, "soon")) }
    /// Opens a formatted device: claims a host slot, reads the registry.
    pub async fn open(device: Arc<dyn BlockDevice>, environment: Environment) -> Result<Self> { Err(Error::new(ErrorKind::Unsupported, "soon")) }
    /// Drains, checkpoints and releases everything. Other handles fail afterwards.
    pub async fn close(&self) -> Result<()> { Err(Error::new(ErrorKind::Unsupported, "soon")) }
    /// Shape and fill.
    pub fn info(&self) -> PoolInfo { unimplemented!() }
    /// All VDIs in order of id, headless ones included.
    pub fn vdis(&self) -> Vec<VdiInfo> { vec![] }
    /// One by id.
    pub fn vdi(&self, id: VdiId) -> Result<VdiInfo> { unimplemented!() }
    /// One by name (headless ones have none).
    pub fn vdi_named(&self, name: &str) -> Result<VdiInfo> { unimplemented!() }
    /// Creates. `AlreadyExists` if the name is taken.
    pub async fn create_vdi(&self, request: CreateVdi) -> Result<VdiInfo> { unimplemented!() }
    /// Deletes; becomes headless while snapshots live. `Busy` while attached or published.
    pub async fn delete_vdi(&self, id: VdiId) -> Result<()> { unimplemented!() }
    /// Renames.
    pub async fn rename_vdi(&self, id: VdiId, name: Name) -> Result<VdiInfo> { unimplemented!() }
    /// Grows, on line too.
    pub async fn resize_vdi(&self, id: VdiId, size: u64) -> Result<VdiInfo> { unimplemented!() }
    /// Goes back to a snapshot of this VDI; detached only; the size stays.
    pub async fn revert_vdi(&self, id: VdiId, to: SnapshotId) -> Result<VdiInfo> { unimplemented!() }
    /// Compare-and-set of the filesystem state.
    pub async fn set_filesystem(&self, id: VdiId, expected: FilesystemState, next: FilesystemState) -> Result<VdiInfo> { unimplemented!() }
    /// Replaces the publications, if they are as expected.
    pub async fn set_publications(&self, id: VdiId, expected: &[Publication], next: Vec<Publication>) -> Result<VdiInfo> { unimplemented!() }
    /// Space; walks the tree.
    pub async fn usage(&self, id: VdiId) -> Result<Usage> { unimplemented!() }
    /// Opens for I/O. One at a time (`Busy`); dropping does not detach, [`Vdi::detach`] does.
    pub async fn attach(&self, id: VdiId) -> Result<Arc<Vdi>> { unimplemented!() }
    /// Opens a materialised snapshot read-only; the snapshot cannot be deleted while it lives.
    pub async fn open_snapshot(&self, id: SnapshotId) -> Result<Arc<SnapshotView>> { unimplemented!() }
    /// Takes snapshots; O(1); returns when durable (not necessarily materialised).
    pub async fn snapshot(&self, request: TakeSnapshot) -> Result<Vec<SnapshotInfo>> { unimplemented!() }
    /// Waits until the snapshot can be cloned, compared and opened.
    pub async fn materialise(&self, id: SnapshotId) -> Result<SnapshotInfo> { unimplemented!() }
    /// Live snapshots of a VDI in order of number, after `after`, at most `limit`.
    pub async fn snapshots(&self, vdi: VdiId, after: u64, limit: usize) -> Result<Vec<SnapshotInfo>> { unimplemented!() }
    /// One.
    pub async fn snapshot_info(&self, id: SnapshotId) -> Result<SnapshotInfo> { unimplemented!() }
    /// Those that carry an idempotency name (several for a set).
    pub fn snapshots_named(&self, name: &str) -> Vec<SnapshotId> { unimplemented!() }
    /// Replaces the label.
    pub async fn label_snapshot(&self, id: SnapshotId, label: &str) -> Result<SnapshotInfo> { unimplemented!() }
    /// Deletes; `NotFound` if there is none.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> { unimplemented!() }
    /// Bytes that only this snapshot holds.
    pub async fn exclusive(&self, id: SnapshotId) -> Result<u64> { unimplemented!() }
    /// Differences from `base` (or from nothing) to `target` from byte `from` on, at most `limit` extents; the
    /// answer is complete if it has fewer than `limit`.
    pub async fn diff(&self, base: Option<SnapshotId>, target: SnapshotId, from: u64, limit: usize) -> Result<Vec<DiffExtent>> { unimplemented!() }
    /// Frees everything that nothing reaches, while VDIs are attached and busy.
    pub async fn collect_garbage(&self, progress: &(dyn Fn(GcProgress) + Send + Sync)) -> Result<GcProgress> { unimplemented!() }
}

/// An attached VDI: a [`BlockDevice`].
pub struct Vdi;
impl Vdi {
    /// Identity.
    pub fn id(&self) -> VdiId { unimplemented!() }
    /// Finishes what is under way, checkpoints, releases. Later I/O fails.
    pub async fn detach(&self) -> Result<()> { unimplemented!() }
}
/// An open snapshot: a read-only [`BlockDevice`].
pub struct SnapshotView;
impl SnapshotView {
    /// Lets it be deleted again.
    pub async fn close(&self) -> Result<()> { unimplemented!() }
}
macro_rules! stub { ($t:ty) => {
impl BlockDevice for $t {
    fn geometry(&self) -> Geometry { unimplemented!() }
    fn read(&self, _: u64, _: Buffer) -> BoxFuture<'_, Completion> { unimplemented!() }
    fn write(&self, _: u64, _: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> { unimplemented!() }
    fn flush(&self) -> BoxFuture<'_, Result<()>> { unimplemented!() }
    fn discard(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> { unimplemented!() }
    fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> BoxFuture<'_, Result<()>> { unimplemented!() }
}}}
stub!(Vdi);
stub!(SnapshotView);

/// Verifies a whole pool. Reads only; the pool must not be open elsewhere, or `pool` is the open one.
pub async fn check(_device: Arc<dyn BlockDevice>, _progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<Vec<Finding>> { unimplemented!() }
/// Whether the device's first bytes look like something that somebody may want to keep; names it.
pub async fn recognise(_device: &dyn BlockDevice) -> Result<Option<String>> { unimplemented!() }
