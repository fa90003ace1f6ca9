//! The loop export on the real kernel: filesystems, verified I/O, discard, flush, growth, errors, memory pressure.
//!
//! Needs root, /dev/fuse and /dev/loop-control; without the two devices the tests say so and pass.

mod filesystem;
mod pressure;
mod raw;
mod watch;
mod world;
