//! The block device that the daemon gave a volume.

use super::mountinfo::{DeviceNumber, Mount, MountTable};
use crate::errors::{Result, interrupted};
use parallax_api::v1;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// A new device node appears, and a grown device shows its size, within moments.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A block device of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    path: PathBuf,
    number: DeviceNumber,
    /// The filesystem that its node lies on.
    on: DeviceNumber,
    read_only: bool,
}

impl Device {
    /// Waits until the device of an attachment is there with its full size.
    pub(crate) async fn wait(attachment: &v1::Attachment) -> Result<Self> {
        let path = checked_path(&attachment.device)?;
        let end = Instant::now() + APPEARS_WITHIN;
        loop {
            let look = Self::look(&path, attachment);
            match look {
                Ok(device) => return Ok(device),
                Err(error) if Instant::now() >= end => {
                    return Err(interrupted(format!("waiting for {}", path.display()), error));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// The device of an attachment as it is now.
    pub(crate) fn of(attachment: &v1::Attachment) -> Result<Self> {
        let path = checked_path(&attachment.device)?;
        Self::open_node(&path, attachment.read_only)
            .map_err(|error| interrupted(format!("looking at {}", path.display()), error))
    }

    fn look(path: &Path, attachment: &v1::Attachment) -> io::Result<Self> {
        let device = Self::open_node(path, attachment.read_only)?;
        let bytes = device.bytes()?;
        if bytes < attachment.size_bytes {
            let wanted = attachment.size_bytes;
            return Err(io::Error::other(format!("it has {bytes} bytes where {wanted} are expected")));
        }
        Ok(device)
    }

    fn open_node(path: &Path, read_only: bool) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        if !metadata.file_type().is_block_device() {
            return Err(io::Error::other("it is not a block device"));
        }
        let number = DeviceNumber::from_raw(metadata.rdev());
        let on = DeviceNumber::from_raw(metadata.dev());
        Ok(Self { path: path.to_owned(), number, on, read_only })
    }

    /// Its node, such as `/dev/loop3`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its number.
    pub(crate) fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Where it is shown as a raw device.
    pub(crate) fn shown<'a>(&self, table: &'a MountTable) -> impl Iterator<Item = &'a Mount> + use<'a> {
        table.of_node(&self.path, self.on)
    }

    /// Whether it was attached without writing.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Its size now.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        File::open(&self.path)?.seek(SeekFrom::End(0))
    }

    /// Opens it for reading.
    pub(crate) fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Opens it under a lock that outlives us with whatever process holds the file: a mkfs that a killed plugin
    /// left behind still has it. ABORTED if it is taken.
    pub(crate) fn lock(&self) -> Result<File> {
        let open = OpenOptions::new().read(true).open(&self.path);
        let file = open.map_err(|error| interrupted(format!("opening {self}"), error))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Status::aborted(format!("{self} is being prepared by another process")))
            }
            Err(error) => Err(interrupted(format!("locking {self}"), error)),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// The daemon is trusted, yet what it says becomes an argument of tools: plain nodes under `/dev` only.
fn checked_path(text: &str) -> Result<PathBuf> {
    let plain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/'))
            && !name.split('/').any(str::is_empty)
    };
    match text.strip_prefix("/dev/") {
        Some(name) if plain(name) => Ok(text.into()),
        _ => Err(Status::unavailable(format!(
            "the daemon gave `{text}` as a device, which is no node under /dev"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_under_dev_are_devices() {
        for good in ["/dev/loop3", "/dev/ublkb0", "/dev/mapper/a-b_c"] {
            assert_eq!(checked_path(good).unwrap(), Path::new(good));
        }
        for bad in ["", "/dev/", "/etc/passwd", "/dev/../etc/passwd", "/dev//x", "-F", "/dev/a b"] {
            assert!(checked_path(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_never_appears_is_reported_as_undecided() {
        let attachment = v1::Attachment { device: "/dev/parallax-none".into(), ..Default::default() };
        let error = Device::wait(&attachment).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Aborted);
        assert!(error.message().contains("/dev/parallax-none"), "{error}");
    }
}
