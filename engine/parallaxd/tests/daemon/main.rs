//! The real daemon, as a process, on a pool in a temporary file.

mod content;
mod life;
mod network;
mod registry;
mod restart;
mod world;
