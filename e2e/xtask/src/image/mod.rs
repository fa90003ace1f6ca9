//! Container images without a registry.
//!
//! An image is a Debian root made by mmdebstrap (or nothing at all) with one layer of our own above it, written
//! as an archive that `ctr images import`, `docker load` and `buildah pull docker-archive:` all read. Images
//! that only stand for an upstream one carry its exact name, so that charts and tests use their own defaults.

mod archive;
mod catalog;
mod given;
pub(crate) mod root;

use std::path::{Path, PathBuf};

pub(crate) use catalog::{PAUSE, for_node, for_stories, for_suite, postgres, project};
pub(crate) use given::given;

/// An image that was built: an archive in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    names: Vec<String>,
    /// The name that the archive has inside, where it is none of `names`.
    origin: Option<String>,
    digest: String,
    archive: PathBuf,
}

impl Image {
    /// Full references, at least one.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The name that the archive has inside, where it is none of `names`.
    pub(crate) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Changes whenever the content or a name does.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Path of the archive.
    pub(crate) fn archive(&self) -> &Path {
        &self.archive
    }
}
