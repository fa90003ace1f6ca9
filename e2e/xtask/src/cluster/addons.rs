//! What a cluster that takes snapshots has beside Kubernetes: the snapshot API and its controller.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::kubectl;
use crate::world::World;
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::say;

/// Where the published module with the API's definitions is unpacked by Go.
fn module(name: &str) -> Result<PathBuf> {
    let folder = process::output(process::command("go").args(["env", "GOMODCACHE"]), COMMAND)?;
    let path = PathBuf::from(folder.trim()).join("github.com/kubernetes-csi/external-snapshotter").join(name);
    if path.is_dir() {
        return Ok(path);
    }
    let wanted = format!("github.com/kubernetes-csi/external-snapshotter/{name}");
    process::output(
        process::command("go").args(["mod", "download", &wanted]).current_dir("/"),
        process::BUILD,
    )?;
    Ok(path)
}

/// Applies the definitions, the controller's rights and the controller.
pub(crate) fn install(world: &World) -> Result<()> {
    say::step("installing the snapshot API and its controller", || {
        let crds = module("client/v8@v8.6.0")?.join("config/crd");
        apply(world, &["-k".into(), crds.to_string_lossy().into_owned()])?;
        let controller = module("v8@v8.6.0")?.join("deploy/kubernetes/snapshot-controller");
        apply(
            world,
            &["-f".into(), controller.join("rbac-snapshot-controller.yaml").to_string_lossy().into()],
        )?;
        apply(
            world,
            &["-f".into(), world.repo.join("e2e/cluster/snapshot-controller.yaml").to_string_lossy().into()],
        )
        .context("installing the snapshot controller")
    })
}

fn apply(world: &World, what: &[String]) -> Result<()> {
    let mut arguments = vec!["apply", "--server-side", "--force-conflicts"];
    arguments.extend(what.iter().map(String::as_str));
    process::output(&mut kubectl(world, &arguments), COMMAND).map(drop)
}
