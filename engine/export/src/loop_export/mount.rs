//! A FUSE mount that is attached nowhere.
//!
//! The superblock is made with fsopen(2) and mounted with fsmount(2), but never moved into the file tree. Nobody
//! else can look into it, in whatever mount namespace, and a killed daemon leaves no dead mount behind: what
//! is left is held by loop devices alone and goes with them.

use parallax_block::{Error, Result, ResultExt};
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

/// Makes a connection and mounts it. Answers with the root of the mount, and with the descriptor in which the
/// kernel's first message waits.
pub(super) fn new_mount() -> Result<(OwnedFd, OwnedFd)> {
    let connection = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context(|| "opening /dev/fuse (the container needs that device, the kernel the fuse driver)")?;
    let root = mount(connection.as_raw_fd())
        .map_err(|errno| Error::from(io::Error::from(errno)))
        .context(|| "mounting FUSE with fsopen(2) (needs CAP_SYS_ADMIN and Linux 5.9 or newer)")?;
    Ok((root, connection.into()))
}

/// Number of the connection in `/sys/fs/fuse/connections`, which is its device number. Asks nobody.
pub(super) fn connection_number(root: &OwnedFd) -> Result<u32> {
    statx(root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())
        .map(|attributes| attributes.stx_dev_minor)
        .map_err(io::Error::from)
        .context(|| "asking for the number of the FUSE connection")
}

/// Opens a file of the mount. Only apart, and close it soon: see the module of the loop export.
pub(super) fn open_file(root: &OwnedFd, path: &str, read_only: bool) -> Result<OwnedFd> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    openat(root, path, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .context(|| format!("opening {path} of the loop export"))
}

/// Makes the kernel read a file's size again, and answers with the size that its inode has afterwards. Only apart.
///
/// The kernel drops the answer if reads or writes of the file complete meanwhile, so the answer may be stale.
pub(super) fn refresh_size(root: &OwnedFd, path: &str) -> Result<u64> {
    let ask = |flags| statx(root, path, flags, StatxFlags::SIZE).map_err(io::Error::from);
    ask(AtFlags::STATX_FORCE_SYNC)
        .and_then(|_| ask(AtFlags::STATX_DONT_SYNC))
        .map(|attributes| attributes.stx_size)
        .context(|| format!("reading the size of {path} of the loop export"))
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
