//! Commands, by what they are about. Each takes a session and shows its result.

pub(crate) mod check;
pub(crate) mod device;
pub(crate) mod evict;
pub(crate) mod export;
pub(crate) mod gc;
pub(crate) mod import;
pub(crate) mod pool;
pub(crate) mod scrub;
pub(crate) mod shell;
pub(crate) mod snapshots;
pub(crate) mod tree;
pub(crate) mod volumes;
