//! Makes, checks and grows filesystems with the distribution's tools.

use super::device::Device;
use super::process::{Outcome, Tool};
use crate::capability::Filesystem;
use crate::errors::{Result, interrupted};
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use tonic::Status;

const MKFS_LIMIT: Duration = Duration::from_secs(600);
const CHECK_LIMIT: Duration = Duration::from_secs(3600);
const GROW_LIMIT: Duration = Duration::from_secs(600);
const BLKID_LIMIT: Duration = Duration::from_secs(30);

/// What blkid says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blkid {
    /// It recognises nothing, or could not read: it does not tell these apart.
    Nothing,
    /// A type, such as `ext4` or `crypto_LUKS`.
    Found(String),
    /// Several at once.
    Ambiguous,
    /// It did not run.
    Silent,
}

/// Asks blkid for a second opinion.
pub(crate) async fn blkid(device: &Device) -> Blkid {
    let tool = Tool::new("blkid", BLKID_LIMIT).args(["-p", "-o", "export", "--"]).arg(device.path());
    match tool.run().await {
        Ok(Outcome { code: Some(0), stdout, .. }) => {
            let value = |key: &str| stdout.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
            match value("TYPE=").or_else(|| value("PTTYPE=")) {
                Some(kind) => Blkid::Found(kind),
                None => Blkid::Nothing,
            }
        }
        Ok(Outcome { code: Some(2), .. }) => Blkid::Nothing,
        Ok(Outcome { code: Some(8), .. }) => Blkid::Ambiguous,
        Ok(outcome) => {
            tracing::warn!(%device, code = ?outcome.code, output = outcome.output, "blkid gave no opinion");
            Blkid::Silent
        }
        Err(error) => {
            tracing::warn!(%device, %error, "blkid gave no opinion");
            Blkid::Silent
        }
    }
}

/// Makes a filesystem. `lock` is left with the tool, so that it lasts until the tool has ended. `fresh` says that
/// every byte reads as zero, so nothing has to be discarded first.
pub(crate) async fn make(filesystem: Filesystem, device: &Device, lock: File, fresh: bool) -> Result<()> {
    let tool = match filesystem {
        // Blocks of the size that the store copies; nothing reserved for root, as a volume is no system disk.
        Filesystem::Ext4 => {
            let tool = Tool::new("mkfs.ext4", MKFS_LIMIT).args(["-q", "-F", "-b", "4096", "-m", "0"]);
            if fresh { tool.args(["-E", "nodiscard"]) } else { tool }
        }
        Filesystem::Xfs => {
            let tool = Tool::new("mkfs.xfs", MKFS_LIMIT).args(["-q", "-f"]);
            if fresh { tool.arg("-K") } else { tool }
        }
    };
    let doing = || format!("making {filesystem} on {device}");
    match tool.holding(lock).arg(device.path()).run().await {
        Ok(Outcome { code: Some(0), .. }) => Ok(()),
        Ok(outcome) => Err(Status::failed_precondition(format!("{}: {}", doing(), outcome.output))),
        Err(error) => Err(interrupted(doing(), error)),
    }
}

/// Repairs what can be repaired without a person. XFS does that when it is mounted.
pub(crate) async fn check_ext(device: &Device, lock: File) -> Result<()> {
    let doing = || format!("checking the filesystem on {device}");
    match Tool::new("e2fsck", CHECK_LIMIT).arg("-p").holding(lock).arg(device.path()).run().await {
        // Clean, repaired, or repaired so that a mounted one would need a restart: ours is not mounted.
        Ok(Outcome { code: Some(0..=3), .. }) => Ok(()),
        Ok(Outcome { code: Some(code), output, .. }) if code & 4 != 0 => {
            Err(Status::failed_precondition(format!(
                "{}: it has errors that need a decision; attach the volume with `parallax attach` and run e2fsck -f: {output}",
                doing()
            )))
        }
        Ok(outcome) => Err(interrupted(doing(), outcome.output)),
        Err(error) => Err(interrupted(doing(), error)),
    }
}

/// How growing a mounted filesystem ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grown {
    /// It fills its device.
    Full,
    /// The kernel does not let us: growing a mounted ext4 takes CAP_SYS_RESOURCE, which some hosts withhold.
    NotPermitted,
}

/// Grows a mounted filesystem to the size of its device. Nothing to do is fine.
pub(crate) async fn grow(filesystem: Filesystem, device: &Device, mounted_at: &Path) -> Result<Grown> {
    let tool = match filesystem {
        Filesystem::Ext4 => Tool::new("resize2fs", GROW_LIMIT).arg(device.path()),
        Filesystem::Xfs => Tool::new("xfs_growfs", GROW_LIMIT).arg("-d").arg(mounted_at),
    };
    match tool.run().await {
        Ok(Outcome { code: Some(0), .. }) => Ok(Grown::Full),
        Ok(outcome) if outcome.output.contains("Permission denied") => Ok(Grown::NotPermitted),
        outcome => Err(failed_growth(filesystem, device, outcome)),
    }
}

/// Grows an ext filesystem that is not mounted. The tool insists on a full check first.
pub(crate) async fn grow_ext_unmounted(device: &Device, lock: File) -> Result<()> {
    let held = lock.try_clone().map_err(|error| interrupted(format!("locking {device}"), error))?;
    let check = Tool::new("e2fsck", CHECK_LIMIT).args(["-p", "-f"]).holding(held).arg(device.path());
    match check.run().await {
        Ok(Outcome { code: Some(0..=3), .. }) => {}
        outcome => return Err(failed_growth(Filesystem::Ext4, device, outcome)),
    }
    match Tool::new("resize2fs", GROW_LIMIT).holding(lock).arg(device.path()).run().await {
        Ok(Outcome { code: Some(0), .. }) => Ok(()),
        outcome => Err(failed_growth(Filesystem::Ext4, device, outcome)),
    }
}

fn failed_growth(filesystem: Filesystem, device: &Device, outcome: std::io::Result<Outcome>) -> Status {
    let why = outcome.map_or_else(|error| error.to_string(), |outcome| outcome.output);
    interrupted(format!("growing {filesystem} on {device}"), why)
}
