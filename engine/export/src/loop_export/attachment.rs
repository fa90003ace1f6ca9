//! One loop device over one file of the export: made, resized, taken away.

use super::{ExportKey, Limits, holders::describe, instance::Instance, mount::DetachedMount, served::Served};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use parallax_device::loop_control::{LoopDevice, LoopOptions};
use std::{fs, os::fd::AsFd, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, thread, time::Duration};

/// Attempts to show a new size while requests complete, and pause between them.
const RESIZE_ATTEMPTS_MAX: u32 = 200;
const RESIZE_PAUSE: Duration = Duration::from_millis(5);

/// A device manager that probes a device holds it for a moment. Worth waiting for, not worth failing for.
const CLEAR_ATTEMPTS_MAX: u32 = 10;
const CLEAR_PAUSE: Duration = Duration::from_millis(100);

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
    pub(super) served: Arc<Served>,
    /// Limits of the queue before they were ours: they stay with a loop device whatever file is behind it.
    untuned: Vec<(PathBuf, String)>,
}

impl Attached {
    pub(super) fn new(
        key: &ExportKey,
        served: Arc<Served>,
        mount: &DetachedMount,
        file: &str,
        instance: &Instance,
        limits: &Limits,
    ) -> Result<Self> {
        let geometry = served.device.geometry();
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
        let options = LoopOptions {
            logical_block: geometry.logical_block,
            read_only: served.read_only,
            direct: true,
            label: format!("parallax:{key}"),
            preferred: instance.remembered(key),
        };
        let device = {
            let file = mount.open(file, served.read_only)?;
            LoopDevice::configure(file.as_fd(), &options)?
        };
        let mut attached =
            Self::checked(key, device, served).inspect_err(|_| drop(device.clear_when_closed()))?;
        instance.remember(key, device).inspect_err(|_| drop(device.clear_when_closed()))?;
        attached.tune("max_sectors_kb", limits.request_bytes_max / 1024);
        attached.tune("nr_requests", limits.queue_depth);
        Ok(attached)
    }

    fn checked(key: &ExportKey, device: LoopDevice, served: Arc<Served>) -> Result<Self> {
        let geometry = served.device.geometry();
        let status = device.status()?;
        if !status.direct {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this kernel's loop driver refuses direct I/O on FUSE, and a second page cache is not acceptable",
            ));
        }
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
        Ok(Self { shown, device, served, untuned: Vec::new() })
    }

    /// Sets a limit of the device's queue. Without it the device works, only less bounded.
    fn tune(&mut self, name: &str, value: u32) {
        let path = self.device.sysfs().join("queue").join(name);
        let previous = fs::read_to_string(&path);
        match previous.and_then(|previous| fs::write(&path, value.to_string()).map(|()| previous)) {
            Ok(previous) => self.untuned.push((path, previous)),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), value, "a limit of a loop device stays as it is");
            }
        }
    }

    fn untune(&self) {
        for (path, previous) in &self.untuned {
            if let Err(error) = fs::write(path, previous) {
                tracing::debug!(%error, path = %path.display(), "a limit of a loop device stays as it was for us");
            }
        }
    }

    /// Shows the present capacity. The inode's size goes first, then the device's: a read between the file's old
    /// end and the device's new one would be answered with zeroes by the kernel.
    pub(super) fn resize(&mut self, mount: &DetachedMount, file: &str) -> Result<()> {
        let wanted = self.served.size();
        if wanted < self.shown.capacity {
            return Err(Error::invalid(format!(
                "the device has shrunk from {} to {wanted} bytes, which nobody who uses it could survive",
                self.shown.capacity
            )));
        }
        for _ in 0..RESIZE_ATTEMPTS_MAX {
            let size = {
                let _no_replies = self.served.replies.write();
                mount.refresh_size(file)?
            };
            if size == wanted {
                self.device.reread_capacity()?;
                self.shown.capacity = self.device.capacity()?;
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
    pub(super) fn clear(&self) -> Result<()> {
        for _ in 0..CLEAR_ATTEMPTS_MAX {
            if self.device.clear()? {
                self.untune();
                return Ok(());
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
}
