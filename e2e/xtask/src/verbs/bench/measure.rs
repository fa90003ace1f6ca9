//! Every row on every subject, in turns.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::Plan;
use super::fio::{self, End, Sample};
use super::peers::{Ground, NbdkitFile, Parallax, Qcow2, Qcow2Chain, QemuRaw, RawFile, Subject};
use super::progress::Progress;
use super::results::{Cell, Measured, Results, SubjectFacts};
use super::rows::{Image, Row};

/// The peers that the rows need; the raw file is always first.
pub(super) fn peers(ground: &Ground, rows: &[&Row]) -> Vec<Box<dyn Subject>> {
    let mut all: Vec<Box<dyn Subject>> = vec![Box::new(RawFile { ground: ground.clone() })];
    let alone = |row: &&Row| matches!(row.image, Image::AfterMany | Image::AfterManyAndOne);
    if !rows.iter().all(alone) {
        all.push(Box::new(NbdkitFile::new(ground.clone())));
        all.push(Box::new(QemuRaw::new(ground.clone())));
        all.push(Box::new(Qcow2::new(ground.clone())));
        all.push(Box::new(Qcow2Chain::new(ground.clone())));
    }
    all
}

/// Sets everybody up and measures; the peers end here, Parallax goes on.
pub(super) fn run(
    plan: Plan,
    rows: &[&Row],
    parallax: &mut Parallax,
    mut peers: Vec<Box<dyn Subject>>,
    progress: &mut Progress,
    results: &mut Results,
) -> Result<()> {
    let mut subjects: Vec<&mut dyn Subject> = Vec::new();
    let mut rest = peers.iter_mut();
    let raw = rest.next().context("no raw file among the subjects")?;
    subjects.push(raw.as_mut());
    subjects.push(parallax);
    subjects.extend(rest.map(|peer| peer.as_mut() as &mut dyn Subject));
    for subject in &mut subjects {
        progress.says(&format!("making images: {}", subject.name()));
        subject.set_up().with_context(|| format!("setting up {}", subject.name()))?;
        results.subjects.push(SubjectFacts {
            name: subject.name(),
            title: subject.title(),
            how: subject.how()?,
        });
    }
    for row in rows {
        let samples = row_of(plan, row, &mut subjects, progress)?;
        results.rows.push(Measured {
            name: row.name,
            title: row.title,
            part: row.part,
            cells: cells(&samples),
        });
    }
    drop(subjects);
    results.taken = parallax.taken().cloned();
    Ok(())
}

/// Samples of each subject, one for each turn.
fn row_of(
    plan: Plan,
    row: &Row,
    subjects: &mut [&mut dyn Subject],
    progress: &mut Progress,
) -> Result<BTreeMap<&'static str, Vec<Sample>>> {
    let mut samples: BTreeMap<&'static str, Vec<Sample>> = BTreeMap::new();
    for turn in 0..plan.turns {
        // Another one begins each time, so that no subject always follows the same neighbour.
        for place in 0..subjects.len() {
            let at = (place + turn as usize) % subjects.len();
            let Some(subject) = subjects.get_mut(at) else { continue };
            progress.turn(row.title, subject.name(), turn, plan.turns);
            let name = subject.name();
            let during = || format!("row {}, {name}, turn {}", row.name, turn + 1);
            let Some(image) = subject.prepare(row.image).with_context(during)? else { continue };
            let seed = u64::from(turn) + 1;
            let end = End::Time(plan.turn);
            let sample =
                fio::run(&image.target, row.job, plan.image_bytes, end, seed).with_context(during)?;
            samples.entry(name).or_default().push(sample);
        }
    }
    Ok(samples)
}

/// Medians, and ratios turn by turn against the raw file.
fn cells(samples: &BTreeMap<&'static str, Vec<Sample>>) -> BTreeMap<&'static str, Cell> {
    let Some(raw) = samples.get("raw") else { return BTreeMap::new() };
    samples.iter().map(|(name, own)| (*name, Cell::of(own, raw))).collect()
}
