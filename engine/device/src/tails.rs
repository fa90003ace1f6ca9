//! Tails as files in a directory on tmpfs.
//!
//! Invariants:
//! * The directory is ours alone (0700, our user, not a link), so nobody else can plant or read a tail.
//! * A write is in the kernel's memory when it returns: it outlives this process, not the node.

use parallax_block::{Error, ErrorKind, Result, ResultExt, Tail, TailStore};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Bytes of a tail, at most: what [`TailStore::load`] is willing to read.
const TAIL_MAX: u64 = 1 << 30;

/// Tails in a directory.
#[derive(Debug)]
pub struct ShmTails {
    directory: PathBuf,
    boot_id: u128,
}

impl ShmTails {
    /// Opens the directory, creating it with mode 0700. It should be on tmpfs, such as under `/dev/shm`.
    pub fn open(directory: &Path) -> Result<Self> {
        let opening = || format!("opening the tail directory {}", directory.display());
        DirBuilder::new().mode(0o700).recursive(true).create(directory).context(opening)?;
        let found = fs::symlink_metadata(directory).context(opening)?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if !ours || found.mode() & 0o077 != 0 {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                "it must be a directory of this user that nobody else can enter (mode 0700)",
            )
            .context(opening()));
        }
        Ok(Self { directory: directory.to_owned(), boot_id: boot_id()? })
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if key.is_empty() || key.len() > 128 || key.starts_with('.') || !key.bytes().all(allowed) {
            return Err(Error::invalid(format!("{key:?} is not a name for a tail")));
        }
        Ok(self.directory.join(key))
    }
}

fn boot_id() -> Result<u128> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).context(|| format!("reading {path}"))?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16)
        .map_err(|error| Error::corrupt(format!("{path} holds {text:?}, not an identity")).with_source(error))
}

impl TailStore for ShmTails {
    fn boot_id(&self) -> u128 {
        self.boot_id
    }

    fn load(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(key)?;
        let loading = || format!("loading the tail {}", path.display());
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.context(loading)?,
        };
        let length = file.metadata().context(loading)?.len();
        if length > TAIL_MAX {
            return Err(Error::corrupt(format!("a tail of {length} bytes cannot be ours")).context(loading()));
        }
        let mut content = vec![0; length as usize];
        file.read_exact_at(&mut content, 0).context(loading)?;
        Ok(Some(content))
    }

    fn create(&self, key: &str) -> Result<Box<dyn Tail>> {
        let path = self.path(key)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .context(|| format!("creating the tail {}", path.display()))?;
        Ok(Box::new(ShmTail { file, path }))
    }

    fn remove(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context(|| format!("removing the tail {}", path.display())),
        }
    }
}

struct ShmTail {
    file: File,
    path: PathBuf,
}

impl Tail for ShmTail {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).context(|| format!("writing the tail {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, ShmTails) {
        let base = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = ShmTails::open(&base.path().join("tails")).unwrap();
        (base, store)
    }

    #[test]
    fn another_store_sees_what_was_written() {
        let (base, store) = store();
        assert_eq!(store.load("db.1").unwrap(), None);
        let tail = store.create("db.1").unwrap();
        tail.write_at(4, b"tail").unwrap();
        let other = ShmTails::open(&base.path().join("tails")).unwrap();
        assert_eq!(other.boot_id(), store.boot_id());
        assert_eq!(other.load("db.1").unwrap().unwrap(), b"\0\0\0\0tail");
        drop(store.create("db.1").unwrap());
        assert_eq!(other.load("db.1").unwrap().unwrap(), b"");
        store.remove("db.1").unwrap();
        store.remove("db.1").unwrap();
        assert_eq!(other.load("db.1").unwrap(), None);
    }

    #[test]
    fn nobody_else_may_enter_the_directory() {
        let (base, store) = store();
        drop(store.create("a").unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&base.path().join("tails")), 0o700);
        assert_eq!(mode(&base.path().join("tails/a")), 0o600);
        fs::set_permissions(base.path().join("tails"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let error = ShmTails::open(&base.path().join("tails")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }

    #[test]
    fn keys_cannot_leave_the_directory() {
        let (_base, store) = store();
        for key in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\0", &"x".repeat(129)] {
            assert_eq!(store.load(key).unwrap_err().kind(), ErrorKind::InvalidArgument, "{key:?}");
        }
    }

    #[test]
    fn links_are_not_followed() {
        let (base, store) = store();
        std::os::unix::fs::symlink("/etc/hostname", base.path().join("tails/link")).unwrap();
        assert!(store.load("link").is_err());
        assert!(store.create("link").is_err());
    }
}
