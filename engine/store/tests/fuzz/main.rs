//! Whole pools with damaged metadata whose checksums match: `tests/corpus/` keeps them, with what must come of each.
//!
//! The seeds are two images of one small pool, closed in order and killed. An input changes bytes of one, and `seal`
//! makes every checksum match again that depends on them, up to the root. Then the pool is checked, opened, read,
//! written, collected, closed and repaired. What it shows may be wrong, for whoever can forge a checksum can forge data;
//! but nothing may panic, go on for ever, or take memory by what a forged number says.

mod image;
mod life;
mod reseal;

use parallax_fuzz::{Bound, Seed, Target, explore, replay};
use std::{path::PathBuf, time::Duration};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn seed(name: &'static str) -> Seed {
    let path = folder().join(format!("{name}.image"));
    if std::env::var_os("FUZZ").is_some_and(|value| value == "images") {
        std::fs::write(&path, image::render(&life::aged(name == "closed"))).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let bytes = image::parse(&text);
    let focus = image::focus(&bytes);
    Seed { name, bytes, focus }
}

#[test]
fn pools_with_forged_metadata() {
    let target = Target {
        name: "pool",
        folder: folder(),
        seeds: vec![seed("closed"), seed("killed")],
        seal: Some(Box::new(reseal::reseal)),
        // A few copies of 8 MiB, and what the store may keep in memory.
        bound: Bound { memory: 128 << 20, time: Duration::from_secs(120) },
        cases: 40,
        moves: false,
        run: Box::new(life::lived),
    };
    replay(&target);
    explore(&target);
}
