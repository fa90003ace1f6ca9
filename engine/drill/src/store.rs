//! The real store as a [`System`].

use crate::subject::{Subject, System, View, Volume};
use parallax_block::{BlockDevice, BoxFuture, Result};
use parallax_sim::SimDisk;
use parallax_store::{
    CreatePool, CreateVdi, DiffExtent, Environment, Evidence, Finding, GcProgress, Limits, Name, Pool,
    PoolInfo, SnapshotId, SnapshotInfo, SnapshotView, TakeSnapshot, Usage, Vdi, VdiId, VdiInfo,
};
use std::sync::Arc;

/// The store.
pub struct Store;

impl System for Store {
    fn create<'a>(
        &'a self,
        disk: &'a SimDisk,
        options: CreatePool,
        environment: &'a Environment,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(Pool::create(Arc::new(disk.clone()), options, environment))
    }

    fn open(
        &self,
        disk: &SimDisk,
        environment: Environment,
        limits: Limits,
    ) -> BoxFuture<'_, Result<Arc<dyn Subject>>> {
        let device: Arc<dyn BlockDevice> = Arc::new(disk.clone());
        Box::pin(async move {
            let pool = Pool::open_with(device, environment, limits, Evidence::ExclusiveDevice).await?;
            Ok(Arc::new(Open(pool)) as Arc<dyn Subject>)
        })
    }

    fn keeps_accounts(&self) -> bool {
        true
    }

    fn check(&self, disk: &SimDisk) -> BoxFuture<'_, Result<Vec<Finding>>> {
        let device: Arc<dyn BlockDevice> = Arc::new(disk.clone());
        Box::pin(async move { parallax_store::check(device, &|_, _| {}).await })
    }
}

impl Volume for Vdi {
    fn detach(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(Self::detach(self))
    }
}

impl View for SnapshotView {
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(Self::close(self))
    }
}

struct Open(Pool);

impl Subject for Open {
    fn info(&self) -> PoolInfo {
        self.0.info()
    }

    fn vdis(&self) -> Vec<VdiInfo> {
        self.0.vdis()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.0.close())
    }

    fn create_vdi(&self, request: CreateVdi) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(self.0.create_vdi(request))
    }

    fn delete_vdi(&self, id: VdiId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.0.delete_vdi(id))
    }

    fn rename_vdi(&self, id: VdiId, name: Name) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(self.0.rename_vdi(id, name))
    }

    fn resize_vdi(&self, id: VdiId, size: u64) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(self.0.resize_vdi(id, size))
    }

    fn revert_vdi(&self, id: VdiId, to: SnapshotId) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(self.0.revert_vdi(id, to))
    }

    fn usage(&self, id: VdiId) -> BoxFuture<'_, Result<Usage>> {
        Box::pin(self.0.usage(id))
    }

    fn attach(&self, id: VdiId) -> BoxFuture<'_, Result<Arc<dyn Volume>>> {
        Box::pin(async move { Ok(self.0.attach(id).await? as Arc<dyn Volume>) })
    }

    fn open_snapshot(&self, id: SnapshotId) -> BoxFuture<'_, Result<Arc<dyn View>>> {
        Box::pin(async move { Ok(self.0.open_snapshot(id).await? as Arc<dyn View>) })
    }

    fn snapshot(&self, request: TakeSnapshot) -> BoxFuture<'_, Result<Vec<SnapshotInfo>>> {
        Box::pin(self.0.snapshot(request))
    }

    fn materialise(&self, id: SnapshotId) -> BoxFuture<'_, Result<SnapshotInfo>> {
        Box::pin(self.0.materialise(id))
    }

    fn snapshots(&self, vdi: VdiId, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<SnapshotInfo>>> {
        Box::pin(self.0.snapshots(vdi, after, limit))
    }

    fn label_snapshot(&self, id: SnapshotId, label: String) -> BoxFuture<'_, Result<SnapshotInfo>> {
        Box::pin(async move { self.0.label_snapshot(id, &label).await })
    }

    fn delete_snapshot(&self, id: SnapshotId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.0.delete_snapshot(id))
    }

    fn exclusive(&self, id: SnapshotId) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.0.exclusive(id))
    }

    fn diff(
        &self,
        base: Option<SnapshotId>,
        target: SnapshotId,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DiffExtent>>> {
        Box::pin(self.0.diff(base, target, from, limit))
    }

    fn collect_garbage(&self) -> BoxFuture<'_, Result<GcProgress>> {
        Box::pin(async move { self.0.collect_garbage(&|_| {}).await })
    }
}
