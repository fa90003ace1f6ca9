//! Kubernetes' own storage suite (`External.Storage`) against the development cluster.
//!
//! Two of the images that it asks for cannot be made from their sources here; they are used for their shell alone
//! and stand as busybox under their names (see `image::for_suite`).

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use parallax_e2e::process;
use parallax_e2e::say;

use super::sanity::summary;
use super::stories::ready;
use crate::build::{KUBERNETES, KUBERNETES_E2E, Profile};
use crate::cluster::{Layout, up};
use crate::image;
use crate::world::World;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which tests.
    #[arg(value_enum, default_value = "quick")]
    tier: Tier,
    /// Only the tests of the tier's speed whose name matches this expression.
    #[arg(long)]
    focus: Option<String>,
    /// Tests at once.
    #[arg(long, default_value_t = 4)]
    procs: u32,
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tier {
    /// Provisioning, volumes, volume modes, snapshots, expansion, several volumes, fsGroup, subPath.
    Quick,
    /// Everything that one node can run, the slow tests too.
    Full,
}

const QUICK: &str = r"External.Storage.*\] (\[Slow\] )?(provisioning|volumes|volumeMode|snapshottable|volume-expand|multiVolume|fsgroupchangepolicy|subPath)( |$)";
const FULL: &str = r"External.Storage";
/// Not for this cluster, whichever tier: other systems, other kernels, features that we do not claim.
const NEVER: &[&str] = &[
    r"\[Feature:Windows\]",
    "ntfs",
    // Restart kubelet through a shell on the node.
    r"\[Disruptive\]",
    // The node has no SELinux.
    "SELinux",
    // Not offered yet.
    "volumegroupsnapshot",
    "snapshotmetadata",
    "VolumeAttributesClass",
];
/// Growing a mounted ext4 asks for a right that some machines withhold even from root. There, and only there, this
/// is left out; xfs shows the same in the full tier.
const GROWS_MOUNTED_EXT4: &str =
    r"\((default fs|ext4)\).*volume-expand should resize volume when PVC is edited while pod is using it";
/// Number of that right, CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;
/// Left out of the quick tier.
const SLOW: &[&str] = &[r"\[Serial\]", r"\[Slow\]"];

/// The full tier takes hours on a small machine.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    KUBERNETES_E2E.ensure(world)?;
    let kube = ready(world, args.profile)?;
    up::import(world, &image::for_suite(world)?)?;

    let (focus, mut skip) = match args.tier {
        Tier::Quick => (QUICK, [NEVER, SLOW].concat()),
        Tier::Full => (FULL, NEVER.to_vec()),
    };
    if !may(SYS_RESOURCE)? {
        say::note("left out, for want of CAP_SYS_RESOURCE on this machine: growing a mounted ext4");
        skip.push(GROWS_MOUNTED_EXT4);
    }
    let report = Layout::of(world).at("suite");
    fs::create_dir_all(&report).with_context(|| format!("creating {}", report.display()))?;
    let log = report.join("suite.log");
    fs::remove_file(&log).ok();

    let mut command = process::command(KUBERNETES_E2E.program(world, "ginkgo"));
    command.current_dir(&report);
    command.arg(format!("--procs={}", args.procs)).args(["--no-color", "--timeout=4h", "--silence-skips"]);
    // Several expressions of ginkgo are alternatives, and a name says each thing once: the caller's replaces the tier's.
    let focus = args.focus.as_ref().map_or_else(|| focus.to_owned(), |also| format!("{FULL}.*{also}"));
    command.arg(format!("--focus={focus}")).arg(format!("--skip={}", skip.join("|")));
    command.arg(KUBERNETES_E2E.program(world, "e2e.test")).arg("--");
    command.arg(format!("--kubeconfig={}", kube.kubeconfig().display()));
    command.arg(format!("--kubectl-path={}", KUBERNETES.program(world, "kubectl").display()));
    command.arg(format!("--storage.testdriver={}", world.repo.join("e2e/cluster/testdriver.yaml").display()));
    command
        .arg(format!("--report-dir={}", report.display()))
        .args(["--provider=local", "--allowed-not-ready-nodes=0"]);

    println!("log {}", log.display());
    let outcome = say::step("Kubernetes' storage suite", || process::logged(&mut command, &log, LIMIT));
    let text = fs::read_to_string(&log).context("reading the suite's log")?;
    let Some(count) = summary(&text) else {
        outcome?;
        bail!("the suite gave no summary; log {}", log.display());
    };
    let mut failed: Vec<&str> =
        text.lines().map(str::trim).filter(|line| line.starts_with("[FAIL]")).collect();
    failed.sort_unstable();
    failed.dedup();
    for line in failed {
        println!("  {}", say::bad(line));
    }
    for (reason, times) in skipped(&fs::read_to_string(report.join("junit_01.xml")).unwrap_or_default()) {
        say::note(format!("{times} left out by the suite itself: {reason}"));
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    if count.passed + count.failed == 0 {
        bail!("no test has such a name; log {}", log.display());
    }
    if count.failed > 0 || outcome.is_err() {
        bail!("the suite failed; log {}", log.display());
    }
    Ok(())
}

/// Reasons for which the suite began a test and left it, with their number, from its report.
fn skipped(report: &str) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for rest in report.split("<skipped message=\"skipped - ").skip(1) {
        let reason = rest.split('"').next().unwrap_or_default().replace("&#34;", "'");
        *reasons
            .entry(reason.trim_end_matches("skipping").trim_end_matches([' ', '-']).to_owned())
            .or_default() += 1;
    }
    reasons
}

/// Whether this process has a capability; containers never have more.
fn may(capability: u32) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("reading this process's rights")?;
    let mask =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("a status without rights")?;
    let mask = u64::from_str_radix(mask.trim(), 16).context("reading this process's rights")?;
    Ok(mask >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_of_the_suite_are_counted() {
        let case =
            |why: &str| format!("<testcase><skipped message=\"skipped - {why}\"></skipped></testcase>");
        let report = [
            case("Driver &#34;d&#34; does not support ext3 - skipping"),
            case("Driver &#34;d&#34; does not support ext3 - skipping"),
            "<testcase><skipped message=\"skipped\"></skipped></testcase>".to_owned(),
        ]
        .concat();
        let counted = skipped(&report);
        assert_eq!(counted, [("Driver 'd' does not support ext3".to_owned(), 2)].into());
    }
}
