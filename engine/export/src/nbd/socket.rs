//! The socket file: made with mode 0600, in a directory that nobody else can change.

use parallax_block::{Error, ErrorKind, Result, ResultExt};
use rustix::{
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 64;

/// Binds and listens. A socket that nobody listens on any more is replaced.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    let listening = || format!("listening on {}", path.display());
    check_directory(path).context(listening)?;
    remove_stale(path).context(listening)?;
    bind(path).map_err(io::Error::from).context(listening)
}

fn bind(path: &Path) -> rustix::io::Result<UnixListener> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Before the bind: the file takes the mode of the socket, so it is never open to others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    match rustix::net::listen(&socket, BACKLOG) {
        Ok(()) => Ok(UnixListener::from(socket)),
        Err(errno) => {
            // The error says more than a failure to tidy up.
            let _ = fs::remove_file(path);
            Err(errno)
        }
    }
}

fn check_directory(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let found = fs::metadata(directory).context(|| directory.display().to_string())?;
    let user = rustix::process::geteuid().as_raw();
    let owned = found.uid() == user || found.uid() == 0;
    let (others_write, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
    if !found.is_dir() || !owned || (others_write && !sticky) {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("{} must be a directory that only its owner can change", directory.display()),
        ));
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "there is a file of that name, and it is no socket",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::new(ErrorKind::Busy, "another server listens there")),
        Err(error) if error.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()) => {
            fs::remove_file(path).context(|| "removing a socket that nobody listens on")
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_for_its_owner_only_and_replaces_a_stale_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::Busy);
        drop(first);
        drop(listen(&path).unwrap());
    }

    #[test]
    fn files_are_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = listen(&directory.path().join("nbd")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }
}
