//! `ci`: every stage of continuous integration, timed; a failing stage does not hide the later ones.
//!
//! The last line is `N passed, N failed`: the sum over all stages. A stage that is one check counts as one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};

use super::e2e::{filesystems, sanity, stories};
use super::manifests;
use crate::build::{self, CSI_SANITY, HELM, KUBERNETES, Profile};
use crate::cluster::{Layout, down, status};
use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use parallax_e2e::{runner, say};

/// Programs that the stages take from Debian.
pub(crate) const PACKAGES: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("cmake", "cmake"),
    ("make", "make"),
    ("qemu-img", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("fio", "fio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("strip", "binutils"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the stages whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Leave out the stages that need root and a cluster.
    #[arg(long)]
    no_cluster: bool,
}

/// Tests of one stage.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Count {
    /// A stage that is a single check.
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0 };
}

struct Stage {
    name: &'static str,
    cluster: bool,
    run: fn(&World, &mut Failures) -> Result<Count>,
}

/// What is told again below the table, where nobody has to look for it.
type Failures = Vec<String>;

/// Tells it now, and again at the end.
fn tell(failures: &mut Failures, what: &str, error: &anyhow::Error) {
    say::failure(error);
    failures.push(format!("{what}: {error:#}"));
}

const STAGES: &[Stage] = &[
    Stage { name: "format", cluster: false, run: format },
    Stage { name: "clippy", cluster: false, run: clippy },
    Stage { name: "licences and sources", cluster: false, run: deny },
    Stage { name: "unit tests", cluster: false, run: tests },
    Stage { name: "drill", cluster: false, run: drill },
    Stage { name: "filesystems", cluster: false, run: filesystems },
    Stage { name: "chart and manifests", cluster: false, run: chart },
    Stage { name: "csi-sanity", cluster: true, run: sanity },
    Stage { name: "a story on a real cluster", cluster: true, run: story },
];

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    let begun = Instant::now();
    build::install(PACKAGES)?;
    let mut rows = Vec::new();
    let mut failures = Failures::new();
    for stage in STAGES {
        if args.only.as_ref().is_some_and(|only| !stage.name.contains(only.as_str())) {
            continue;
        }
        if stage.cluster && args.no_cluster {
            continue;
        }
        println!("\n{}", say::bold(stage.name));
        let begun = Instant::now();
        let outcome = (stage.run)(world, &mut failures);
        if let Err(error) = &outcome {
            tell(&mut failures, stage.name, error);
        }
        rows.push((stage.name, outcome, begun.elapsed()));
    }
    let total = report(&rows, begun.elapsed());
    for failure in &failures {
        println!("{} {failure}\n", say::bad("failed:"));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!(
            "{} failed",
            if total.failed == 1 { "one check".into() } else { format!("{} checks", total.failed) }
        );
    }
    Ok(())
}

/// Prints the table; a stage that could not run counts as one failure.
fn report(rows: &[(&str, Result<Count>, Duration)], took: Duration) -> Count {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["stage", "passed", "failed", "time"]);
    let mut total = Count::default();
    for (name, outcome, took) in rows {
        let count = outcome.as_ref().copied().unwrap_or(Count { passed: 0, failed: 1 });
        total.passed += count.passed;
        total.failed += count.failed;
        table.add_row([
            (*name).to_owned(),
            count.passed.to_string(),
            count.failed.to_string(),
            say::seconds(*took),
        ]);
    }
    table.add_row(["all".into(), total.passed.to_string(), total.failed.to_string(), say::seconds(took)]);
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("\n{table}\n");
    total
}

fn cargo(world: &World, arguments: &[&str]) -> std::process::Command {
    let mut command = process::command(env!("CARGO"));
    command.current_dir(&world.repo).args(arguments);
    command
}

fn format(world: &World, _: &mut Failures) -> Result<Count> {
    process::shown(&mut cargo(world, &["fmt", "--all", "--check"]), BUILD)?;
    Ok(Count::ONE)
}

fn clippy(world: &World, _: &mut Failures) -> Result<Count> {
    let arguments = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    process::shown(&mut cargo(world, &arguments), BUILD)?;
    Ok(Count::ONE)
}

/// Version of cargo-deny, pinned: its configuration changes between versions.
const DENY_VERSION: &str = "0.20.2";

fn deny(world: &World, _: &mut Failures) -> Result<Count> {
    let root = world.cache.join(format!("cargo-deny-{DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        say::step("building cargo-deny", || {
            let mut command = process::command(env!("CARGO"));
            command.args(["install", "cargo-deny", "--version", DENY_VERSION, "--locked", "--debug"]);
            command.args(["--no-default-features", "--root"]).arg(&root);
            // Its build must not land in the repository's own target directory.
            command.env("CARGO_TARGET_DIR", root.join("target"));
            process::logged(&mut command, &world.cache.join("cargo-deny.log"), BUILD)?;
            std::fs::remove_dir_all(root.join("target")).context("removing what building cargo-deny left")
        })?;
    }
    let mut command = process::command(program);
    command.current_dir(&world.repo).args(["--offline", "check", "licenses", "bans", "sources"]);
    process::shown(&mut command, BUILD)?;
    Ok(Count::ONE)
}

fn tests(world: &World, failures: &mut Failures) -> Result<Count> {
    // One of the driver's own tests runs the conformance test; it wants to know where that is.
    CSI_SANITY.ensure(world)?;
    let mut command = cargo(world, &["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.env("CSI_SANITY", CSI_SANITY.program(world, "csi-sanity"));
    let log = world.cache.join("unit-tests.log");
    std::fs::remove_file(&log).ok();
    let outcome = process::logged(&mut command, &log, BUILD);
    let text = std::fs::read_to_string(&log).context("reading the log of the unit tests")?;
    let mut count = sums(&text);
    println!("{} passed, {} failed; log {}", count.passed, count.failed, log.display());
    failures.extend(told_by(&text));
    if let Err(error) = outcome
        && count.failed == 0
    {
        // Something did not even compile.
        tell(failures, "unit tests", &error);
        count.failed = 1;
    }
    Ok(count)
}

/// Adds up the closing lines of cargo's test programs.
fn sums(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let mut words = line.split([' ', ';']).filter(|word| !word.is_empty()).peekable();
        while let Some(word) = words.next() {
            let Ok(number) = word.parse::<u64>() else { continue };
            match words.peek() {
                Some(&"passed") => count.passed += number,
                Some(&"failed") => count.failed += number,
                _ => {}
            }
        }
    }
    count
}

/// Values that the chart must refuse, each with a word of the refusal.
const REFUSED: &[(&str, &str)] = &[
    ("pool.paht=/dev/x", "paht"),
    ("pool.path=relative", "path"),
    // Its folder holds kubelet's, and with it the mounts of pods: the next daemon had them too, and kept them for ever.
    ("pool.path=/var/lib/pool.img", "kubelet folder"),
    ("daemon.managerPort=80", "managerPort"),
    ("image.digest=latest", "digest"),
    ("tls.managerSecret=mine", "controllerSecret"),
    ("metrics.podMonitor.enabled=true", "metrics.enabled"),
];

fn chart(world: &World, failures: &mut Failures) -> Result<Count> {
    HELM.ensure(world)?;
    let chart = world.repo.join("charts/parallax");
    let mut count = Count::default();
    let mut check = |what: &str, outcome: Result<()>| match outcome {
        Ok(()) => count.passed += 1,
        Err(error) => {
            tell(failures, what, &error);
            count.failed += 1;
        }
    };
    for values in ["device-values.yaml", "file-values.yaml"] {
        let values = chart.join("ci").join(values);
        for verb in [&["lint", "--strict"][..], &["template", "parallax"]] {
            let mut command = crate::cluster::helm(world, verb);
            command.arg(&chart).arg("--values").arg(&values).args(["--kube-version", KUBERNETES.version]);
            check("the chart renders", process::output(&mut command, BUILD).map(drop));
        }
    }
    for (value, word) in REFUSED {
        let mut command = crate::cluster::helm(world, &["template", "parallax"]);
        command.arg(&chart).args(["--kube-version", KUBERNETES.version]);
        command.args(["--set", "pool.path=/dev/pool", "--set", value]);
        let refused = match process::output(&mut command, BUILD) {
            Ok(_) => Err(anyhow::anyhow!("the chart accepts {value}")),
            Err(error) if format!("{error:#}").contains(word) => Ok(()),
            Err(error) => Err(error.context(format!("{value} is refused for another reason"))),
        };
        check("a wrong value is refused", refused);
    }
    check("manifests/ is what the chart renders", manifests::run(world, &manifests::Args { check: true }));
    Ok(count)
}

/// What each test that failed has printed, its last lines at least.
fn told_by(text: &str) -> Failures {
    const LINES_MAX: usize = 40;
    let mut told = Failures::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) else {
            continue;
        };
        let mut said = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("---- ") && *line != "failures:") {
            said.push(line);
        }
        let last = said.split_off(said.len().saturating_sub(LINES_MAX));
        told.push(format!("{name}\n{}", last.join("\n").trim_end()));
    }
    told
}

/// What the drill does in continuous integration: about six minutes on two cores that have nothing else to do.
const DRILLS: [(&str, &[&str]); 4] = [
    ("seeds", &["--seeds", "2000", "--ops", "600", "--threads", "2", "--shrink"]),
    ("late writes", &["--seeds", "500", "--ops", "600", "--threads", "2", "--haunted", "--shrink"]),
    ("crash points", &["enumerate", "--ops", "2", "--threads", "2"]),
    ("mutants", &["mutants", "--threads", "2", "--seconds", "180"]),
];

fn drill(world: &World, failures: &mut Failures) -> Result<Count> {
    let mut count = Count::default();
    for (what, arguments) in DRILLS {
        let mut command = cargo(world, &["run", "--quiet", "--locked", "-p", "parallax-drill"]);
        command.args(["--features", "mutants", "--"]).args(arguments);
        match process::shown(&mut command, BUILD) {
            Ok(()) => count.passed += 1,
            Err(error) => {
                tell(failures, &format!("the drill's {what}"), &error);
                count.failed += 1;
            }
        }
    }
    Ok(count)
}

/// Power cuts under real filesystems, and bugs that they must find: about two minutes on two idle cores.
fn filesystems(world: &World, failures: &mut Failures) -> Result<Count> {
    let mut count = Count::default();
    if !rustix::process::geteuid().is_root() {
        say::note("left out: block devices and mounts need root");
        return Ok(count);
    }
    for args in [filesystems::Args::for_ci(), filesystems::Args::mutants()] {
        match filesystems::run(world, &args) {
            Ok(()) => count.passed += 1,
            Err(error) => {
                tell(failures, "power cuts under filesystems", &error);
                count.failed += 1;
            }
        }
    }
    Ok(count)
}

fn sanity(world: &World, _: &mut Failures) -> Result<Count> {
    sanity::run(world, &sanity::Args { profile: Profile::Dev, focus: None })
}

/// One story, on a cluster that is started for it. A cluster that ran before is kept.
fn story(world: &World, _: &mut Failures) -> Result<Count> {
    let ran_before = status::init(&Layout::of(world)).is_some();
    let outcome = stories::ready(world, Profile::Dev)
        .and_then(|kube| Ok(runner::tell(&kube, &runner::select(&["smoke".into()])?)));
    if !ran_before {
        let ended = down::run(world);
        let outcome = outcome?;
        ended?;
        return Ok(Count { passed: outcome.passed, failed: outcome.failed });
    }
    outcome.map(|outcome| Count { passed: outcome.passed, failed: outcome.failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_several_test_programs_are_added() {
        let text = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            noise 7 passed\n\
            test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(sums(text), Count { passed: 5, failed: 1 });
    }

    #[test]
    fn what_a_failed_test_has_said_is_told_again() {
        let text = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n\nthread panicked\nno\n\n---- b stdout ----\nb says\n\n\
            failures:\n    a\n    b\n\ntest result: FAILED. 2 passed; 2 failed;\n";
        assert_eq!(told_by(text), ["a\n\nthread panicked\nno", "b\nb says"]);
    }

    #[test]
    fn a_stage_that_could_not_run_is_a_failure() {
        let rows = [
            ("good", Ok(Count { passed: 4, failed: 0 }), Duration::ZERO),
            ("broken", Err(anyhow::anyhow!("no compiler")), Duration::ZERO),
        ];
        assert_eq!(report(&rows, Duration::ZERO), Count { passed: 4, failed: 1 });
    }
}
