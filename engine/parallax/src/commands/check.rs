//! check.
//!
//! Without a daemon it opens the device only, not the pool: a pool that is too damaged to open can be checked.

use crate::{
    args::Place,
    bare::Bare,
    failure::{Failure, Outcome},
    output::{Output, table},
    session::Session,
};
use indicatif::ProgressBar;
use parallax_api::v1;
use parallax_store::{Finding, Severity};
use serde::Serialize;
use std::path::Path;

/// Exit code when damage was found.
pub(crate) const DAMAGED: u8 = 1;

/// Exit code when the check could not run.
pub(crate) const COULD_NOT_RUN: u8 = 2;

#[derive(Serialize)]
struct Report {
    clean: bool,
    damage: usize,
    leaks: usize,
    findings: Vec<FindingView>,
    /// Volumes that were in use meanwhile: then a finding may be of a block that changed hands between two looks.
    in_use: u64,
    /// What a repair did before.
    mended: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct FindingView {
    pub(super) severity: String,
    pub(super) kind: String,
    pub(super) detail: String,
    pub(super) volumes: Vec<String>,
}

/// What a check or repair came to.
#[derive(Default)]
struct Looked {
    findings: Vec<FindingView>,
    in_use: u64,
    mended: Vec<String>,
}

/// Checks and shows; the exit code.
pub(crate) async fn run(place: &Place, output: Output, repair: bool) -> Outcome<u8> {
    let bar = output.steps_bar();
    bar.set_message(if repair { "repair" } else { "check" });
    let looked = match &place.pool {
        Some(path) if repair => mend(path, place, &bar).await,
        Some(path) => alone(path, &bar).await.map(|findings| Looked { findings, ..Looked::default() }),
        None if repair => Err(Failure::new("a pool that a daemon holds cannot be repaired")
            .or_try("stopping parallaxd, then parallax --pool PATH check --repair")),
        None => by_daemon(place, &bar).await,
    };
    bar.finish_and_clear();
    let Looked { findings, in_use, mended } = looked?;
    let damage = findings.iter().filter(|finding| finding.severity == "damage").count();
    let leaks = findings.len() - damage;
    let report = Report { clean: damage == 0, damage, leaks, findings, in_use, mended };
    output.show(&report, text)?;
    Ok(if report.clean { 0 } else { DAMAGED })
}

fn text(report: &Report) -> String {
    let list = listed(&report.findings);
    let verdict = match (report.damage, report.leaks) {
        (0, 0) => "clean".to_owned(),
        (0, leaks) => format!("clean; {leaks} leaks, which `parallax gc` brings back"),
        (damage, _) if report.in_use > 0 => format!(
            "{damage} findings of damage; {} volumes are in use, so it may be that blocks changed hands between two \
             looks\n  try: parallax scrub, which is sure; or the same when nothing is attached",
            report.in_use
        ),
        (damage, _) => format!("{damage} findings of damage"),
    };
    let mended: String = report.mended.iter().map(|what| format!("mended: {what}\n")).collect();
    mended + &list + &verdict
}

/// A table of findings; nothing if there are none.
pub(super) fn listed(findings: &[FindingView]) -> String {
    let rows = findings.iter().map(|finding| {
        vec![
            finding.severity.clone(),
            finding.kind.clone(),
            finding.detail.clone(),
            finding.volumes.join(", "),
        ]
    });
    if findings.is_empty() { String::new() } else { table(&["severity", "kind", "what", "volumes"], rows) }
}

async fn alone(path: &Path, bar: &ProgressBar) -> Outcome<Vec<FindingView>> {
    let bare = Bare::open(path, true, "the same without --pool: a daemon may hold it")?;
    let progress = showing(bar);
    let findings =
        bare.run(move |device| async move { parallax_store::check(device, &progress).await }).await?;
    bare.close().await?;
    Ok(findings.into_iter().map(FindingView::from).collect())
}

/// Repairs, holding the device; what is left, and what was done.
async fn mend(path: &Path, place: &Place, bar: &ProgressBar) -> Outcome<Looked> {
    let hint = "stopping parallaxd: nobody else may hold a pool that is repaired";
    let bare = Bare::open(path, false, hint)?;
    let (environment, progress) = (bare.environment(place)?, showing(bar));
    let repaired = bare
        .run(move |device| async move { parallax_store::repair(device, environment, &progress).await })
        .await?;
    bare.close().await?;
    let findings = repaired.left.into_iter().map(FindingView::from).collect();
    Ok(Looked { findings, mended: repaired.mended, in_use: 0 })
}

fn showing(bar: &ProgressBar) -> impl Fn(u64, u64) + Send + Sync + use<> {
    let bar = bar.clone();
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl From<v1::Finding> for FindingView {
    fn from(finding: v1::Finding) -> Self {
        Self {
            severity: finding.severity,
            kind: finding.kind,
            detail: finding.detail,
            volumes: finding.volumes,
        }
    }
}

impl From<Finding> for FindingView {
    fn from(finding: Finding) -> Self {
        let severity = match finding.severity {
            Severity::Leak => "leak",
            Severity::Damage => "damage",
        };
        Self {
            severity: severity.to_owned(),
            kind: finding.kind.to_owned(),
            detail: finding.detail,
            volumes: finding.volumes,
        }
    }
}

async fn by_daemon(place: &Place, bar: &ProgressBar) -> Outcome<Looked> {
    let session = Session::open(place).await?;
    let client = session.client();
    let mut stream =
        client.manager().check_pool(client.unbounded(v1::CheckPoolRequest {})).await?.into_inner();
    let mut findings = Vec::new();
    let mut finished = false;
    while let Some(step) = stream.message().await? {
        bar.set_length(step.total);
        bar.set_position(step.done);
        finished = step.finished;
        findings.extend(step.findings.into_iter().map(FindingView::from));
    }
    let pool = client.manager().get_pool(client.request(v1::GetPoolRequest {})).await?.into_inner();
    session.close().await?;
    if finished {
        Ok(Looked { findings, in_use: pool.volumes_attached, mended: Vec::new() })
    } else {
        Err(Failure::new("the check ended before it had seen everything"))
    }
}
