//! A userspace NBD server on a Unix socket.
//!
//! ```text
//! NbdServerHandle (control)            one for a server: exports come and go, connections end, shutdown
//!        |
//!     registry  ---- Seat ----+
//!        |                    |
//!   accept loop  ->  connection (queue): handshake -> requests -> device -> replies, all on one reactor
//! ```
//!
//! Control and queues are different objects on purpose. The control handle may be used from any thread and never
//! touches data. A queue belongs to one reactor and asks nobody for anything but its device. Every way of serving
//! a device has the same two halves: a kernel NBD device is one control handle that gives its sockets to queues
//! like these, and a ublk device is one control handle with a queue per hardware queue.
//!
//! Invariants:
//! * What a client sends is checked before it is used; bytes that are no protocol close that connection only.
//! * Connections, requests in flight, and bytes in flight are bounded.
//! * A flush covers the completed writes of all connections, since all of them go to one device.
//!
//! The socket is for its owner (0600); there is no TLS, which would protect nothing here.

mod flow;
mod handshake;
mod input;
mod option;
mod pool;
mod queue;
mod registry;
mod request;
mod server;
mod socket;
mod wire;

pub use server::{NbdServer, NbdServerHandle};

use parallax_block::BlockDevice;
use std::{sync::Arc, time::Duration};

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
