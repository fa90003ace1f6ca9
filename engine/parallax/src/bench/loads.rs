//! Reads and writes: the bare file and a volume take turns.

use super::{
    LARGE, PAGE, Plan,
    bed::Bed,
    load::{self, Load, Sample, Shape, Until},
    report::{Report, Row},
    say,
};
use crate::failure::Outcome;
use parallax_block::BlockDevice;
use std::sync::Arc;

const LOADS: [(&str, Load); 9] = [
    ("4 KiB random read, depth 1", random(Shape::RandomRead, 1)),
    ("4 KiB random read, depth 32", random(Shape::RandomRead, 32)),
    ("4 KiB random write, depth 1", random(Shape::RandomWrite, 1)),
    ("4 KiB random write, depth 32", random(Shape::RandomWrite, 32)),
    ("4 KiB random write + flush, depth 1", Load { flush: true, ..random(Shape::RandomWrite, 1) }),
    ("64 KiB sequential read, depth 8", sequential(Shape::SequentialRead, 64 << 10, 8)),
    ("64 KiB sequential write, depth 8", sequential(Shape::SequentialWrite, 64 << 10, 8)),
    ("1 MiB sequential read, depth 4", sequential(Shape::SequentialRead, LARGE, 4)),
    ("1 MiB sequential write, depth 4", sequential(Shape::SequentialWrite, LARGE, 4)),
];

const fn random(shape: Shape, depth: u64) -> Load {
    Load { shape, bytes: PAGE, depth, flush: false }
}

const fn sequential(shape: Shape, bytes: u64, depth: u64) -> Load {
    Load { shape, bytes, depth, flush: false }
}

pub(super) async fn run(
    bed: &Bed,
    plan: Plan,
    bare: &Arc<dyn BlockDevice>,
    vdi: &Arc<dyn BlockDevice>,
    report: &mut Report,
) -> Outcome {
    let fill = sequential(Shape::SequentialWrite, LARGE, 4);
    let once = Until::Requests(plan.size / LARGE);
    let name = "1 MiB sequential write, depth 4, first touch";
    say(name);
    let bare_fill = load::run(bed.home(), bare, fill, plan.size, once).await?;
    let vdi_fill = load::run(bed.home(), vdi, fill, plan.size, once).await?;
    report.rows.push(Row::new(name, &[(bare_fill, vdi_fill)]));
    for (name, load) in LOADS {
        say(name);
        let mut turns: Vec<(Sample, Sample)> = Vec::new();
        for _ in 0..plan.repeats {
            let on_bare = load::run(bed.home(), bare, load, plan.size, Until::Time(plan.each)).await?;
            let on_vdi = load::run(bed.home(), vdi, load, plan.size, Until::Time(plan.each)).await?;
            turns.push((on_bare, on_vdi));
        }
        report.rows.push(Row::new(name, &turns));
    }
    Ok(())
}
