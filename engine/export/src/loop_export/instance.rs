//! The runtime directory: who serves it, and what a killed predecessor left behind.
//!
//! ```text
//! <directory>/instance        random name of this directory's exports, made once; locked by who serves them
//! <directory>/connection      number of the FUSE connection, for a person who must end it by hand
//! <directory>/numbers/<key>   loop device number of an attached export, so that it can have it again
//! ```
//!
//! The lock proves that a predecessor is gone, and with it its FUSE connection: the kernel ends the connection when
//! its last descriptor closes, and every request of its loop devices has failed by then. So clearing those
//! devices waits for nobody.

use super::ExportKey;
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use parallax_device::loop_control::LoopDevice;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read, Seek, Write},
    os::fd::{AsFd, BorrowedFd},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const RANDOM_BYTES: usize = 12;

/// A runtime directory, locked for this process.
pub(super) struct Instance {
    connection: PathBuf,
    numbers: PathBuf,
    name: String,
    lock: File,
}

impl Instance {
    pub(super) fn claim(directory: &Path) -> Result<Self> {
        let make = |path: &Path| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.context(|| format!("creating {}", path.display()))
        };
        make(directory)?;
        refuse_foreign(directory)?;
        let numbers = directory.join("numbers");
        make(&numbers)?;
        let path = directory.join("instance");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .context(|| format!("opening {}", path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "another daemon serves loop exports from {}; stop it first. If it was killed and does not die, \
                     write 1 to /sys/fs/fuse/connections/{}/abort",
                    directory.display(),
                    fs::read_to_string(directory.join("connection")).as_deref().unwrap_or("*")
                ),
            )
        })?;
        let mut name = String::new();
        lock.read_to_string(&mut name).context(|| format!("reading {}", path.display()))?;
        let known = is_name(&name);
        let mut instance = Self { connection: directory.join("connection"), numbers, name, lock };
        if !known {
            instance.name = new_name()?;
            instance.write_name()?;
        }
        Ok(instance)
    }

    /// Notes which FUSE connection is ours.
    pub(super) fn note_connection(&self, number: u32) -> Result<()> {
        fs::write(&self.connection, number.to_string())
            .context(|| format!("writing {}", self.connection.display()))
    }

    /// What holds the lock. It is held as long as any descriptor of it is open.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the name of a connection that is taken over: its loop devices are called so.
    pub(super) fn rename(&mut self, name: &str) -> Result<()> {
        if !is_name(name) {
            return Err(Error::corrupt(format!("{name:?} is not a name of loop exports")));
        }
        if self.name != name {
            self.name = name.to_owned();
            self.write_name()?;
        }
        Ok(())
    }

    fn write_name(&mut self) -> Result<()> {
        self.lock
            .set_len(0)
            .and_then(|()| self.lock.rewind())
            .and_then(|()| self.lock.write_all(self.name.as_bytes()))
            .context(|| "writing the name of the loop exports")
    }

    /// What the kernel calls the file of a key.
    pub(super) fn backing_file(&self, key: &str) -> String {
        format!("/{}/{key}", self.name)
    }

    /// Loop devices over files of this name, with the key of each.
    pub(super) fn loop_devices(&self) -> Result<Vec<(LoopDevice, String)>> {
        let prefix = self.backing_file("");
        let mut found = LoopDevice::configured()?;
        found.retain_mut(|(_, file)| match file.strip_prefix(&prefix) {
            Some(key) => {
                *file = key.to_owned();
                true
            }
            None => false,
        });
        Ok(found)
    }

    /// Clears the loop devices of a predecessor. Those that something still holds open fail all I/O, and the
    /// kernel clears them when the last holder closes them; they are returned.
    pub(super) fn clear_leftovers(&self) -> Result<Vec<LoopDevice>> {
        let mut held = Vec::new();
        for (device, key) in self.loop_devices()? {
            let file = self.backing_file(&key);
            device.clear_when_closed(&file)?;
            if device.is_over(&file) {
                tracing::warn!(
                    device = %device.path().display(),
                    "a loop device of an earlier daemon is still in use; its I/O fails until it is unmounted"
                );
                held.push(device);
            } else {
                tracing::info!(device = %device.path().display(), "cleared a loop device of an earlier daemon");
            }
        }
        Ok(held)
    }

    /// The number that an export had when it was last attached and not detached.
    pub(super) fn remembered(&self, key: &ExportKey) -> Option<u32> {
        fs::read_to_string(self.numbers.join(key.as_str())).ok()?.trim().parse().ok()
    }

    pub(super) fn remember(&self, key: &ExportKey, device: LoopDevice) {
        let path = self.numbers.join(key.as_str());
        if let Err(error) = fs::write(&path, device.number().to_string()) {
            tracing::warn!(%error, path = %path.display(), "the loop device number of an export is not remembered");
        }
    }

    pub(super) fn forget(&self, key: &ExportKey) {
        let path = self.numbers.join(key.as_str());
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "the loop device number of an export is still remembered");
        }
    }
}

/// Whoever else may write to the directory could have links in it, and we would write where they lead.
fn refuse_foreign(directory: &Path) -> Result<()> {
    let looking = || format!("looking at {}", directory.display());
    let found = fs::symlink_metadata(directory).context(looking)?;
    let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if ours && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        format!("{} must be a directory of this user to which nobody else can write", directory.display()),
    ))
}

fn is_name(text: &str) -> bool {
    text.strip_prefix("parallax-").is_some_and(|random| {
        random.len() == RANDOM_BYTES * 2 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn new_name() -> Result<String> {
    let mut random = [0; RANDOM_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .context(|| "reading /dev/urandom")?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("parallax-{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, symlink},
    };

    /// The command line kept its exports in a directory of `/tmp` whose name could be guessed. Whoever made it first, with
    /// a link in it, had root overwrite the file of his choice.
    #[test]
    fn a_directory_to_which_others_can_write_is_not_used() {
        let bed = tempfile::tempdir().unwrap();
        let victim = bed.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let directory = bed.path().join("exports");
        fs::create_dir(&directory).unwrap();
        symlink(&victim, directory.join("instance")).unwrap();
        for mode in [0o777, 0o720] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            let refused = Instance::claim(&directory).err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
        }
        let link = bed.path().join("link");
        symlink(bed.path(), &link).unwrap();
        assert!(Instance::claim(&link).is_err(), "nor one that is only a link");

        fs::remove_file(directory.join("instance")).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        Instance::claim(&directory).unwrap();
    }
}
