//! The configuration file.

use crate::folder;
use parallax_fuzz::{Bound, Outcome, Seed, Target, explore, replay};
use parallaxd::config::Config;
use std::time::Duration;

/// What the configuration's own tests read, too.
const EVERYTHING: &str = include_str!("../../src/config/everything.yaml");

#[test]
fn configuration() {
    // From a file, as the daemon reads it.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("parallaxd.yaml");
    let shown = format!("{}: ", path.display());
    let target = Target {
        name: "yaml",
        folder: folder(),
        seeds: vec![
            Seed::new("everything", EVERYTHING.into()),
            Seed::new("least", "pool:\n  path: /dev/sdb\n".into()),
        ],
        seal: None,
        moves: true,
        // A file may be 1 MiB; its tree is a few times as much.
        bound: Bound { memory: 64 << 20, time: Duration::from_secs(30) },
        cases: 500,
        run: Box::new(|bytes| {
            std::fs::write(&path, bytes).unwrap();
            match Config::load(&path) {
                Ok(config) => {
                    assert!(config.pool.path.is_absolute() && config.socket.is_absolute());
                    Outcome::Accepted
                }
                Err(error) => {
                    let words = error.to_string();
                    let words = words.strip_prefix(&shown).unwrap_or(&words);
                    Outcome::Refused(words.replace(&*path.to_string_lossy(), "FILE"))
                }
            }
        }),
    };
    replay(&target);
    explore(&target);
}
