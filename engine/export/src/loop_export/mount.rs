//! A FUSE mount that is attached nowhere.
//!
//! The superblock is made with fsopen(2) and mounted with fsmount(2), but never moved into the file tree. Nobody
//! else can look into it, in whatever mount namespace, and a killed daemon leaves no dead mount behind: what
//! is left is held by loop devices alone and goes with them.

use parallax_block::{Error, ErrorKind, Result, ResultExt};
use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    },
};
use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// The kernel's end of a FUSE connection, and the mount.
pub(super) struct DetachedMount {
    root: OwnedFd,
}

impl DetachedMount {
    /// Makes a connection and mounts it; the kernel's first message waits in the returned descriptor.
    pub(super) fn new() -> Result<(Self, OwnedFd)> {
        let connection =
            OpenOptions::new().read(true).write(true).open("/dev/fuse").context(
                || "opening /dev/fuse (the container needs that device, the kernel the fuse driver)",
            )?;
        let root = mount(connection.as_fd().as_raw_fd())
            .map_err(|errno| Error::from(io::Error::from(errno)))
            .context(|| "mounting FUSE with fsopen(2) (needs CAP_SYS_ADMIN and Linux 5.8 or newer)")?;
        Ok((Self { root }, connection.into()))
    }

    /// Opens a file. Close it soon: see the module of the loop export for why no such file may stay open.
    pub(super) fn open(&self, path: &str, read_only: bool) -> Result<OwnedFd> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        openat(&self.root, path, access | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("opening {path} of the loop export"))
    }

    /// Makes the kernel read a file's size again, and answers with the size that its inode has afterwards.
    ///
    /// The kernel drops the answer if reads or writes of the file complete meanwhile, so the answer may be stale.
    pub(super) fn refresh_size(&self, path: &str) -> Result<u64> {
        let ask = |flags| statx(&self.root, path, flags, StatxFlags::SIZE).map_err(io::Error::from);
        ask(AtFlags::STATX_FORCE_SYNC)
            .and_then(|_| ask(AtFlags::STATX_DONT_SYNC))
            .map(|attributes| attributes.stx_size)
            .context(|| format!("reading the size of {path} of the loop export"))
    }
}

fn mount(connection: i32) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "parallax")?;
    fsconfig_set_string(context.as_fd(), "subtype", "parallax")?;
    fsconfig_set_string(context.as_fd(), "fd", connection.to_string())?;
    fsconfig_set_string(context.as_fd(), "rootmode", "40000")?;
    fsconfig_set_string(context.as_fd(), "user_id", rustix::process::geteuid().as_raw().to_string())?;
    fsconfig_set_string(context.as_fd(), "group_id", rustix::process::getegid().as_raw().to_string())?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The error for a serving process that has stopped.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "the loop export has been shut down; restart the daemon")
}
