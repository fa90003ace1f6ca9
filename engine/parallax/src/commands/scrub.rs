//! scrub.

use super::check::{DAMAGED, FindingView, listed};
use crate::{
    args::{Place, Rate},
    failure::{Failure, Outcome},
    output::{Output, size},
    session::Session,
};
use indicatif::ProgressBar;
use parallax_api::v1;
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    clean: bool,
    damage: usize,
    findings: Vec<FindingView>,
    bytes_read: u64,
    nodes_verified: u64,
    seconds: f64,
}

/// Scrubs and shows; the exit code.
pub(crate) async fn run(place: &Place, output: Output, rate: Rate) -> Outcome<u8> {
    let session = Session::open(place).await?;
    let bar = output.bytes_bar(0);
    let outcome = stream(&session, rate, &bar).await;
    bar.finish_and_clear();
    let closed = session.close().await;
    let report = outcome?;
    closed?;
    output.show(&report, text)?;
    Ok(if report.clean { 0 } else { DAMAGED })
}

async fn stream(session: &Session, rate: Rate, bar: &ProgressBar) -> Outcome<Report> {
    let client = session.client();
    let begun = Instant::now();
    let request = v1::ScrubPoolRequest { bytes_per_second: rate.0 };
    let mut stream = client.manager().scrub_pool(client.unbounded(request)).await?.into_inner();
    let (mut findings, mut finished) = (Vec::new(), None);
    while let Some(step) = stream.message().await? {
        if step.phase == "surface" {
            bar.set_length(step.total);
            bar.set_position(step.done);
        }
        let bad = if step.bad_blocks > 0 { format!(", {} bad", step.bad_blocks) } else { String::new() };
        bar.set_message(format!("{}{bad}", step.phase));
        findings.extend(step.findings.iter().cloned().map(FindingView::from));
        if step.finished {
            finished = Some(step);
        }
    }
    let Some(end) = finished else {
        return Err(Failure::new("the scrub ended before it had read everything").or_try("the same again"));
    };
    let damage = findings.iter().filter(|finding| finding.severity == "damage").count();
    Ok(Report {
        clean: damage == 0,
        damage,
        findings,
        bytes_read: end.bytes_read,
        nodes_verified: end.nodes_verified,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn text(report: &Report) -> String {
    let read = format!(
        "{} read and {} nodes verified in {:.1} s",
        size(report.bytes_read),
        report.nodes_verified,
        report.seconds
    );
    let verdict = match (report.damage, report.findings.len()) {
        (0, 0) => format!("clean: {read}"),
        (0, _) => format!("nothing is lost: {read}; a restart of parallaxd mends what is listed"),
        (damage, _) => format!(
            "{damage} findings of damage: {read}\nrestore what is listed from a copy or a backup, \
             or write it anew; what is not listed can be read"
        ),
    };
    listed(&report.findings) + &verdict
}
