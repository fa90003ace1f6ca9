//! Names of exports.

use parallax_block::{Error, Result};
use std::fmt;

/// Names one export on this node: a volume's UUID, or `<uuid>@<number>` for a snapshot.
///
/// Only `a-z`, `0-9`, `-` and `@`, 1 to 120 bytes: it is a file name, and it appears in sysfs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportKey(String);

impl ExportKey {
    /// Longest key, in bytes.
    pub const LENGTH_MAX: usize = 120;

    /// A key; fails if `text` has other characters or a wrong length.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'@');
        if text.is_empty() || text.len() > Self::LENGTH_MAX || !text.bytes().all(known) {
            return Err(Error::invalid(format!(
                "export key {text:?} must be 1 to {} characters out of a-z, 0-9, '-' and '@'",
                Self::LENGTH_MAX
            )));
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_a_path() {
        for bad in ["", ".", "..", "a/b", "A", "a b", "a\n", &"x".repeat(121)] {
            assert!(ExportKey::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "3f0c-1", "3f0c@17"] {
            assert_eq!(ExportKey::new(good).unwrap().as_str(), good);
        }
    }
}
