//! A daemon that ends while its block devices are in use: with a holder their users notice a pause, and nothing else.
//!
//! Needs root, /dev/fuse, the loop driver and Linux 6.9; without them the tests say so and pass.

mod bed;
mod end;
mod meanwhile;
mod parent;
mod pause;
