//! Brings Parallax into the development cluster: its image, its chart.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Layout, NAMESPACE, addons, helm, up};
use crate::build::{self, Profile};
use crate::image::{self, Image};
use crate::world::World;
use parallax_e2e::process;
use parallax_e2e::say;

/// Size of the development pool's file. Sparse: it takes what is written.
const POOL_SIZE: &str = "40GiB";

/// Builds, imports and installs; an unchanged installation is left alone.
pub(crate) fn run(world: &World, profile: Profile) -> Result<()> {
    addons::install(world)?;
    let image = project(world, profile)?;
    up::import(world, std::slice::from_ref(&image))?;
    let reference = &image.names()[0];
    let (repository, tag) = reference.rsplit_once(':').context("an image name without a tag")?;
    let values = json!({
        "image": {"registry": "", "repository": repository, "tag": tag, "pullPolicy": "Never"},
        "controller": {"replicas": 1},
        "pool": {"path": "/var/lib/parallax/pool.img", "create": {"enabled": true, "size": POOL_SIZE}},
    });
    let file = Layout::of(world).at("values.json");
    fs::write(&file, values.to_string()).context("writing the chart's values")?;
    forget_interrupted(world)?;
    say::step("installing the chart", || {
        let mut command = helm(world, &["upgrade", "--install", "parallax"]);
        command.arg(world.repo.join("charts/parallax")).arg("--values").arg(&file);
        command.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"]);
        process::output(&mut command, Duration::from_secs(240)).map(drop)
    })
}

/// The project's image: built from this tree, or taken from the archive `PARALLAX_IMAGE`.
fn project(world: &World, profile: Profile) -> Result<Image> {
    match std::env::var_os("PARALLAX_IMAGE") {
        Some(archive) => image::given(Path::new(&archive)),
        None => image::project(world, &build::project_binaries(world, profile)?),
    }
}

/// Helm refuses to touch a release whose last operation was killed; nothing of it is worth keeping here.
fn forget_interrupted(world: &World) -> Result<()> {
    let mut status = helm(world, &["status", "parallax", "-n", NAMESPACE, "-o", "json"]);
    let Ok(text) = process::output(&mut status, process::COMMAND) else { return Ok(()) };
    let release: serde_json::Value = serde_json::from_str(&text).context("reading helm's answer")?;
    if release["info"]["status"].as_str().is_some_and(|status| status.starts_with("pending")) {
        let mut uninstall = helm(world, &["uninstall", "parallax", "-n", NAMESPACE, "--no-hooks"]);
        process::output(&mut uninstall, process::COMMAND)?;
    }
    Ok(())
}
