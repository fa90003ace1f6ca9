//! Where things are: the repository, the cache of what was built, the state of what runs.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Directories that every verb works in.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Root of the repository.
    pub(crate) repo: PathBuf,
    /// Built programs and base images, by version; survives everything. `PARALLAX_CACHE`.
    pub(crate) cache: PathBuf,
    /// Logs, certificates and data of what runs now; removed by `cluster down`. `PARALLAX_STATE`.
    pub(crate) state: PathBuf,
}

impl World {
    /// Finds the directories and creates those outside the repository.
    pub(crate) fn discover() -> Result<Self> {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("the xtask crate has left e2e/xtask")?
            .to_path_buf();
        let cache = match env::var_os("PARALLAX_CACHE") {
            Some(path) => PathBuf::from(path),
            None => {
                let home = env::var_os("HOME").context("HOME is not set; set it or PARALLAX_CACHE")?;
                PathBuf::from(home).join(".cache/parallax")
            }
        };
        let state = env::var_os("PARALLAX_STATE")
            .map_or_else(|| PathBuf::from("/var/lib/parallax-dev"), PathBuf::from);
        std::fs::create_dir_all(&cache).with_context(|| format!("creating the cache {}", cache.display()))?;
        Ok(Self { repo, cache, state })
    }

    /// Where cargo puts what it builds for this repository.
    pub(crate) fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.repo.join("target"), PathBuf::from)
    }
}
