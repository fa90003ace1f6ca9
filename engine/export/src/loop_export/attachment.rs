//! One loop device over one file of the export: made, resized, taken away.
//!
//! Everything here that the kernel may answer with a question to this very process runs on the apart thread
//! ([`Hands`]): functions that take the root of the mount, or say so.

use super::{
    ExportKey, Limits,
    holders::describe,
    mount::{open_file, refresh_size},
    served::Served,
    state::{Kept, Note},
};
use parallax_block::{Error, ErrorKind, Geometry, Result, ResultExt};
use parallax_device::{
    ApartThread,
    loop_control::{LoopDevice, LoopOptions},
};
use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

/// Attempts to show a new size while requests complete, and pause between them.
const RESIZE_ATTEMPTS_MAX: u32 = 200;
const RESIZE_PAUSE: Duration = Duration::from_millis(5);

/// A device manager that probes a device holds it for a moment. Worth waiting for, not worth failing for.
const CLEAR_ATTEMPTS_MAX: u32 = 10;
const CLEAR_PAUSE: Duration = Duration::from_millis(100);

/// Requests in flight may take this long to end when their export is given up.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The thread that does what may wait for this process. It keeps the root of the mount, and the lock of the
/// instance: the lock is free only when it has ended too.
pub(super) type Hands = ApartThread<2>;

/// One volume and its loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopAttachment {
    /// Which export.
    pub key: ExportKey,
    /// Block device, such as `/dev/loop3`. The same for as long as the export is attached.
    pub path: PathBuf,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Bytes that the loop device offers.
    pub capacity: u64,
    /// Bytes of its logical block.
    pub logical_block: u32,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// An attachment and what serves it.
#[derive(Clone)]
pub(super) struct Attached {
    pub(super) shown: LoopAttachment,
    pub(super) device: LoopDevice,
    /// What the kernel calls the file behind it: the device is ours as long as it is over that.
    file: String,
    pub(super) served: Arc<Served>,
    /// Limits of the queue before they were ours: they stay with a loop device whatever file is behind it.
    untuned: Vec<Setting>,
    pub(super) note: Note,
    /// Why it serves nothing but errors, if it does.
    pub(super) lost: Option<String>,
}

/// A setting of a loop device in sysfs.
#[derive(Clone)]
struct Setting {
    path: PathBuf,
    value: String,
}

impl Setting {
    fn of(device: LoopDevice, name: &str, value: String) -> Self {
        Self { path: device.sysfs().join("queue").join(name), value }
    }

    /// Sets it, and answers with what it was. Waits for the I/O of the device: only apart.
    fn set(&self) -> std::io::Result<Self> {
        let value = fs::read_to_string(&self.path)?;
        fs::write(&self.path, &self.value)?;
        Ok(Self { path: self.path.clone(), value })
    }
}

fn check_shape(geometry: &Geometry) -> Result<()> {
    if !matches!(geometry.logical_block, 512 | 1024 | 2048 | 4096) {
        return Err(Error::invalid(format!(
            "a loop device has blocks of 512 to 4096 bytes, not {}",
            geometry.logical_block
        )));
    }
    if geometry.capacity == 0 || !geometry.capacity.is_multiple_of(u64::from(geometry.logical_block)) {
        return Err(Error::invalid(format!(
            "a capacity of {} bytes is not a multiple of the {}-byte block",
            geometry.capacity, geometry.logical_block
        )));
    }
    Ok(())
}

impl Attached {
    /// Puts a loop device over the file at `path` of the mount, the one that had the number `preferred` if it is free.
    pub(super) fn new(
        key: &ExportKey,
        served: Arc<Served>,
        hands: &Hands,
        path: String,
        preferred: Option<u32>,
        limits: &Limits,
    ) -> Result<Self> {
        let geometry = served.device.geometry();
        check_shape(&geometry)?;
        let options = LoopOptions {
            logical_block: geometry.logical_block,
            read_only: served.read_only,
            direct: true,
            label: format!("parallax:{key}"),
            preferred,
        };
        let file = format!("/{path}");
        let device = hands.call(move |[root, _]| configure(root, &path, &options))??;
        let attached = Self::looked_at(key, device, served, geometry);
        let mut attached =
            attached.inspect_err(|_| drop(hands.call(move |_| device.clear_when_closed(&file))))?;
        attached.tune(hands, "max_sectors_kb", limits.request_bytes_max / 1024)?;
        attached.tune(hands, "nr_requests", limits.queue_depth)?;
        Ok(attached)
    }

    fn looked_at(
        key: &ExportKey,
        device: LoopDevice,
        served: Arc<Served>,
        geometry: Geometry,
    ) -> Result<Self> {
        let path = device.path();
        let node = fs::metadata(&path).context(|| format!("looking at {}", path.display()))?;
        let shown = LoopAttachment {
            key: key.clone(),
            major: rustix::fs::major(node.rdev()),
            minor: rustix::fs::minor(node.rdev()),
            capacity: device.capacity()?,
            logical_block: geometry.logical_block,
            read_only: served.read_only,
            path,
        };
        if shown.capacity != geometry.capacity {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} offers {} bytes of {}", shown.path.display(), shown.capacity, geometry.capacity),
            ));
        }
        Self::over_its_file(shown, device, served)
    }

    fn over_its_file(shown: LoopAttachment, device: LoopDevice, served: Arc<Served>) -> Result<Self> {
        let file = device.backing_file().ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("{} has lost its file", shown.path.display()))
        })?;
        Ok(Self { shown, device, file, served, untuned: Vec::new(), note: Note::default(), lost: None })
    }

    /// One that a daemon before us attached and that is in use.
    pub(super) fn adopt(
        key: &ExportKey,
        device: LoopDevice,
        served: Arc<Served>,
        kept: Kept,
    ) -> Result<Self> {
        let path = device.path();
        let node = fs::metadata(&path).context(|| format!("looking at {}", path.display()))?;
        let shown = LoopAttachment {
            key: key.clone(),
            major: rustix::fs::major(node.rdev()),
            minor: rustix::fs::minor(node.rdev()),
            capacity: device.capacity()?,
            logical_block: logical_block(device)?,
            read_only: kept.read_only,
            path,
        };
        let untuned =
            kept.untuned.into_iter().map(|(name, value)| Setting::of(device, &name, value)).collect();
        Ok(Self { untuned, note: kept.note, ..Self::over_its_file(shown, device, served)? })
    }

    /// What the next daemon has to know.
    pub(super) fn kept(&self) -> Kept {
        let setting = |setting: &Setting| {
            let name = setting.path.file_name()?.to_str()?.to_owned();
            Some((name, setting.value.trim().to_owned()))
        };
        Kept {
            inode: self.served.inode,
            read_only: self.shown.read_only,
            untuned: self.untuned.iter().filter_map(setting).collect(),
            note: self.note.clone(),
        }
    }

    /// Sets a limit of the device's queue. Without it the device works, only less bounded.
    fn tune(&mut self, hands: &Hands, name: &str, value: u32) -> Result<()> {
        let setting = Setting::of(self.device, name, value.to_string());
        let path = setting.path.clone();
        match hands.call(move |_| setting.set())? {
            Ok(previous) => self.untuned.push(previous),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), value, "a limit of a loop device stays as it is");
            }
        }
        Ok(())
    }

    /// Shows the present capacity. The inode's size goes first, then the device's: a read between the file's old
    /// end and the device's new one would be answered with zeroes by the kernel.
    pub(super) fn resize(&mut self, hands: &Hands, path: &str) -> Result<()> {
        let wanted = self.served.size();
        if wanted < self.shown.capacity {
            return Err(Error::invalid(format!(
                "the device has shrunk from {} to {wanted} bytes, which nobody who uses it could survive",
                self.shown.capacity
            )));
        }
        let device = self.device;
        for _ in 0..RESIZE_ATTEMPTS_MAX {
            let path = path.to_owned();
            let size = {
                let _no_replies = self.served.replies.write();
                hands.call(move |[root, _]| refresh_size(root, &path))??
            };
            if size == wanted {
                hands.call(move |_| device.reread_capacity())??;
                self.shown.capacity = device.capacity()?;
                if self.shown.capacity == wanted {
                    return Ok(());
                }
            }
            thread::sleep(RESIZE_PAUSE);
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("the kernel did not take the new size of {wanted} bytes; try again"),
        ))
    }

    /// Takes the loop device off the file, unless someone has it open.
    pub(super) fn clear(&self, hands: &Hands) -> Result<()> {
        let device = self.device;
        for _ in 0..CLEAR_ATTEMPTS_MAX {
            if !device.is_over(&self.file) {
                // Somebody has taken it away already, and somebody else may have it by now.
                return Ok(());
            }
            // The driver would wait for the I/O of a user whom it cannot leave: then even a refusal would hang.
            let used = self.served.is_busy() || hands.call(move |_| device.is_claimed())??;
            let file = self.file.clone();
            if !used && hands.call(move |_| device.clear(&file))?? {
                let untuned = self.untuned.clone();
                // Another program may have taken the device by now and set its own limits; either is well.
                return hands.call(move |_| untuned.iter().for_each(|setting| drop(setting.set())));
            }
            thread::sleep(CLEAR_PAUSE);
        }
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "{} is in use: {}; unmount or close it first",
                self.shown.path.display(),
                describe(self.device, (self.shown.major, self.shown.minor))
            ),
        ))
    }

    /// Fails all I/O from now on, and has the kernel clear the device when its last holder closes it.
    pub(super) fn give_up(&self, hands: &Hands) -> Result<()> {
        if !self.served.give_up(DRAIN_MAX) {
            tracing::warn!(
                key = %self.shown.key,
                "requests of a loop device were not answered within {DRAIN_MAX:?} and are left behind"
            );
        }
        let (device, file) = (self.device, self.file.clone());
        hands.call(move |_| device.clear_when_closed(&file))?
    }
}

/// Bytes of a configured device's logical block, as sysfs says.
pub(super) fn logical_block(device: LoopDevice) -> Result<u32> {
    let path = device.sysfs().join("queue/logical_block_size");
    let text = fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
    text.trim().parse().map_err(|_| Error::corrupt(format!("{} says {text:?}", path.display())))
}

fn configure(root: &OwnedFd, path: &str, options: &LoopOptions) -> Result<LoopDevice> {
    let device = {
        let file = open_file(root, path, options.read_only)?;
        LoopDevice::configure(file.as_fd(), options)?
    };
    let direct = device.status().and_then(|status| {
        if status.direct {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "this kernel's loop driver refuses direct I/O on FUSE, and a second page cache is not acceptable",
        ))
    });
    direct.inspect_err(|_| drop(device.clear_when_closed(&format!("/{path}"))))?;
    Ok(device)
}
