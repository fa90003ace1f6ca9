//! The medium under the pool: a disk in memory that remembers every request, and what a power cut leaves of it.
//!
//! * `image`: bytes, cheap to copy.
//! * `history`: what was asked of a disk, in order, and the memory of the machine beside it.
//! * `recorder`: the disk that is asked, and writes that history.
//! * `player`: goes through a history and cuts it off at a place.
//! * `file`: a history as a file, to look at a failure again.

pub(crate) mod file;
pub(crate) mod history;
mod image;
pub(crate) mod player;
pub(crate) mod recorder;
pub(crate) mod tails;

pub(crate) use image::Image;
