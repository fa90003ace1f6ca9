//! Serves any block device to the kernel or to a virtual machine.
#![forbid(unsafe_code)]
pub mod holder;
pub mod nbd;

pub mod loop_export;
