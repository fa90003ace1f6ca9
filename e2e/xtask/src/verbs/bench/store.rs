//! What needs no NBD: `parallax bench` in a process of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Plan;
use super::progress::Progress;
use parallax_e2e::process;

/// For `--only`.
pub(super) const NAME: &str = "store";

/// The report, as `parallax bench --json` prints it.
pub(super) fn measure(parallax: &Path, folder: &Path, plan: Plan, progress: &mut Progress) -> Result<Value> {
    progress.says("the store without NBD");
    let mut command = process::command(parallax);
    command.args(["--json", "bench", "--directory"]).arg(folder);
    command.arg("--size").arg(plan.image_bytes.to_string());
    command.arg("--seconds").arg(plan.turn.as_secs_f64().to_string());
    command.arg("--repeats").arg(plan.turns.to_string());
    command.arg("--snapshots").arg(plan.opening.to_string());
    let text = process::output(&mut command, Duration::from_secs(900))?;
    serde_json::from_str(&text).context("reading the report of parallax bench")
}
