//! What the workers do to a filesystem, and what may be left of it.
//!
//! Everything follows from a seed: the program that verifies knows every operation without being told. It is told only
//! how many promises each worker has seen kept. A promise is the return of fsync, fdatasync, syncfs or of a write with
//! O_DSYNC; a worker does nothing more until the promise is recorded.
//!
//! * `file`: one file: what it must hold, what it may hold.
//! * `model`: files and directories of one worker.
//! * `script`: its operations.
//! * `act`: does them.
//! * `verify`: compares what was found with the model.

mod act;
mod file;
mod model;
mod script;
mod verify;

pub(crate) use act::run;
pub(crate) use verify::verify;

/// Name of a worker's own directory.
pub(crate) fn folder(worker: u32) -> String {
    format!("worker-{worker}")
}

/// What a load is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Operations of each worker.
    pub(crate) operations: u64,
}

/// Promises of one worker, of its first so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Kept for sure.
    pub(crate) surely: u64,
    /// None beyond these was kept; as many, unless the moment is not known exactly.
    pub(crate) perhaps: u64,
}
