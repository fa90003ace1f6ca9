//! Real devices, and the threads that drive them.
//!
//! * [`Reactor`]: a named thread that is an executor and owns one io_uring. Tasks on it do I/O without a lock, a
//!   hand-over or a system call of their own.
//! * [`open_device`]: a file or a block device, claimed for this process, with direct I/O.
//! * [`Listener`] and [`Stream`]: Unix sockets on the same ring, for exports.
//! * [`ShmTails`]: memory that outlives the process. [`RamDevice`]: a disk that does not.
//! * [`loop_control`]: the kernel's loop driver. [`ApartThread`]: a thread that may wait for its own process.
//!
//! Where io_uring is forbidden, the same types work through threads and poll(2): see [`IoMode`].
//!
//! `unsafe` is in four files: `reactor/ring.rs`, which lends memory to the kernel, `ioctl.rs`, `loop_control.rs` and
//! `apart.rs`.

#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "a thread's descriptor table has no safe binding")]
mod apart;
mod blocking;
mod disk;
#[expect(unsafe_code, reason = "an ioctl has no safe binding")]
mod ioctl;
#[expect(unsafe_code, reason = "the loop driver's ioctls have no safe binding")]
pub mod loop_control;
mod net;
mod open;
mod operation;
mod ram;
mod reactor;
mod tails;
mod workers;

pub use apart::ApartThread;
pub use disk::Disk;
pub use net::{Listener, Stream};
pub use open::{OpenOptions, open_device, open_disk};
pub use operation::SendPart;
pub use ram::RamDevice;
pub use reactor::{IoMode, Join, Reactor, ReactorHandle, ReactorOptions};
pub use tails::ShmTails;
