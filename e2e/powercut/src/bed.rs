//! A pool on a recorded disk, and one volume of it as a block device of this machine.
//!
//! Everything of the engine runs on one thread, so that a mutant is switched on there and nowhere else.

use crate::media::{Image, history::Memory, recorder::Recorder};
use anyhow::{Context, Result, anyhow};
use parallax_block::{BlockDevice, Runtime};
use parallax_device::{Reactor, ReactorHandle, ReactorOptions};
use parallax_export::loop_export::{ExportKey, Limits, LoopExports};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Finding, Name, Pool, Severity, SnapshotId, Source, TakeSnapshot,
    Timestamp, Vdi, VdiId, mutants::Mutant,
};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of the pool.
const POOL_BYTES: u64 = 512 << 20;
const VOLUME: &str = "volume";
const CLONE: &str = "clone";
/// Snapshots of the volume at one time.
const SNAPSHOTS_KEPT: usize = 3;
/// Longest time until nobody has a device open any more.
const RELEASE_MAX: Duration = Duration::from_secs(20);

/// What is under the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    /// A volume of a pool on the recorded disk, with a bug of the store if one is wanted.
    Store(Option<Mutant>),
    /// The recorded disk itself: what fails here too is not ours.
    Nothing,
}

/// Threads and a place to work in, for one pool after another.
pub(crate) struct Bed {
    under: Under,
    reactor: ReactorHandle,
    exports: LoopExports,
    folder: tempfile::TempDir,
}

impl Bed {
    /// Starts it.
    pub(crate) fn start(under: Under) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("powercut-").tempdir()?;
        std::fs::create_dir(folder.path().join("mount"))?;
        // A database on it does not run as root.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
        let reactor = Reactor::start("powercut", ReactorOptions::default())?;
        if let Under::Store(mutant) = under {
            switch_on(&reactor, mutant)?;
        }
        let runtime: Arc<dyn Runtime> = Arc::new(reactor.clone());
        let exports = LoopExports::start(&folder.path().join("exports"), runtime, Limits::default())?;
        Ok(Self { under, reactor, exports, folder })
    }

    /// An empty directory.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// A disk beside the memory of a machine, for a volume with such sectors.
    pub(crate) fn disk(&self, image: Image, tails: Memory, boot: u128, logical_block: u32) -> Recorder {
        let logical_block = match self.under {
            Under::Store(_) => 512,
            Under::Nothing => logical_block,
        };
        Recorder::new(image, tails, boot, logical_block, Arc::new(self.reactor.clone()))
    }

    /// Bytes of a disk for a volume of so many bytes.
    pub(crate) fn disk_bytes(&self, bytes: u64) -> u64 {
        match self.under {
            Under::Store(_) => POOL_BYTES,
            Under::Nothing => bytes,
        }
    }

    /// Makes a disk a pool with one volume.
    pub(crate) fn format(&self, disk: &Recorder, bytes: u64, logical_block: u32) -> Result<()> {
        if self.under == Under::Nothing {
            return Ok(());
        }
        let (device, environment) = (disk.clone(), self.environment(disk)?);
        let made: parallax_block::Result<()> = self.reactor.block_on(async move {
            Pool::create(Arc::new(device.clone()), CreatePool::default(), &environment).await?;
            let pool = Pool::open(Arc::new(device), environment).await?;
            let request = CreateVdi {
                name: Name::new(VOLUME)?,
                size: Some(bytes),
                source: Source::Empty,
                logical_block,
                attributes: Default::default(),
                at: Timestamp(0),
            };
            pool.create_vdi(request).await?;
            pool.close().await
        })?;
        made.context("making a pool with a volume")
    }

    /// Opens the pool and gives the volume a block device.
    pub(crate) fn open(&self, disk: &Recorder) -> Result<Open<'_>> {
        let opened = match self.under {
            Under::Store(_) => Some(self.open_pool(disk)?),
            Under::Nothing => None,
        };
        let shown: Arc<dyn BlockDevice> = match &opened {
            Some(opened) => opened.volume.clone(),
            None => Arc::new(disk.clone()),
        };
        let attached = self.exports.attach(ExportKey::new(VOLUME)?, shown, false);
        let device = attached.context("giving the volume a block device")?.path;
        Ok(Open { bed: self, opened, device })
    }

    fn open_pool(&self, disk: &Recorder) -> Result<Opened> {
        let (device, environment) = (disk.clone(), self.environment(disk)?);
        let opened: parallax_block::Result<_> = self.reactor.block_on(async move {
            let pool = Pool::open(Arc::new(device), environment).await?;
            let id = pool.vdi_named(VOLUME)?.id;
            let volume = pool.attach(id).await?;
            Ok(Opened { pool, id, volume })
        })?;
        opened.context("opening the pool and its volume")
    }

    /// Verifies a pool that nobody has open: what is damaged.
    pub(crate) fn check(&self, disk: &Recorder) -> Result<Vec<String>> {
        if self.under == Under::Nothing {
            return Ok(Vec::new());
        }
        let device = disk.clone();
        let findings: Vec<Finding> = self
            .reactor
            .block_on(async move { parallax_store::check(Arc::new(device), &|_, _| {}).await })?
            .context("verifying the pool")?;
        let damage = findings.into_iter().filter(|finding| finding.severity == Severity::Damage);
        Ok(damage.map(|finding| format!("{}: {}", finding.kind, finding.detail)).collect())
    }

    /// Takes a block device away, as soon as nobody has it open.
    fn release(&self, key: &ExportKey) -> Result<()> {
        let end = Instant::now() + RELEASE_MAX;
        // A mount namespace that has just ended may hold the device for a moment.
        while let Err(error) = self.exports.detach(key) {
            if Instant::now() > end {
                return Err(anyhow!(error).context("the block device stays in use"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn environment(&self, disk: &Recorder) -> Result<Environment> {
        Ok(Environment {
            runtime: Arc::new(self.reactor.clone()),
            tails: Arc::new(disk.clone()),
            host: Name::new("powercut")?,
            entropy: Arc::new(|| uuid::Uuid::new_v4().as_u128()),
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Whatever is still open somewhere fails from now on; the reactor's end waits for its requests.
        match self.exports.shutdown() {
            Ok(held) if held.is_empty() => {}
            Ok(_) => eprintln!("powercut: a block device was still in use; its I/O fails from now on"),
            Err(error) => eprintln!("powercut: ending the block devices: {error}"),
        }
        self.reactor.shutdown();
    }
}

/// A pool that is open, and its volume's block device.
pub(crate) struct Open<'a> {
    bed: &'a Bed,
    opened: Option<Opened>,
    device: PathBuf,
}

struct Opened {
    pool: Pool,
    id: VdiId,
    volume: Arc<Vdi>,
}

impl Open<'_> {
    /// The block device.
    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// What somebody else does with the volume meanwhile: a snapshot; from the fourth one on the oldest is deleted; now
    /// and then garbage is collected. The snapshot, if there is a store to take it.
    pub(crate) fn disturb(&self, turn: u64) -> Result<Option<SnapshotId>> {
        let Some(opened) = &self.opened else { return Ok(None) };
        let (pool, id) = (opened.pool.clone(), opened.id);
        let done: parallax_block::Result<_> = self.bed.reactor.block_on(async move {
            let request =
                TakeSnapshot { vdis: vec![id], label: format!("turn {turn}"), name: None, at: Timestamp(0) };
            let taken = pool.snapshot(request).await?.first().map(|snapshot| snapshot.id);
            let snapshots = pool.snapshots(id, 0, 16).await?;
            if snapshots.len() > SNAPSHOTS_KEPT {
                pool.delete_snapshot(snapshots[0].id).await?;
            }
            if turn % 4 == 3 {
                pool.collect_garbage(&|_| {}).await?;
            }
            Ok(taken)
        })?;
        done.context("taking snapshots beside the load")
    }

    /// Gives a clone of a snapshot a block device; lets `look` at that, and takes everything away again.
    pub(crate) fn with_clone<T>(
        &self,
        snapshot: SnapshotId,
        look: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let opened = self.opened.as_ref().context("without a store there are no snapshots")?;
        let pool = opened.pool.clone();
        let made: parallax_block::Result<_> = self.bed.reactor.block_on(async move {
            let request = CreateVdi {
                name: Name::new(CLONE)?,
                size: None,
                source: Source::Snapshot(snapshot),
                logical_block: pool.vdi(snapshot.vdi)?.logical_block,
                attributes: Default::default(),
                at: Timestamp(0),
            };
            let id = pool.create_vdi(request).await?.id;
            Ok((id, pool.attach(id).await?))
        })?;
        let (id, volume) = made.context("cloning a snapshot")?;
        let key = ExportKey::new(CLONE)?;
        let device = self.bed.exports.attach(key.clone(), volume.clone(), false)?.path;
        let looked = look(&device)?;
        self.bed.release(&key)?;
        let pool = opened.pool.clone();
        let removed: parallax_block::Result<()> = self.bed.reactor.block_on(async move {
            volume.detach().await?;
            pool.delete_vdi(id).await
        })?;
        removed.context("removing a clone")?;
        Ok(looked)
    }

    /// Closes everything in order.
    pub(crate) fn close(self) -> Result<()> {
        self.bed.release(&ExportKey::new(VOLUME)?)?;
        let Some(Opened { pool, volume, .. }) = self.opened else { return Ok(()) };
        let closed: parallax_block::Result<()> = self.bed.reactor.block_on(async move {
            volume.detach().await?;
            pool.close().await
        })?;
        closed.context("closing the pool")
    }
}

#[cfg(feature = "mutants")]
fn switch_on(reactor: &ReactorHandle, mutant: Option<Mutant>) -> Result<()> {
    reactor.block_on(async move { parallax_store::mutants::set(mutant) })?;
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn switch_on(_: &ReactorHandle, mutant: Option<Mutant>) -> Result<()> {
    if mutant.is_some() {
        anyhow::bail!("this program was built without mutants; give cargo the feature `mutants`");
    }
    Ok(())
}
