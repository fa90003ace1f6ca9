//! One error type for the whole engine.
//!
//! ```text
//! Error
//!  |-- kind     small, stable, what callers match on
//!  |-- message  what happened and what a person can do about it
//!  |-- context  frames added on the way up, outermost last
//!  +-- source   the error underneath, if there was one
//! ```

use std::fmt;

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What callers match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is out of range or malformed; nothing was done.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken by something else.
    AlreadyExists,
    /// The pool, or a bounded part of it, has no room for this request.
    OutOfSpace,
    /// Bytes on the device contradict their checksum, address or owner.
    Corrupt,
    /// The device reported a failure.
    Io,
    /// The thing is in use, or an operation on it is under way.
    Busy,
    /// Writing was asked of something read-only.
    ReadOnly,
    /// The epoch of this VDI has ended: I/O fails until it is opened again.
    Fenced,
    /// The format or a feature is not known to this version.
    Incompatible,
    /// The operation cannot be done in the present state.
    FailedPrecondition,
    /// This device or build does not offer the operation.
    Unsupported,
    /// A bound on memory, queues or connections was reached; try later.
    Exhausted,
    /// The operation was given up before it was begun.
    Cancelled,
}

impl ErrorKind {
    /// The errno that a kernel-facing export returns for this kind.
    pub fn errno(self) -> i32 {
        match self {
            Self::InvalidArgument => libc::EINVAL,
            Self::NotFound => libc::ENOENT,
            Self::AlreadyExists => libc::EEXIST,
            Self::OutOfSpace => libc::ENOSPC,
            Self::ReadOnly => libc::EROFS,
            Self::Busy | Self::Exhausted => libc::EBUSY,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::Cancelled => libc::ECANCELED,
            Self::Corrupt | Self::Io | Self::Fenced | Self::Incompatible | Self::FailedPrecondition => {
                libc::EIO
            }
        }
    }
}

/// An engine error: see the module for its shape.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<String>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says what happened.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), context: Vec::new(), source: None }))
    }

    /// Attaches the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(std::sync::Arc::new(source));
        self
    }

    /// Adds a frame: what was being done when this error passed by.
    #[must_use]
    pub fn context(mut self, frame: impl Into<String>) -> Self {
        self.0.context.push(frame.into());
        self
    }

    /// What callers match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message without its frames.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Shorthand for [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// Shorthand for [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for frame in self.0.context.iter().rev() {
            write!(f, "{frame}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::OutOfSpace,
            Some(libc::ENOENT) => ErrorKind::NotFound,
            Some(libc::EEXIST) => ErrorKind::AlreadyExists,
            Some(libc::EBUSY | libc::EAGAIN) => ErrorKind::Busy,
            Some(libc::EROFS) => ErrorKind::ReadOnly,
            Some(libc::EINVAL) => ErrorKind::InvalidArgument,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self::new(kind, "the operating system refused").with_source(source)
    }
}

/// Adds frames to results.
pub trait ResultExt<T> {
    /// Says what was being done, evaluated only when it failed.
    fn context<C: Into<String>>(self, frame: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn context<C: Into<String>>(self, frame: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(frame()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_from_the_outside_in() {
        let error = Error::corrupt("bad checksum").context("radix node 3:17").context("volume db");
        assert_eq!(error.to_string(), "volume db: radix node 3:17: bad checksum");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_full_filesystem_is_out_of_space() {
        let error = Error::from(std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        assert_eq!(error.kind().errno(), libc::ENOSPC);
    }
}
