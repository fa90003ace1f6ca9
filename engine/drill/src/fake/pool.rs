//! The stand-in's pool, volumes and views.

use super::{
    Bug, Shared,
    state::{Sectors, Snapshot, Volume, lbas},
};
use crate::subject::{self, Subject};
use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result, SECTOR_SIZE,
    WriteOptions, ZeroOptions,
};
use parallax_sim::SimDisk;
use parallax_store::{
    CreateVdi, DiffExtent, Environment, FilesystemState, GcProgress, Name, PoolInfo, SnapshotId,
    SnapshotInfo, Source, TakeSnapshot, Usage, VdiId, VdiInfo,
};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    disk: SimDisk,
    environment: Environment,
}

impl Pool {
    pub(super) fn new(shared: Arc<Shared>, disk: SimDisk, environment: Environment) -> Self {
        Self { shared, disk, environment }
    }

    /// Takes some time, and a place at which the power may go.
    pub(super) async fn touch(&self) {
        let _ = self.disk.write(0, Buffer::zeroed(SECTOR_SIZE), WriteOptions::default()).await;
        self.pause().await;
    }

    async fn pause(&self) {
        let pause = self.shared.prng.lock().range(0..80);
        self.environment.runtime.sleep(Duration::from_micros(pause)).await;
    }

    fn in_one_in(&self, cases: u64, bug: Bug) -> bool {
        self.shared.has(bug) && self.shared.prng.lock().chance(1, cases)
    }

    fn take_one(&self, request: &TakeSnapshot, id: VdiId, set: Option<Uuid>) -> Result<SnapshotInfo> {
        let mut state = self.shared.state.lock();
        let reuse = self.shared.has(Bug::NumbersComeBack);
        let volume = state.volume(id)?;
        let highest = volume.snapshots.keys().last().copied().unwrap_or(0);
        volume.last_number = if reuse { highest + 1 } else { volume.last_number + 1 };
        let info = SnapshotInfo {
            id: SnapshotId { vdi: id, number: volume.last_number },
            name: request.name.clone(),
            label: request.label.clone(),
            taken: request.at,
            size: volume.info.size,
            materialised: true,
            filesystem: FilesystemState::Blank,
            set,
        };
        volume
            .snapshots
            .insert(volume.last_number, Snapshot { info: info.clone(), sectors: volume.live.clone() });
        Ok(info)
    }
}

fn refuse<T>(kind: ErrorKind) -> Result<T> {
    Err(Error::new(kind, "the stand-in refuses this"))
}

impl Subject for Pool {
    fn info(&self) -> PoolInfo {
        let state = self.shared.state.lock();
        let leaked = if self.shared.has(Bug::DeleteLeaks) { state.leaked } else { 0 };
        PoolInfo {
            uuid: Uuid::nil(),
            format_version: 1,
            features: Vec::new(),
            capacity: self.disk.geometry().capacity,
            extent_bytes: 65536,
            extents: 1,
            extents_free: 0,
            free: 0,
            data_used: leaked,
            metadata_used: 0,
            metadata_reserved: 0,
        }
    }

    fn vdis(&self) -> Vec<VdiInfo> {
        let state = self.shared.state.lock();
        let info =
            |volume: &Volume| VdiInfo { snapshots: volume.snapshots.len() as u64, ..volume.info.clone() };
        state.volumes.values().map(info).collect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.touch().await;
            for volume in self.shared.state.lock().volumes.values_mut() {
                volume.durable = volume.live.clone();
                volume.unflushed.clear();
                volume.info.attached = false;
            }
            Ok(())
        })
    }

    fn create_vdi(&self, request: CreateVdi) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            if state.volumes.values().any(|volume| !volume.info.headless && volume.info.name == request.name)
            {
                return refuse(ErrorKind::AlreadyExists);
            }
            let (sectors, size, snapshot, vdi) = match request.source {
                Source::Empty => (Sectors::new(), None, None, None),
                Source::Snapshot(id) => {
                    let snapshot = state.snapshot(id)?;
                    (snapshot.sectors.clone(), Some(snapshot.info.size), Some(id), None)
                }
                Source::Vdi(id) => {
                    let volume = state.volume(id)?;
                    (volume.live.clone(), Some(volume.info.size), None, Some(id))
                }
            };
            let Some(size) = request.size.or(size) else { return refuse(ErrorKind::InvalidArgument) };
            let info = VdiInfo {
                id: VdiId(Uuid::from_u128((self.environment.entropy)())),
                name: request.name,
                size,
                logical_block: request.logical_block,
                created: request.at,
                source_snapshot: snapshot,
                source_vdi: vdi,
                filesystem: FilesystemState::Blank,
                attributes: request.attributes,
                publications: Vec::new(),
                attached: false,
                headless: false,
                snapshots: 0,
            };
            state.volumes.insert(info.id, Volume::new(info.clone(), sectors));
            Ok(info)
        })
    }

    fn delete_vdi(&self, id: VdiId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let volume = state.volume(id)?;
            if volume.info.attached {
                return refuse(ErrorKind::Busy);
            }
            volume.info.headless = true;
            let size = volume.info.size;
            state.leaked += size;
            state.bury(id);
            Ok(())
        })
    }

    fn rename_vdi(&self, id: VdiId, name: Name) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let volume = state.volume(id)?;
            volume.info.name = name;
            Ok(volume.info.clone())
        })
    }

    fn resize_vdi(&self, id: VdiId, size: u64) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let volume = state.volume(id)?;
            if size < volume.info.size {
                return refuse(ErrorKind::InvalidArgument);
            }
            volume.info.size = size;
            Ok(volume.info.clone())
        })
    }

    fn revert_vdi(&self, id: VdiId, to: SnapshotId) -> BoxFuture<'_, Result<VdiInfo>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let sectors = state.snapshot(to)?.sectors.clone();
            let short = self.shared.has(Bug::RevertIsShort);
            let volume = state.volume(id)?;
            let last = volume.live.keys().last().copied().unwrap_or(0) / 8 * 8;
            let kept = if short { volume.live.split_off(&last) } else { Sectors::new() };
            volume.live = sectors;
            if short {
                drop(volume.live.split_off(&last));
            }
            volume.live.extend(kept);
            volume.durable = volume.live.clone();
            volume.unflushed.clear();
            Ok(volume.info.clone())
        })
    }

    fn usage(&self, _id: VdiId) -> BoxFuture<'_, Result<Usage>> {
        Box::pin(std::future::ready(Ok(Usage::default())))
    }

    fn attach(&self, id: VdiId) -> BoxFuture<'_, Result<Arc<dyn subject::Volume>>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let volume = state.volume(id)?;
            if std::mem::replace(&mut volume.info.attached, true) {
                return refuse(ErrorKind::Busy);
            }
            Ok(Arc::new(Attached { pool: self.clone(), id, requests: Arc::default() })
                as Arc<dyn subject::Volume>)
        })
    }

    fn open_snapshot(&self, id: SnapshotId) -> BoxFuture<'_, Result<Arc<dyn subject::View>>> {
        Box::pin(async move {
            self.touch().await;
            let snapshot = self.shared.state.lock().snapshot(id)?.clone();
            let follow = self.shared.has(Bug::SnapshotFollowsVolume).then_some(id.vdi);
            Ok(Arc::new(View { pool: self.clone(), snapshot, follow }) as Arc<dyn subject::View>)
        })
    }

    fn snapshot(&self, request: TakeSnapshot) -> BoxFuture<'_, Result<Vec<SnapshotInfo>>> {
        Box::pin(async move {
            self.touch().await;
            let set = (request.vdis.len() > 1).then(|| Uuid::from_u128((self.environment.entropy)()));
            let mut infos = Vec::new();
            for id in &request.vdis {
                infos.push(self.take_one(&request, *id, set)?);
                if self.shared.has(Bug::SetIsNoInstant) {
                    self.touch().await;
                }
            }
            if self.shared.has(Bug::SnapshotTears) {
                self.touch().await;
                let mut state = self.shared.state.lock();
                for info in &infos {
                    let later = state.volume(info.id.vdi)?.live.clone();
                    let odd = later.into_iter().filter(|(lba, _)| lba / 8 % 2 == 1);
                    state.snapshot(info.id)?.sectors.extend(odd);
                }
            }
            self.pause().await;
            Ok(infos)
        })
    }

    fn materialise(&self, id: SnapshotId) -> BoxFuture<'_, Result<SnapshotInfo>> {
        Box::pin(async move { Ok(self.shared.state.lock().snapshot(id)?.info.clone()) })
    }

    fn snapshots(&self, vdi: VdiId, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<SnapshotInfo>>> {
        Box::pin(async move {
            let mut state = self.shared.state.lock();
            let snapshots = &state.volume(vdi)?.snapshots;
            Ok(snapshots.range(after + 1..).take(limit).map(|(_, snapshot)| snapshot.info.clone()).collect())
        })
    }

    fn label_snapshot(&self, id: SnapshotId, label: String) -> BoxFuture<'_, Result<SnapshotInfo>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let snapshot = state.snapshot(id)?;
            snapshot.info.label = label;
            Ok(snapshot.info.clone())
        })
    }

    fn delete_snapshot(&self, id: SnapshotId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.touch().await;
            let mut state = self.shared.state.lock();
            let snapshot = state.snapshot(id)?.clone();
            state.volume(id.vdi)?.snapshots.remove(&id.number);
            state.bury(id.vdi);
            state.buried = Some((id.vdi, id.number, snapshot));
            Ok(())
        })
    }

    fn exclusive(&self, _id: SnapshotId) -> BoxFuture<'_, Result<u64>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    fn diff(
        &self,
        base: Option<SnapshotId>,
        target: SnapshotId,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DiffExtent>>> {
        Box::pin(async move {
            let mut state = self.shared.state.lock();
            let old = match base {
                Some(base) => state.snapshot(base)?.sectors.clone(),
                None => Sectors::new(),
            };
            let new = state.snapshot(target)?.clone();
            let blocks = if self.shared.has(Bug::DiffIsShort) { 4 } else { new.info.size / 4096 };
            let differs =
                |block: &u64| (block * 8..block * 8 + 8).any(|lba| old.get(&lba) != new.sectors.get(&lba));
            let extent = |block: u64| {
                let data = (block * 8..block * 8 + 8).any(|lba| new.sectors.contains_key(&lba));
                Ok(DiffExtent { range: ByteRange::new(block * 4096, 4096)?, data })
            };
            (from / 4096..blocks).filter(differs).take(limit).map(extent).collect()
        })
    }

    fn collect_garbage(&self) -> BoxFuture<'_, Result<GcProgress>> {
        Box::pin(async {
            self.touch().await;
            Ok(GcProgress::default())
        })
    }
}

struct Attached {
    pool: Pool,
    id: VdiId,
    /// Held by every request until it is answered: a detach waits for them.
    requests: Arc<()>,
}

impl Attached {
    async fn change(
        &self,
        range: ByteRange,
        bytes: Option<Buffer>,
        fua: bool,
    ) -> (Option<Buffer>, Result<()>) {
        let _request = self.requests.clone();
        self.pool.touch().await;
        let shared = &self.pool.shared;
        let shift = u64::from(bytes.is_some() && self.pool.in_one_in(50, Bug::WriteIsMisdirected));
        let write = {
            let mut state = shared.state.lock();
            state.last_write += 1;
            let write = state.last_write;
            let Ok(volume) = state.volume(self.id) else { return (bytes, refuse(ErrorKind::NotFound)) };
            let mut changes: Vec<(u64, Option<Arc<[u8]>>)> = Vec::new();
            if shared.has(Bug::PartialWriteClearsBlock) && bytes.is_some() {
                changes.extend(
                    lbas(range)
                        .next()
                        .map(|lba| lba / 8 * 8)
                        .filter(|lba| *lba < range.offset() / 512)
                        .map(|lba| (lba, None)),
                );
            }
            for (index, lba) in lbas(range).enumerate() {
                let sector =
                    bytes.as_ref().map(|bytes| &bytes[index * SECTOR_SIZE..(index + 1) * SECTOR_SIZE]);
                changes.push((lba + shift, sector.map(Arc::from)));
            }
            volume.apply(write, changes, fua && !shared.has(Bug::FuaIsVolatile));
            write
        };
        self.pool.pause().await;
        if let Ok(volume) = shared.state.lock().volume(self.id) {
            volume.acknowledge(write);
        }
        (bytes, Ok(()))
    }
}

fn geometry(capacity: u64, read_only: bool) -> Geometry {
    Geometry { capacity, logical_block: 512, physical_block: 4096, discard_granularity: 4096, read_only }
}

fn copy(sectors: &Sectors, offset: u64, buffer: &mut Buffer) {
    for (index, sector) in buffer.chunks_mut(SECTOR_SIZE).enumerate() {
        match sectors.get(&(offset / SECTOR_SIZE as u64 + index as u64)) {
            Some(bytes) => sector.copy_from_slice(bytes),
            None => sector.fill(0),
        }
    }
}

impl BlockDevice for Attached {
    fn geometry(&self) -> Geometry {
        geometry(self.pool.shared.state.lock().volumes[&self.id].info.size, false)
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            let _request = self.requests.clone();
            self.pool.pause().await;
            match self.pool.shared.state.lock().volume(self.id) {
                Ok(volume) => copy(&volume.live, offset, &mut buffer),
                Err(error) => return (buffer, Err(error)),
            }
            (buffer, Ok(()))
        })
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            match ByteRange::new(offset, buffer.len() as u64) {
                Ok(range) => {
                    let (buffer, result) = self.change(range, Some(buffer), options.fua).await;
                    (buffer.unwrap_or_default(), result)
                }
                Err(error) => (buffer, Err(error)),
            }
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        let covered = self.pool.shared.state.lock().volume(self.id).map(|volume| volume.acknowledged());
        Box::pin(async move {
            self.pool.touch().await;
            if self.pool.in_one_in(30, Bug::FlushHangs) {
                std::future::pending::<()>().await;
            }
            if !self.pool.shared.has(Bug::FlushDoesNothing) {
                let covered = covered?;
                self.pool.shared.state.lock().volume(self.id)?.flush(&covered);
            }
            Ok(())
        })
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let inner = range.inner_blocks();
        let whole = ByteRange::new(inner.start * 4096, (inner.end - inner.start) * 4096);
        Box::pin(async move {
            if self.pool.shared.has(Bug::DiscardForgets) {
                self.pool.touch().await;
                return Ok(());
            }
            self.change(whole?, None, false).await.1
        })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.change(range, None, options.fua).await.1 })
    }
}

impl subject::Volume for Attached {
    fn detach(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.pool.touch().await;
            while Arc::strong_count(&self.requests) > 1 {
                self.pool.pause().await;
            }
            let mut state = self.pool.shared.state.lock();
            let volume = state.volume(self.id)?;
            let covered = volume.acknowledged();
            volume.flush(&covered);
            volume.info.attached = false;
            Ok(())
        })
    }
}

struct View {
    pool: Pool,
    snapshot: Snapshot,
    follow: Option<VdiId>,
}

impl BlockDevice for View {
    fn geometry(&self) -> Geometry {
        geometry(self.snapshot.info.size, true)
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Completion> {
        let state = self.pool.shared.state.lock();
        match self.follow.and_then(|id| state.volumes.get(&id)).filter(|volume| !volume.info.headless) {
            Some(volume) => copy(&volume.live, offset, &mut buffer),
            None => copy(&self.snapshot.sectors, offset, &mut buffer),
        }
        Box::pin(std::future::ready((buffer, Ok(()))))
    }

    fn write(&self, _: u64, buffer: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(std::future::ready((buffer, refuse(ErrorKind::ReadOnly))))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(refuse(ErrorKind::ReadOnly)))
    }

    fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(refuse(ErrorKind::ReadOnly)))
    }
}

impl subject::View for View {
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
