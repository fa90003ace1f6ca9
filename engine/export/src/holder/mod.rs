//! The holder: a second, tiny process that keeps a daemon's block devices alive while there is no daemon.
//!
//! The kernel fails all I/O of a FUSE connection when its last descriptor closes. A daemon therefore deposits
//! descriptors of the connection here. When it dies, however it dies, requests wait in the kernel; the next daemon
//! asks for the descriptors and goes on. The holder understands nothing of what it keeps.
//!
//! ```text
//! daemon                                  holder
//!   connect        ------------------->     one daemon at a time; a second is told Busy and tries again
//!   Take           ------------------->     Kept + descriptors, or Nothing
//!   Put + descriptors ---------------->     replaces what was kept                       Done
//!   Serving        ------------------->     the clock stops                              Done
//!   Forget         ------------------->     closes what was kept                         Done
//!   (end of the connection)                 the clock runs; when it is over: ends the FUSE connection
//! ```
//!
//! Invariants:
//! * A daemon is gone when its socket is: the kernel closes it after the last of its threads that could read a request
//!   has ended. So nobody reads requests that the next daemon does not get to see.
//! * The clock runs from the death of a daemon to the word of the next that it serves, whatever happens between:
//!   nothing waits for ever for a daemon that does not come back.
//! * It holds neither the pool's device nor a lock of any daemon, serves no request, and depends on no volume.

mod client;
mod server;
mod wire;

pub use client::{Depositor, release};
pub use server::{Holder, HolderOptions};

use std::os::fd::OwnedFd;

/// What a daemon deposits.
#[derive(Debug)]
pub struct Deposit {
    /// Number of the FUSE connection in `/sys/fs/fuse/connections`.
    pub connection: u32,
    /// The opened `/dev/fuse`.
    pub device: OwnedFd,
    /// Root of the mount.
    pub root: OwnedFd,
    /// A file in memory that says what the next daemon has to know.
    pub state: OwnedFd,
}

#[cfg(test)]
mod tests;
