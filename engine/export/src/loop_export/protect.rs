//! What a process must do before it serves a disk to its own machine.
//!
//! When memory is short, the kernel frees it by writing dirty pages to disks. If that disk is served by this
//! process and this process waits for the same memory, nothing moves. Two settings break the circle:
//! * `PR_SET_IO_FLUSHER`: allocations on behalf of this process never start or wait for I/O. Needs
//!   CAP_SYS_RESOURCE. It is a property of a thread and is inherited by the threads it starts.
//! * Locked memory: code and data are never evicted, so serving a request never waits for a disk.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::configure_io_flusher_behavior,
};

/// What could be had of the two protections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// Allocations never wait for I/O.
    pub io_flusher: bool,
    /// Pages stay in memory once they were touched.
    pub memory_locked: bool,
}

/// Protects this process as far as it is permitted to, and warns of what is missing.
///
/// Call it first thing in `main`: only threads started afterwards inherit the first protection.
pub fn protect_process() -> Protection {
    let io_flusher = match configure_io_flusher_behavior(true) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                %error,
                "PR_SET_IO_FLUSHER was refused: a machine short of memory may stall while it writes to volumes of \
                 this daemon; give the container CAP_SYS_RESOURCE"
            );
            false
        }
    };
    // On fault: locking every page of every reserved stack at once would cost far more than is ever touched.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let memory_locked = match mlockall(flags) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                %error,
                "memory cannot be locked: a machine short of memory may stall while it writes to volumes of this \
                 daemon; give the container CAP_IPC_LOCK"
            );
            false
        }
    };
    Protection { io_flusher, memory_locked }
}
