//! `manifests`: renders the chart with its default values, for those who apply files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::build::{HELM, KUBERNETES};
use crate::cluster::NAMESPACE;
use crate::world::World;
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when a file differs from what the chart renders.
    #[arg(long)]
    pub(crate) check: bool,
}

const HEADER: &str = "\
# Rendered from charts/parallax by `cargo xtask manifests`; edit the chart instead.
";

/// Renders, or with `--check` compares.
pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    HELM.ensure(world)?;
    let mut stale = Vec::new();
    for (name, text) in render(world)? {
        let path = world.repo.join("manifests").join(name);
        if fs::read_to_string(&path).ok().as_deref() == Some(&text) {
            continue;
        }
        if args.check {
            stale.push(path);
        } else {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("{} {}", say::good("wrote"), path.display());
        }
    }
    if !stale.is_empty() {
        let list: Vec<String> = stale.iter().map(|path: &PathBuf| path.display().to_string()).collect();
        bail!("stale: {}; run: cargo xtask manifests", list.join(", "));
    }
    Ok(())
}

/// Files of `manifests/` and their text.
fn render(world: &World) -> Result<Vec<(&'static str, String)>> {
    let template = || {
        let mut command = crate::cluster::helm(world, &["template", "parallax"]);
        let chart = world.repo.join("charts/parallax");
        command.arg(&chart).args(["--namespace", NAMESPACE, "--skip-tests"]);
        // Certificates would differ at every run; whoever applies files brings their own.
        command.arg("--values").arg(chart.join("ci/device-values.yaml"));
        command.args(["--kube-version", KUBERNETES.version]);
        process::output(&mut command, COMMAND)
    };
    let namespace = format!(
        "{HEADER}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    \
         pod-security.kubernetes.io/enforce: privileged\n"
    );
    Ok(vec![("namespace.yaml", namespace), ("parallax.yaml", format!("{HEADER}{}", template()?))])
}
