//! What is drilled: the store, or something that stands in for it when the drill itself is tried.

use parallax_block::{BlockDevice, BoxFuture, Result};
use parallax_sim::{SimDisk, Unflushed};
use parallax_store::{
    CreatePool, CreateVdi, DiffExtent, Environment, Finding, GcProgress, Limits, Name, PoolInfo, SnapshotId,
    SnapshotInfo, TakeSnapshot, Usage, VdiId, VdiInfo,
};
use std::sync::Arc;

/// How a life of a pool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The power went.
    PowerCut(Unflushed),
    /// The process was killed; the machine lives.
    Kill,
}

/// An attached volume.
pub trait Volume: BlockDevice {
    /// Releases it.
    fn detach(&self) -> BoxFuture<'_, Result<()>>;
}

/// An open snapshot.
pub trait View: BlockDevice {
    /// Releases it.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// An open pool. The methods are those of [`parallax_store::Pool`].
#[expect(missing_docs, reason = "the store documents them")]
pub trait Subject: Send + Sync {
    fn info(&self) -> PoolInfo;
    fn vdis(&self) -> Vec<VdiInfo>;
    fn close(&self) -> BoxFuture<'_, Result<()>>;
    fn create_vdi(&self, request: CreateVdi) -> BoxFuture<'_, Result<VdiInfo>>;
    fn delete_vdi(&self, id: VdiId) -> BoxFuture<'_, Result<()>>;
    fn rename_vdi(&self, id: VdiId, name: Name) -> BoxFuture<'_, Result<VdiInfo>>;
    fn resize_vdi(&self, id: VdiId, size: u64) -> BoxFuture<'_, Result<VdiInfo>>;
    fn revert_vdi(&self, id: VdiId, to: SnapshotId) -> BoxFuture<'_, Result<VdiInfo>>;
    fn usage(&self, id: VdiId) -> BoxFuture<'_, Result<Usage>>;
    fn attach(&self, id: VdiId) -> BoxFuture<'_, Result<Arc<dyn Volume>>>;
    fn open_snapshot(&self, id: SnapshotId) -> BoxFuture<'_, Result<Arc<dyn View>>>;
    fn snapshot(&self, request: TakeSnapshot) -> BoxFuture<'_, Result<Vec<SnapshotInfo>>>;
    fn materialise(&self, id: SnapshotId) -> BoxFuture<'_, Result<SnapshotInfo>>;
    fn snapshots(&self, vdi: VdiId, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<SnapshotInfo>>>;
    fn label_snapshot(&self, id: SnapshotId, label: String) -> BoxFuture<'_, Result<SnapshotInfo>>;
    fn delete_snapshot(&self, id: SnapshotId) -> BoxFuture<'_, Result<()>>;
    fn exclusive(&self, id: SnapshotId) -> BoxFuture<'_, Result<u64>>;
    fn diff(
        &self,
        base: Option<SnapshotId>,
        target: SnapshotId,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DiffExtent>>>;
    fn collect_garbage(&self) -> BoxFuture<'_, Result<GcProgress>>;
}

/// Makes and opens pools.
pub trait System: Send + Sync {
    /// Formats a disk.
    fn create<'a>(
        &'a self,
        disk: &'a SimDisk,
        options: CreatePool,
        environment: &'a Environment,
    ) -> BoxFuture<'a, Result<()>>;
    /// Opens a formatted disk.
    fn open(
        &self,
        disk: &SimDisk,
        environment: Environment,
        limits: Limits,
    ) -> BoxFuture<'_, Result<Arc<dyn Subject>>>;
    /// Verifies a pool that nobody has open.
    fn check(&self, disk: &SimDisk) -> BoxFuture<'_, Result<Vec<Finding>>>;
    /// Whether its figures of space are meant to be right.
    fn keeps_accounts(&self) -> bool {
        false
    }
    /// The process that had the pool open is gone, in this way.
    fn died(&self, _death: Death) {}
}
