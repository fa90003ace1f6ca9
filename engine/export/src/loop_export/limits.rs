//! Bounds, and the gate that keeps them.
//!
//! The kernel bounds each loop device by itself (`queue_depth` requests of `request_bytes_max`), so one device
//! that hangs cannot take the gate from the others until several hang together. The gate bounds the sum.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// Bounds of the loop export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight for each loop device; the kernel keeps at least 4 and at most 128.
    pub queue_depth: u32,
    /// Bytes of the largest request of a loop device.
    pub request_bytes_max: u32,
    /// Bytes that all requests in flight may hold together. At least one request is always let in.
    pub memory_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue_depth: 128, request_bytes_max: 512 << 10, memory_bytes_max: 256 << 20 }
    }
}

/// Counts bytes of requests in flight and makes the threads that read requests wait.
pub(super) struct Gate {
    bytes_max: u64,
    held: Mutex<u64>,
    freed: Condvar,
}

impl Gate {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: Mutex::new(0), freed: Condvar::new() })
    }

    /// Waits until `bytes` more fit, or nothing else is held.
    pub(super) fn enter(self: &Arc<Self>, bytes: u64) -> Permit {
        let mut held = self.held.lock();
        while *held != 0 && *held + bytes > self.bytes_max {
            self.freed.wait(&mut held);
        }
        *held += bytes;
        Permit { gate: Arc::clone(self), bytes }
    }
}

/// Bytes that one request holds; given back on drop.
pub(super) struct Permit {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.gate.held.lock() -= self.bytes;
        self.gate.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread, time::Duration};

    #[test]
    fn a_request_larger_than_the_gate_passes_alone() {
        let gate = Gate::new(100);
        drop(gate.enter(1000));
        assert_eq!(*gate.held.lock(), 0);
    }

    #[test]
    fn a_full_gate_makes_the_next_request_wait_until_one_leaves() {
        let gate = Gate::new(100);
        let first = gate.enter(80);
        let (entered, entering) = mpsc::channel();
        let other = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                let permit = gate.enter(30);
                entered.send(()).unwrap();
                drop(permit);
            }
        });
        assert!(entering.recv_timeout(Duration::from_millis(100)).is_err());
        drop(first);
        entering.recv_timeout(Duration::from_secs(10)).unwrap();
        other.join().unwrap();
    }
}
