//! Taking over what a daemon before us left with the holder.
//!
//! ```text
//! LoopExports::take_over   asks the holder: nothing -> a new connection; something -> what is parked
//! Takeover::annotate       notes that must be safe before the devices are opened
//! Takeover::serve          devices in; unanswered requests come again; exports out
//! ```
//!
//! Invariants:
//! * Nothing is answered before the user of the exports has opened every device that was attached, or has said that it
//!   cannot be had. Then its requests fail, and those of the others go on.
//! * A write that the daemon before executed and did not answer is executed again. That is a legal order: until it is
//!   answered it is concurrent with every other write, so it may as well come after each of them.
//! * A loop device of ours that the holder knows nothing of is in nobody's use; it is cleared.

use super::{
    ExportKey, FUSE_THREADS, Limits, LoopExports, Note, Service,
    attachment::{Attached, Hands, logical_block},
    filesystem,
    filesystem::{Catalogue, FIRST_FILE, first_file_after},
    fuse::{Agreed, Link},
    instance::Instance,
    lost::Lost,
    mount::{connection_number, new_mount},
    served::Served,
    state::{Kept, State},
};
use crate::holder::{Deposit, Depositor};
use parallax_block::{BlockDevice, Error, ErrorKind, Geometry, Result, ResultExt, Runtime};
use parallax_device::loop_control::LoopDevice;
use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// A holder that does not answer for longer is not there; nor does the daemon before us take longer to end.
const HOLDER_WAIT_MAX: Duration = Duration::from_secs(30);

/// Block that a lost device says it can discard; nothing depends on it.
const LOST_DISCARD: u32 = 4096;

/// Where the connection of a running export is deposited.
pub(super) struct Held {
    depositor: Depositor,
    root: OwnedFd,
    connection: u32,
}

impl Held {
    /// Deposits the connection and what to know of it. Whether a holder has it.
    pub(super) fn deposit(&self, link: &Link, state: &State) -> Result<bool> {
        let copying = || "copying descriptors for the holder";
        let deposit = Deposit {
            connection: self.connection,
            device: link.device().try_clone_to_owned().context(copying)?,
            root: self.root.try_clone().context(copying)?,
            state: state.write()?,
        };
        Ok(self.depositor.put(deposit))
    }

    pub(super) fn is_held(&self) -> bool {
        self.depositor.is_held()
    }

    /// Nobody needs it any more.
    pub(super) fn take_back(self) {
        self.depositor.forget();
    }

    /// Leaves it with the holder, which lets the next daemon in when this process has ended.
    pub(super) fn outlast(self) {
        self.depositor.outlast();
    }
}

/// An export that waits for its device.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Which export.
    pub key: ExportKey,
    /// Whether writing is refused.
    pub read_only: bool,
    /// What the daemon before noted.
    pub note: Note,
    device: LoopDevice,
}

/// A connection before it is served.
pub struct Takeover {
    instance: Instance,
    held: Option<Held>,
    root: OwnedFd,
    link: Link,
    state: State,
    parked: BTreeMap<ExportKey, Parked>,
    /// Loop devices that the holder does not know, each with the file behind it.
    strays: Vec<(LoopDevice, String)>,
    limits: Limits,
    runtime: Arc<dyn Runtime>,
    /// Requests may wait that were read and not answered.
    resend: bool,
}

impl LoopExports {
    /// As [`LoopExports::start`], with a holder: takes over what the daemon before left there, or begins anew.
    ///
    /// Waits for a holder that is not there yet and for a daemon that is not yet gone, half a minute at most.
    pub fn take_over(
        directory: &Path,
        runtime: Arc<dyn Runtime>,
        limits: Limits,
        holder: &Path,
    ) -> Result<Takeover> {
        let (depositor, kept) = Depositor::connect(holder, HOLDER_WAIT_MAX)?;
        let mut instance = Instance::claim(directory)?;
        if let Some(deposit) = kept {
            match adopt(&mut instance, deposit) {
                Ok((found, connection)) => {
                    let Adopted { root, link, state, parked, strays } = found;
                    let held = Held { depositor, root: root.try_clone()?, connection };
                    tracing::info!(exports = parked.len(), "taking over block devices of the daemon before");
                    return Ok(Takeover {
                        instance,
                        held: Some(held),
                        root,
                        link,
                        state,
                        parked,
                        strays,
                        limits,
                        runtime,
                        resend: true,
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "the block devices that were left cannot be taken over: their I/O fails");
                    depositor.forget();
                }
            }
        }
        begin(instance, depositor, limits, runtime)
    }
}

struct Adopted {
    root: OwnedFd,
    link: Link,
    state: State,
    parked: BTreeMap<ExportKey, Parked>,
    strays: Vec<(LoopDevice, String)>,
}

fn adopt(instance: &mut Instance, deposit: Deposit) -> Result<(Adopted, u32)> {
    let Deposit { connection, device, root, state } = deposit;
    let mut state = State::read(state)?;
    let ended = {
        let mut watched = [PollFd::new(&device, PollFlags::IN)];
        poll(&mut watched, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))
            .map_err(std::io::Error::from)
            .context(|| "looking at the FUSE connection")?;
        watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    };
    if ended {
        return Err(Error::new(ErrorKind::Fenced, "the FUSE connection was ended meanwhile"));
    }
    instance.rename(&state.instance)?;
    let mut parked = BTreeMap::new();
    let mut strays = Vec::new();
    for (device, name) in instance.loop_devices()? {
        let file = instance.backing_file(&name);
        let key = ExportKey::new(name).ok();
        match key.and_then(|key| Some((state.exports.get(&key)?, key))) {
            Some((kept, key)) if !parked.contains_key(&key) => {
                let (read_only, note) = (kept.read_only, kept.note.clone());
                parked.insert(key.clone(), Parked { key, read_only, note, device });
            }
            _ => strays.push((device, file)),
        }
    }
    state.exports.retain(|key, _| parked.contains_key(key));
    state.next_inode = first_file_after(state.next_inode);
    // Only a connection whose kernel can send again is ever deposited.
    let agreed = Agreed { write_bytes_max: state.write_bytes_max, resends: true };
    let link = Link::take_over(device, agreed);
    Ok((Adopted { root, link, state, parked, strays }, connection))
}

fn begin(
    instance: Instance,
    depositor: Depositor,
    limits: Limits,
    runtime: Arc<dyn Runtime>,
) -> Result<Takeover> {
    instance.clear_leftovers()?;
    let (root, device) = new_mount()?;
    let connection = connection_number(&root)?;
    let link = Link::begin(device)?;
    let agreed = link.agreed();
    let held = if agreed.resends {
        Some(Held { depositor, root: root.try_clone()?, connection })
    } else {
        tracing::warn!(
            "this kernel cannot send FUSE requests again (Linux 6.9 can): block devices fail when the daemon ends, \
             although there is a holder"
        );
        None
    };
    let state = State {
        instance: instance.name().to_owned(),
        write_bytes_max: agreed.write_bytes_max,
        next_inode: FIRST_FILE,
        exports: BTreeMap::new(),
    };
    instance.note_connection(connection)?;
    Ok(Takeover {
        instance,
        held,
        root,
        link,
        state,
        parked: BTreeMap::new(),
        strays: Vec::new(),
        limits,
        runtime,
        resend: false,
    })
}

impl Takeover {
    /// What waits for its device.
    pub fn parked(&self) -> impl Iterator<Item = &Parked> {
        self.parked.values()
    }

    /// Notes something of an export, for whoever comes if this process dies before it serves.
    pub fn annotate(&mut self, notes: impl IntoIterator<Item = (ExportKey, Note)>) -> Result<()> {
        for (key, note) in notes {
            if let Some(kept) = self.state.exports.get_mut(&key) {
                kept.note = note;
            }
        }
        match &self.held {
            Some(held) => held.deposit(&self.link, &self.state).map(drop),
            None => Ok(()),
        }
    }

    /// Serves. A parked export without a device fails its requests with that error.
    pub fn serve(
        mut self,
        mut devices: BTreeMap<ExportKey, Result<Arc<dyn BlockDevice>>>,
    ) -> Result<LoopExports> {
        let catalogue = Catalogue::new(self.instance.name().to_owned(), self.state.next_inode);
        let mut attached = BTreeMap::new();
        for (key, parked) in std::mem::take(&mut self.parked) {
            let kept = self.state.exports.remove(&key);
            let kept =
                kept.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{key} is not described")))?;
            let device = devices.remove(&key).unwrap_or_else(|| Err(not_opened()));
            let adopted = attach(&key, parked.device, kept, device)?;
            catalogue.insert(&key, Arc::clone(&adopted.served));
            attached.insert(key, adopted);
        }
        // Not with the lock: a thread that is being killed while it waits for us must not keep the next daemon out.
        let instead = self.root.try_clone().context(|| "copying the root of the mount")?;
        let hands = Hands::start("loop-control", [self.root.as_fd(), instead.as_fd()])?;
        drop((self.root, instead));
        if self.resend {
            self.link.resend()?;
        }
        let serving = self.link.serve(FUSE_THREADS, filesystem(&catalogue, self.runtime, &self.limits))?;
        for (stray, file) in self.strays {
            if let Err(error) = hands.call(move |_| stray.clear_when_closed(&file))? {
                tracing::warn!(%error, device = %stray.path().display(), "a loop device of nobody stays");
            }
        }
        let service = Service { instance: self.instance, hands, link: self.link, serving, held: self.held };
        let exports = LoopExports {
            limits: self.limits,
            catalogue,
            service: Mutex::new(Some(service)),
            attached: RwLock::new(attached),
        };
        exports.begin_holding()?;
        Ok(exports)
    }
}

impl LoopExports {
    fn begin_holding(&self) -> Result<()> {
        let grown: Vec<ExportKey> = {
            let service = self.service.lock();
            if let Some(service) = &*service {
                self.deposit(service, None)?;
                if let Some(held) = &service.held {
                    held.depositor.serving();
                }
            }
            let attached = self.attached.read();
            let grown = attached.iter().filter(|(_, it)| it.served.size() > it.shown.capacity);
            grown.map(|(key, _)| key.clone()).collect()
        };
        for key in grown {
            if let Err(error) = self.resize(&key) {
                tracing::warn!(%key, %error, "a block device does not show its new size yet");
            }
        }
        Ok(())
    }
}

fn not_opened() -> Error {
    Error::new(ErrorKind::NotFound, "nobody opened it")
}

fn attach(
    key: &ExportKey,
    device: LoopDevice,
    kept: Kept,
    opened: Result<Arc<dyn BlockDevice>>,
) -> Result<Attached> {
    let shape = Geometry {
        capacity: device.capacity()?,
        logical_block: logical_block(device)?,
        physical_block: LOST_DISCARD,
        discard_granularity: LOST_DISCARD,
        read_only: kept.read_only,
    };
    let fits = |opened: Arc<dyn BlockDevice>| {
        let geometry = opened.geometry();
        if geometry.capacity < shape.capacity
            || geometry.logical_block > shape.logical_block
            || (geometry.read_only && !kept.read_only)
        {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "it has {} bytes in blocks of {} now, and those who use it know {} in blocks of {}",
                    geometry.capacity, geometry.logical_block, shape.capacity, shape.logical_block
                ),
            ));
        }
        Ok(opened)
    };
    let (served, lost) = match opened.and_then(fits) {
        Ok(opened) => (opened, None),
        Err(error) => {
            let reason = error.to_string();
            tracing::error!(%key, device = %device.path().display(), reason, "a block device fails from now on");
            (Arc::new(Lost { geometry: shape, reason: reason.clone() }) as Arc<dyn BlockDevice>, Some(reason))
        }
    };
    let served = Served::new(kept.inode, served, kept.read_only);
    let mut adopted = Attached::adopt(key, device, served, kept)?;
    adopted.lost = lost;
    Ok(adopted)
}
