//! Loop export: gives any [`BlockDevice`] a `/dev/loopN` on any kernel since 5.9, without a driver of our own.
//!
//! ```text
//! pod, VM            open, mount
//!   /dev/loopN       loop driver: direct I/O, discard, write-zeroes, flush
//!     file           one for each export, in a FUSE mount that is attached nowhere (`mount.rs`)
//!       /dev/fuse    threads that read requests (`filesystem.rs`), bounded by a gate (`limits.rs`)
//!         Runtime    one task for each request (`served.rs`)
//!           BlockDevice
//! ```
//!
//! The daemon that serves its own machine's disks must obey these rules, or the machine can hang:
//! 1. *No memory that waits for itself.* [`protect_process`] comes first in `main`, before any thread. The daemon
//!    runs outside the memory limit of whoever uses its volumes.
//! 2. *A mount namespace of its own, into which no mounts propagate*, and no volume ever mounted there. A process
//!    that dies unmounts what only its namespace still holds before its descriptors are really closed, so the
//!    unmount waits for a server that is dead: this was tried, and it hangs. For the same reason never touch a
//!    filesystem on a volume (logs, configuration, working directory). The FUSE mount itself is in no namespace.
//! 3. *Hold nothing of its own open*: neither a loop device nor a file of the mount, beyond one call. Closing a
//!    loop device last writes back its dirty pages; a process that is being killed cannot serve that.
//! 4. *Wait for itself only apart*: every call that the kernel may answer by asking this process runs on a thread
//!    that does not share its descriptors ([`parallax_device::ApartThread`] tells why: a daemon that is killed
//!    in the middle of such a call on an ordinary thread never dies).
//! 5. *No child inherits the connection.* It ends, and fails all I/O, when its last descriptor closes; a
//!    forgotten child would turn errors into a hang. (Descriptors are close-on-exec: exec, never only fork.)
//! 6. *Every request is answered*, by success or error, in bounded time: that is the device's duty. A request
//!    that is never answered leaves its caller in uninterruptible sleep until the daemon is killed.
//!
//! If a rule was broken and everything waits: `<directory>/connection` names the connection, and writing 1 to
//! `/sys/fs/fuse/connections/<number>/abort` fails whatever waits for it, at once.
//!
//! After the daemon dies, however it dies, requests in flight and new ones fail at once with EIO; nothing resumes.
//! A filesystem on the device shuts itself down or goes read-only and can be unmounted; the next daemon clears the
//! loop device (`instance.rs`), at once or when the last holder closes it.
//!
//! With a holder ([`crate::holder`]) requests wait instead, and the next daemon goes on with them (`takeover.rs`).
//!
//! Semantics:
//! * FLUSH reaches [`BlockDevice::flush`]; FUA is done by the block layer as write + FLUSH. While the kernel waits
//!   for a flush it starts no new write on the same device.
//! * Discard and write-zeroes that may unmap arrive as the same call, so both become write-zeroes that unmap.
//! * A device without discard refuses punched holes once, after which the driver asks no more.
//! * Errors keep their errno through FUSE and loop where the block layer has a status for it: a full pool is
//!   ENOSPC to the writer, everything else EIO.

mod attachment;
mod filesystem;
mod fuse;
#[cfg(test)]
mod fuzz;
mod holders;
mod instance;
mod key;
mod limits;
mod lost;
mod mount;
mod protect;
mod served;
mod state;
mod takeover;

use attachment::{Attached, DRAIN_MAX, Hands};
use filesystem::{Catalogue, FIRST_FILE, LoopFilesystem};
use fuse::{Link, Serving};
use instance::Instance;
use limits::Gate;
use mount::{connection_number, new_mount};
use parallax_block::{BlockDevice, Error, ErrorKind, Result, ResultExt, Runtime};
use parking_lot::{Mutex, RwLock};
use served::{Engine, Served};
use state::{Kept, State};
use std::{collections::BTreeMap, os::fd::AsFd, path::Path, sync::Arc, time::Instant};
use takeover::Held;

pub use attachment::LoopAttachment;
pub use key::ExportKey;
pub use limits::Limits;
pub use protect::{Protection, protect_process};
pub use state::Note;
pub use takeover::{Parked, Takeover};

/// Threads that read requests from the kernel.
const FUSE_THREADS: usize = 2;

/// All loop exports of this process.
///
/// Methods block, on the kernel and through it on the threads of this export: call them from a blocking thread,
/// never from a task of the runtime given to [`LoopExports::start`].
pub struct LoopExports {
    limits: Limits,
    catalogue: Arc<Catalogue>,
    /// Attach, resize, detach and shutdown come one after another.
    service: Mutex<Option<Service>>,
    attached: RwLock<BTreeMap<ExportKey, Attached>>,
}

/// What exists while requests are served.
struct Service {
    instance: Instance,
    hands: Hands,
    link: Link,
    serving: Serving,
    /// Where the connection is deposited, if it is.
    held: Option<Held>,
}

impl LoopExports {
    /// Takes the directory (made with mode 0700, best on tmpfs, on the host so that it outlives a container), clears
    /// the loop devices that a killed predecessor left, and starts serving. FailedPrecondition while another
    /// process serves the same directory.
    pub fn start(directory: &Path, runtime: Arc<dyn Runtime>, limits: Limits) -> Result<Self> {
        let instance = Instance::claim(directory)?;
        instance.clear_leftovers()?;
        let (root, connection) = new_mount()?;
        instance.note_connection(connection_number(&root)?)?;
        let hands = Hands::start("loop-control", [root.as_fd(), instance.lock()])?;
        drop(root);
        let link = Link::begin(connection)?;
        let catalogue = Catalogue::new(instance.name().to_owned(), FIRST_FILE);
        let serving = link.serve(FUSE_THREADS, filesystem(&catalogue, runtime, &limits))?;
        Ok(Self {
            limits,
            catalogue,
            service: Mutex::new(Some(Service { instance, hands, link, serving, held: None })),
            attached: RwLock::default(),
        })
    }

    /// Gives `device` a loop device. The same key again answers with the device that it has; AlreadyExists if
    /// that one differs in being read-only.
    pub fn attach(
        &self,
        key: ExportKey,
        device: Arc<dyn BlockDevice>,
        read_only: bool,
    ) -> Result<LoopAttachment> {
        self.attach_noted(key, device, read_only, Note::default())
    }

    /// The same, with a word for the next daemon.
    pub fn attach_noted(
        &self,
        key: ExportKey,
        device: Arc<dyn BlockDevice>,
        read_only: bool,
        note: Note,
    ) -> Result<LoopAttachment> {
        let service = self.service.lock();
        let service = service.as_ref().ok_or_else(stopped)?;
        let Service { instance, hands, .. } = service;
        let read_only = read_only || device.geometry().read_only;
        if let Some(attached) = self.attached.read().get(&key) {
            if attached.shown.read_only != read_only {
                let present = if attached.shown.read_only { "read-only" } else { "writable" };
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("{key} is already attached, {present}; detach it first"),
                ));
            }
            return Ok(attached.shown.clone());
        }
        let served = Served::new(self.catalogue.new_inode(), device, read_only);
        // The next daemon knows it before there is a loop device that somebody may use.
        let planned = Kept { inode: served.inode, read_only, untuned: Vec::new(), note: note.clone() };
        self.deposit(service, Some((&key, planned)))?;
        self.catalogue.insert(&key, Arc::clone(&served));
        let path = self.catalogue.path(&key);
        let mut attached = Attached::new(&key, served, hands, path, instance.remembered(&key), &self.limits)
            .inspect_err(|_| self.catalogue.remove(&key))
            .context(|| format!("attaching {key}"))?;
        attached.note = note;
        instance.remember(&key, attached.device);
        let shown = attached.shown.clone();
        self.attached.write().insert(key, attached);
        self.tell(service);
        Ok(shown)
    }

    /// Tells the holder what is so by now. What was told before it is enough for the next daemon, if need be: nothing
    /// that has happened is called off for it.
    fn tell(&self, service: &Service) {
        if let Err(error) = self.deposit(service, None) {
            tracing::warn!(%error, "the holder of block devices knows only what was before");
        }
    }

    /// Tells the holder, if there is one, what the next daemon has to know. A holder that is gone is no error.
    fn deposit(&self, service: &Service, planned: Option<(&ExportKey, Kept)>) -> Result<()> {
        let Some(held) = &service.held else { return Ok(()) };
        let mut exports: BTreeMap<_, _> =
            self.attached.read().iter().map(|(key, attached)| (key.clone(), attached.kept())).collect();
        exports.extend(planned.map(|(key, kept)| (key.clone(), kept)));
        let state = State {
            instance: service.instance.name().to_owned(),
            write_bytes_max: service.link.agreed().write_bytes_max,
            next_inode: self.catalogue.next_inode(),
            exports,
        };
        held.deposit(&service.link, &state).map(drop)
    }

    /// Exports that answer nothing but errors, and why: what was attached could not be opened again.
    pub fn lost(&self) -> Vec<(ExportKey, String)> {
        let attached = self.attached.read();
        attached.iter().filter_map(|(key, attached)| Some((key.clone(), attached.lost.clone()?))).collect()
    }

    /// Shows the present capacity of the device to whoever uses the loop device, while I/O runs.
    pub fn resize(&self, key: &ExportKey) -> Result<LoopAttachment> {
        let service = self.service.lock();
        let Service { hands, .. } = service.as_ref().ok_or_else(stopped)?;
        let mut attached = self.attached.read().get(key).ok_or_else(|| not_attached(key))?.clone();
        attached.resize(hands, &self.catalogue.path(key)).context(|| format!("resizing {key}"))?;
        let shown = attached.shown.clone();
        self.attached.write().insert(key.clone(), attached);
        Ok(shown)
    }

    /// Takes the loop device away. NotFound if the key is not attached; FailedPrecondition, and nothing changes,
    /// while someone has the device open or mounted.
    pub fn detach(&self, key: &ExportKey) -> Result<()> {
        let service = self.service.lock();
        self.detach_from(service.as_ref().ok_or_else(stopped)?, key)
    }

    fn detach_from(&self, service: &Service, key: &ExportKey) -> Result<()> {
        let attached = self.attached.read().get(key).ok_or_else(|| not_attached(key))?.clone();
        attached.clear(&service.hands).context(|| format!("detaching {key}"))?;
        self.attached.write().remove(key);
        self.catalogue.remove(key);
        service.instance.forget(key);
        self.tell(service);
        Ok(())
    }

    /// Every attachment, by key. Never waits for I/O.
    pub fn list(&self) -> Vec<LoopAttachment> {
        self.attached.read().values().map(|attached| attached.shown.clone()).collect()
    }

    /// Stops serving.
    ///
    /// With a holder, everything attached is left to the next daemon: requests under way are answered, the others wait
    /// in the kernel. This process must end then; until it has, the next daemon waits.
    ///
    /// Without one, detaches what nobody holds open, and answers with the exports that were still held: their I/O
    /// fails from now on, and the kernel clears them when their last holder closes them. Requests begun before are
    /// waited for, so that the devices can be closed afterwards; not for long if they hang.
    pub fn shutdown(&self) -> Result<Vec<ExportKey>> {
        let mut slot = self.service.lock();
        let Some(service) = slot.take() else { return Ok(Vec::new()) };
        if !self.attached.read().is_empty() && service.held.as_ref().is_some_and(Held::is_held) {
            self.leave(service)?;
            return Ok(Vec::new());
        }
        let keys: Vec<ExportKey> = self.attached.read().keys().cloned().collect();
        let mut held = Vec::new();
        for key in keys {
            if let Err(error) = self.detach_from(&service, &key) {
                tracing::warn!(%key, %error, "a loop device is still in use; its I/O fails from now on");
                held.push(key);
            }
        }
        for attached in self.attached.read().values() {
            attached.give_up(&service.hands)?;
        }
        let Service { hands, serving, instance, link, held: deposited } = service;
        if let Some(deposited) = deposited {
            deposited.take_back();
        }
        drop(link);
        hands.end();
        if held.is_empty() {
            // With the last file and the mount gone, the kernel ends the connection and its threads see that.
            serving.join().context(|| "ending the FUSE connection of the loop export")?;
        }
        drop(instance);
        Ok(held)
    }

    fn leave(&self, service: Service) -> Result<()> {
        self.tell(&service);
        service.link.leave();
        let limit = Instant::now() + DRAIN_MAX;
        let attached = self.attached.read();
        for (key, attached) in attached.iter() {
            if !attached.served.give_up(limit.saturating_duration_since(Instant::now())) {
                tracing::warn!(%key, "requests of a loop device were not answered in time; the next daemon gets them");
            }
        }
        tracing::info!(exports = attached.len(), "block devices are left to the next daemon");
        let Service { hands, held, .. } = service;
        hands.end();
        if let Some(held) = held {
            held.outlast();
        }
        Ok(())
    }
}

fn filesystem(catalogue: &Arc<Catalogue>, runtime: Arc<dyn Runtime>, limits: &Limits) -> Arc<LoopFilesystem> {
    let engine = Engine { runtime, gate: Gate::new(limits.memory_bytes_max) };
    Arc::new(LoopFilesystem { catalogue: Arc::clone(catalogue), engine })
}

fn not_attached(key: &ExportKey) -> Error {
    Error::new(ErrorKind::NotFound, format!("{key} is not attached on this node"))
}

fn stopped() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "the loop export has been shut down; restart the daemon")
}
