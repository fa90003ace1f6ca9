//! Bad input for the daemon: `tests/corpus/` keeps it, with what must come of each.

mod config;
mod grpc;

use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}
