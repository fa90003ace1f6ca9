//! Small memory areas that outlive the process, not the node.
//!
//! A record that was acknowledged but is not yet on the device lives in a tail, so that the next process on
//! this boot finds it. A tail of another boot means nothing: its memory is gone.

use crate::Result;

/// Where tails live. Keys are 1 to 128 of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.`, and do not start with a dot.
pub trait TailStore: Send + Sync {
    /// Identity of this boot; tails of another boot are not opened.
    fn boot_id(&self) -> u128;
    /// Whole content of the named tail, or `None` if there is none.
    fn load(&self, key: &str) -> Result<Option<Vec<u8>>>;
    /// Creates or truncates.
    fn create(&self, key: &str) -> Result<Box<dyn Tail>>;
    /// Removes; succeeds if there is none.
    fn remove(&self, key: &str) -> Result<()>;
}

/// One tail.
pub trait Tail: Send + Sync {
    /// Writes at `offset`; visible to the next process as soon as it returns.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;
}
