//! mount(2), umount(2) and bind mounts, each on a thread that may block.

use super::mountinfo::{Mount, MountTable};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

/// Mounts that one path can carry on top of each other before something is wrong.
const STACKED_MAX: usize = 16;

/// Options as written in a class, sorted into those of the kernel's mount and those of the filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    flags: u32,
    data: Vec<String>,
}

impl Options {
    /// Later options win, as with mount(8).
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options.iter().flat_map(|text| text.split(',')).filter(|option| !option.is_empty()) {
            match flag(option) {
                Some((flag, true)) => parsed.flags |= flag.bits(),
                Some((flag, false)) => parsed.flags &= !flag.bits(),
                None if matches!(option, "defaults" | "rw" | "auto" | "noauto" | "nofail" | "_netdev") => {
                    if option == "rw" {
                        parsed.flags &= !MountFlags::RDONLY.bits();
                    }
                }
                None => parsed.data.push(option.to_owned()),
            }
        }
        parsed
    }

    /// Adds an option of the filesystem unless it is there.
    #[must_use]
    pub(crate) fn with(mut self, option: &str) -> Self {
        if !self.data.iter().any(|have| have == option) {
            self.data.push(option.to_owned());
        }
        self
    }

    /// Refuses writing.
    #[must_use]
    pub(crate) fn read_only(mut self) -> Self {
        self.flags |= MountFlags::RDONLY.bits();
        self
    }

    /// Whether writing is refused.
    pub(crate) fn is_read_only(&self) -> bool {
        self.flags & MountFlags::RDONLY.bits() != 0
    }

    /// Allows writing.
    #[must_use]
    pub(crate) fn writable(mut self) -> Self {
        self.flags &= !MountFlags::RDONLY.bits();
        self
    }
}

/// The kernel's flag for an option, and whether the option sets or clears it.
fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" => (MountFlags::RDONLY, true),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        _ => return None,
    })
}

/// Mounts a filesystem.
pub(crate) async fn mount(
    device: &Path,
    target: &Path,
    kind: &'static str,
    options: &Options,
) -> io::Result<()> {
    let (device, target, flags) =
        (device.to_owned(), target.to_owned(), MountFlags::from_bits_retain(options.flags));
    let data = CString::new(options.data.join(","))?;
    blocking(move || Ok(rustix::mount::mount(&device, &target, kind, flags, data.as_c_str())?)).await
}

/// Shows `source` at `target` too; without writing if `read_only`.
pub(crate) async fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let (from, to) = (source.to_owned(), target.to_owned());
    blocking(move || Ok(rustix::mount::mount_bind(&from, &to)?)).await?;
    if read_only {
        refuse_writing(target).await?;
    }
    Ok(())
}

/// Makes an existing bind mount refuse writing. The kernel replaces all flags of the mount, so those that it has
/// are given again.
pub(crate) async fn refuse_writing(target: &Path) -> io::Result<()> {
    let target = target.to_owned();
    blocking(move || {
        let table = MountTable::read()?;
        let mount = table.at(&target).ok_or_else(|| io::Error::other("nothing is mounted there"))?;
        let kept = mount.options.iter().filter_map(|option| flag(option)).filter(|(_, set)| *set);
        let flags = kept.fold(MountFlags::BIND | MountFlags::RDONLY, |flags, (flag, _)| flags | flag);
        Ok(rustix::mount::mount_remount(&target, flags, c"")?)
    })
    .await
}

/// Takes away every mount on `target`; none is fine.
pub(crate) async fn unmount_all(target: &Path) -> io::Result<()> {
    let target = target.to_owned();
    blocking(move || {
        for _ in 0..STACKED_MAX {
            if MountTable::read()?.at(&target).is_none() {
                return Ok(());
            }
            rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW)?;
        }
        Err(io::Error::other(format!("more than {STACKED_MAX} mounts lie on it")))
    })
    .await
}

/// The table of mounts now.
pub(crate) async fn table() -> io::Result<MountTable> {
    blocking(MountTable::read).await
}

/// What is mounted at `target` now.
pub(crate) async fn mounted(target: &Path) -> io::Result<Option<Mount>> {
    Ok(table().await?.at(target).cloned())
}

/// Makes a folder for a mount, and its parents.
pub(crate) async fn make_folder(target: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let target = target.to_owned();
    blocking(move || std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&target)).await
}

/// Makes an empty file for a device to be bound to, and the folders above it.
pub(crate) async fn make_file(target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        make_folder(parent).await?;
    }
    let target = target.to_owned();
    blocking(move || std::fs::OpenOptions::new().create(true).append(true).open(&target).map(drop)).await
}

/// Removes an unmounted target. Only what is empty: content would be a user's.
pub(crate) async fn remove_target(target: PathBuf) -> io::Result<()> {
    blocking(move || match std::fs::symlink_metadata(&target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir(&target),
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => {
            Err(io::Error::other("it is a file with content, which is not ours"))
        }
        Ok(_) => std::fs::remove_file(&target),
    })
    .await
}

/// Runs what may block on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_into_the_kernels_and_the_filesystems() {
        let options = parse(&["noatime,discard", "nosuid", "context=\"system_u:object_r:x\"", "defaults"]);
        assert_eq!(options.flags, (MountFlags::NOATIME | MountFlags::NOSUID).bits());
        assert_eq!(options.data, ["discard", "context=\"system_u:object_r:x\""]);
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert!(!parse(&["ro", "rw"]).is_read_only());
        assert!(parse(&["rw", "ro"]).is_read_only());
        assert_eq!(parse(&["noexec", "exec"]), Options::default());
    }

    #[test]
    fn an_option_is_added_once() {
        assert_eq!(parse(&["nouuid"]).with("nouuid").data, ["nouuid"]);
        assert!(parse(&[]).read_only().is_read_only());
    }
}
