//! What is open on this node, and the block devices that the kernel sees of it.
//!
//! Invariants:
//! * A volume is open once; who wants it a second time is told who has it.
//! * Work on one target is serialised: attaching twice at once gives one device.
//! * Everything that was opened is closed: by its user, or by [`Openings::shutdown`].

mod locks;
mod resume;

use crate::{
    engine::Engine,
    metrics::volume::{Metered, VolumeCounters},
};
use locks::Locks;
use parallax_block::{BlockDevice, Error, ErrorKind, Result, ResultExt};
use parallax_export::loop_export::{ExportKey, Limits, LoopAttachment, LoopExports};
use parallax_store::{SnapshotId, SnapshotView, Vdi, VdiId};
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{OnceCell, watch};

/// What can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A volume, for reading and writing.
    Volume(VdiId),
    /// A snapshot, for reading.
    Snapshot(SnapshotId),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => id.fmt(f),
            Self::Snapshot(id) => id.fmt(f),
        }
    }
}

/// Something open. Closed by [`Openings::close`], not by dropping it.
pub struct Opening {
    number: u64,
    target: Target,
    device: Arc<dyn BlockDevice>,
    counters: Arc<VolumeCounters>,
    handle: Handle,
}

enum Handle {
    Volume(Arc<Vdi>),
    Snapshot(Arc<SnapshotView>),
}

impl Opening {
    /// What is open.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Its bytes.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }
}

/// A block device of this machine.
#[derive(Debug, Clone)]
pub struct Attached {
    /// What it shows.
    pub target: Target,
    /// The device.
    pub loop_device: LoopAttachment,
}

struct Attachment {
    /// Nothing, if it could not be opened again after a restart: then all its requests fail.
    opening: Option<Arc<Opening>>,
    shown: Attached,
}

/// Bounds of the exports.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Where exports keep their files and sockets.
    pub directory: PathBuf,
    /// Volumes that may be attached at once.
    pub attachments_max: u32,
    /// Memory that requests in flight may hold together.
    pub memory_bytes_max: u64,
    /// Socket of the process that keeps block devices alive without us.
    pub holder: Option<PathBuf>,
}

/// What is open on this node.
pub struct Openings {
    engine: Arc<Engine>,
    options: ExportOptions,
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Opening>>>,
    attached: Mutex<BTreeMap<Target, Attachment>>,
    locks: Locks,
    loops: OnceCell<Arc<LoopExports>>,
    /// Why what was attached before a restart fails.
    lost: Mutex<BTreeMap<Target, String>>,
    stopping: watch::Sender<bool>,
}

impl Openings {
    /// Nothing open yet.
    pub fn new(engine: Arc<Engine>, options: ExportOptions) -> Self {
        Self {
            engine,
            options,
            next: AtomicU64::new(0),
            open: Mutex::default(),
            attached: Mutex::default(),
            locks: Locks::default(),
            loops: OnceCell::new(),
            lost: Mutex::default(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Bounds of the exports.
    pub fn options(&self) -> &ExportOptions {
        &self.options
    }

    /// Opens. The caller closes.
    pub async fn open(&self, target: Target) -> Result<Arc<Opening>> {
        if *self.stopping.borrow() {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "the daemon is stopping; ask again when it is back",
            ));
        }
        let (handle, device): (Handle, Arc<dyn BlockDevice>) = match target {
            Target::Volume(id) => {
                let vdi = self.engine.run(move |pool| async move { pool.attach(id).await }).await?;
                (Handle::Volume(Arc::clone(&vdi)), vdi)
            }
            Target::Snapshot(id) => {
                let view = self
                    .engine
                    .run(move |pool| async move {
                        pool.materialise(id).await?;
                        pool.open_snapshot(id).await
                    })
                    .await?;
                (Handle::Snapshot(Arc::clone(&view)), view)
            }
        };
        let counters = Arc::new(VolumeCounters::default());
        let opening = Arc::new(Opening {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            target,
            device: Arc::new(Metered::new(device, Arc::clone(&counters))),
            counters,
            handle,
        });
        guard(&self.open).insert(opening.number, Arc::clone(&opening));
        tracing::info!(%target, "opened");
        Ok(opening)
    }

    /// Finishes what is under way, checkpoints, releases.
    pub async fn close(&self, opening: &Arc<Opening>) -> Result<()> {
        let closing = Arc::clone(opening);
        let closed = self
            .engine
            .run(move |_| async move {
                match &closing.handle {
                    Handle::Volume(vdi) => vdi.detach().await,
                    Handle::Snapshot(view) => view.close().await,
                }
            })
            .await;
        guard(&self.open).remove(&opening.number);
        tracing::info!(target = %opening.target, clean = closed.is_ok(), "closed");
        closed.context(|| format!("closing {}", opening.target))
    }

    /// Number of open things.
    pub fn len(&self) -> usize {
        guard(&self.open).len()
    }

    /// Whether nothing is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counters of what is open, by id; the first opening stands for a snapshot that is open twice.
    pub fn counters(&self) -> Vec<(String, Arc<VolumeCounters>)> {
        let mut seen = HashSet::new();
        guard(&self.open)
            .values()
            .filter(|opening| seen.insert(opening.target))
            .map(|opening| (opening.target.to_string(), Arc::clone(&opening.counters)))
            .collect()
    }

    /// Why I/O of an open volume fails, if it does.
    pub fn fault(&self, id: VdiId) -> Option<String> {
        if let Some(reason) = guard(&self.lost).get(&Target::Volume(id)) {
            return Some(reason.clone());
        }
        guard(&self.open)
            .values()
            .find(|opening| opening.target == Target::Volume(id))
            .and_then(|opening| opening.counters.fault().map(str::to_owned))
    }

    /// Volumes whose I/O fails, with the reason.
    pub fn faults(&self) -> Vec<(Target, String)> {
        let reason = |opening: &Arc<Opening>| Some((opening.target, opening.counters.fault()?.to_owned()));
        let mut faults: Vec<_> = guard(&self.open).values().filter_map(reason).collect();
        faults.extend(guard(&self.lost).iter().map(|(target, reason)| (*target, reason.clone())));
        faults
    }

    /// Gives the target a block device. The same again answers with the same device.
    pub async fn attach(&self, target: Target, read_only: bool) -> Result<Attached> {
        let read_only = read_only || matches!(target, Target::Snapshot(_));
        let _alone = self.locks.lock(target).await;
        if let Some(reason) = guard(&self.lost).get(&target) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{target} was lost when the daemon restarted ({reason}); detach it first"),
            ));
        }
        if let Some(present) = guard(&self.attached).get(&target) {
            if present.shown.loop_device.read_only == read_only {
                return Ok(present.shown.clone());
            }
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "{target} is attached already at {} with other access; detach it first",
                    present.shown.loop_device.path.display()
                ),
            ));
        }
        let attached = guard(&self.attached).len();
        if attached >= self.options.attachments_max as usize {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "this node has {attached} volumes attached, as many as exports.attachments_max allows"
                ),
            ));
        }
        let loops = self.loops().await?;
        let key = ExportKey::new(target.to_string())?;
        let opening = self.open(target).await?;
        let device = Arc::clone(&opening.device);
        let note = resume::note_of(&opening)?;
        let exported = blocking(move || loops.attach_noted(key, device, read_only, note)).await;
        match exported {
            Ok(loop_device) => {
                let shown = Attached { target, loop_device };
                guard(&self.attached)
                    .insert(target, Attachment { opening: Some(opening), shown: shown.clone() });
                tracing::info!(%target, device = %shown.loop_device.path.display(), "attached");
                Ok(shown)
            }
            Err(error) => {
                if let Err(error) = self.close(&opening).await {
                    tracing::warn!(%error, "after an export that failed");
                }
                Err(error.context(format!("giving {target} a block device")))
            }
        }
    }

    /// Takes the block device away. Refused while something holds it open; succeeds if there is none.
    pub async fn detach(&self, target: Target) -> Result<()> {
        let _alone = self.locks.lock(target).await;
        if !guard(&self.attached).contains_key(&target) {
            return Ok(());
        }
        let loops = self.loops().await?;
        let key = ExportKey::new(target.to_string())?;
        blocking(move || loops.detach(&key)).await?;
        let gone = guard(&self.attached).remove(&target);
        guard(&self.lost).remove(&target);
        match gone.and_then(|attachment| attachment.opening) {
            Some(opening) => self.close(&opening).await,
            None => Ok(()),
        }
    }

    /// Shows the present size of a grown volume to whoever uses its block device.
    pub async fn resized(&self, id: VdiId) -> Result<()> {
        let target = Target::Volume(id);
        let _alone = self.locks.lock(target).await;
        if !guard(&self.attached).contains_key(&target) {
            return Ok(());
        }
        let loops = self.loops().await?;
        let key = ExportKey::new(target.to_string())?;
        let loop_device = blocking(move || loops.resize(&key)).await?;
        if let Some(attachment) = guard(&self.attached).get_mut(&target) {
            attachment.shown.loop_device = loop_device;
        }
        Ok(())
    }

    /// Block devices, in order of target.
    pub fn attachments(&self) -> Vec<Attached> {
        guard(&self.attached).values().map(|attachment| attachment.shown.clone()).collect()
    }

    /// Becomes true when everything is to be given back.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Opens nothing more, and ends what lasts as long as its caller wants.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Starts the loop export now, so that what it lacks shows at start and not at the first volume.
    pub async fn prepare(&self) -> Result<()> {
        self.loops().await.map(drop)
    }

    /// Takes away what nobody holds, flushes and closes everything, and answers with the block devices that were
    /// held: their I/O fails from now on.
    pub async fn shutdown(&self) -> Vec<Attached> {
        self.stop();
        let mut held = Vec::new();
        if let Some(loops) = self.loops.get().cloned() {
            match blocking(move || loops.shutdown()).await {
                Ok(keys) => {
                    let keys: HashSet<String> = keys.iter().map(|key| key.as_str().to_owned()).collect();
                    held = self.attachments();
                    held.retain(|attached| keys.contains(&attached.target.to_string()));
                }
                Err(error) => tracing::error!(%error, "stopping the exports failed"),
            }
        }
        guard(&self.attached).clear();
        let open: Vec<_> = guard(&self.open).values().cloned().collect();
        for opening in open {
            if let Err(error) = self.close(&opening).await {
                tracing::error!(%error, "a volume was not closed cleanly; it is recovered at its next opening");
            }
        }
        held
    }

    async fn loops(&self) -> Result<Arc<LoopExports>> {
        let start = async || {
            let directory = self.options.directory.clone();
            let limits = Limits { memory_bytes_max: self.options.memory_bytes_max, ..Limits::default() };
            let runtime = self.engine.runtime();
            match self.options.holder.clone() {
                Some(holder) => self.take_over(directory, runtime, limits, holder).await,
                None => blocking(move || LoopExports::start(&directory, runtime, limits)).await.map(Arc::new),
            }
        };
        self.loops.get_or_try_init(start).await.cloned()
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one insertion or removal: a panic cannot leave half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what blocks away from the executor of the control plane.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, "a worker of the exports panicked").with_source(error))?
}
