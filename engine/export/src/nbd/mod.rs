//! A userspace NBD server on a Unix socket.

use parallax_block::{BlockDevice, Error, ErrorKind, Result};
use parallax_device::ReactorHandle;
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A device offered under a name.
#[derive(Clone)]
pub struct NbdExport {
    /// Name that clients ask for; the empty name is the default export.
    pub name: String,
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
    /// Refuses writing, whatever the device would do.
    pub read_only: bool,
    /// Text for people, shown by clients that list exports.
    pub description: String,
}

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at one time; further ones are closed at once.
    pub connections_max: usize,
    /// Requests in flight on one connection.
    pub requests_max: usize,
    /// Bytes of requests in flight on one connection.
    pub bytes_max: usize,
    /// Bytes of one request; at most 32 MiB.
    pub request_bytes_max: u32,
    /// Time that a client has to finish its handshake.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16,
            requests_max: 128,
            bytes_max: 64 << 20,
            request_bytes_max: 32 << 20,
            handshake: Duration::from_secs(10),
        }
    }
}

/// Starts servers.
pub struct NbdServer;

impl NbdServer {
    /// Listens on `socket`; connections are spread over the reactors.
    pub fn start(
        _reactors: &[ReactorHandle],
        _socket: &Path,
        _exports: Vec<NbdExport>,
        _limits: Limits,
    ) -> Result<NbdServerHandle> {
        Err(Error::new(ErrorKind::Unsupported, "the NBD server is not built into this version"))
    }
}

/// Control handle of a running server; cheap to clone.
#[derive(Clone)]
pub struct NbdServerHandle(Infallible);

impl NbdServerHandle {
    /// Offers another export. `AlreadyExists` if the name is taken.
    pub fn add_export(&self, _export: NbdExport) -> Result<()> {
        match self.0 {}
    }

    /// Stops offering an export: closes its connections after what they have in flight, and waits for that.
    pub async fn remove_export(&self, _name: &str) -> Result<()> {
        match self.0 {}
    }

    /// Number of clients that are using the named export.
    pub fn connections(&self, _name: &str) -> usize {
        match self.0 {}
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        match self.0 {}
    }

    /// Stops listening, lets requests in flight finish, closes every connection, removes the socket.
    pub async fn shutdown(&self) {
        match self.0 {}
    }
}
