//! Crash points: what a disk may hold when the power goes, taken while a script runs, opened afterwards.

use super::Closeness;
use crate::{
    Failure,
    life::Life,
    model::Forest,
    run::{Drill, guarded},
    subject::Death,
};
use parallax_sim::{Event, Fate, Image, Phase, Prng, SimDisk, SimTails, Unflushed, World};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

/// Unflushed changes of which every subset is tried.
const SUBSETS_OF: usize = 3;

/// One image, and what the model knew when it was taken.
pub(super) struct Point {
    boundary: u64,
    request: String,
    death: String,
    image: Image,
    /// Memory that outlived the process; `None` after a power cut.
    tails: Option<SimTails>,
    forest: Arc<Forest>,
}

impl Point {
    /// Which.
    pub(super) fn what(&self) -> String {
        format!("boundary {} ({}), {}", self.boundary, self.request, self.death)
    }
}

/// Takes the crash points of a script.
pub(super) struct Recorder {
    drill: Weak<Drill>,
    system: Arc<dyn crate::subject::System>,
    closeness: Closeness,
    state: Mutex<State>,
}

struct State {
    recording: bool,
    prng: Prng,
    boundaries: u64,
    points: Vec<Point>,
}

impl Recorder {
    pub(super) fn new(drill: &Arc<Drill>, closeness: Closeness) -> Arc<Self> {
        let prng = Prng::new(closeness.seed ^ 0x706f_696e_7473);
        let state = State { recording: false, prng, boundaries: 0, points: Vec::new() };
        let system = drill.system.clone();
        Arc::new(Self { drill: Arc::downgrade(drill), system, closeness, state: state.into() })
    }

    /// Whether boundaries count from now on.
    pub(super) fn record(&self, on: bool) {
        self.state.lock().recording = on;
    }

    pub(super) fn boundaries(&self) -> u64 {
        self.state.lock().boundaries
    }

    /// Everything that was taken.
    pub(super) fn points(&self) -> Vec<Point> {
        std::mem::take(&mut self.state.lock().points)
    }

    /// Takes the points of this disk.
    pub(super) fn watch(self: &Arc<Self>, disk: &SimDisk) {
        let recorder = self.clone();
        disk.observe(move |event| {
            if event.phase == Phase::Begun && event.request.kind.is_boundary() {
                recorder.take(event);
            }
        });
    }

    fn take(&self, event: &Event<'_>) {
        let mut state = self.state.lock();
        let Some(drill) = self.drill.upgrade().filter(|_| state.recording) else { return };
        state.boundaries += 1;
        let boundary = state.boundaries;
        let forest = Arc::new(drill.forest.lock().clone());
        let request = format!("{:?} {}", event.request.kind, event.request.range);
        let add = |death: String, image: Image, tails: Option<SimTails>, state: &mut State| {
            let (request, forest) = (request.clone(), forest.clone());
            state.points.push(Point { boundary, request, death, image, tails, forest });
        };
        for fates in fates(&event.disk.unflushed(), self.closeness.images_max, &mut state.prng) {
            let fate = |request| fates.get(&request).copied().unwrap_or(Fate::Lost);
            let image = event.disk.crash_image_where(fate);
            add(format!("power cut {fates:?}"), image, None, &mut state);
        }
        let left = event.disk.crash_image(Unflushed::Kept);
        add("kill".to_owned(), left, Some(drill.tails.copy(&drill.world)), &mut state);
    }

    /// Opens what was left at a point and compares it with the model.
    pub(super) fn verify(&self, point: &Point) -> Option<Failure> {
        let world = World::new(self.closeness.seed ^ point.boundary << 32);
        let tails = point.tails.as_ref().map_or_else(|| SimTails::new(&world), |tails| tails.copy(&world));
        let forest = Forest::clone(&point.forest);
        let options = super::script::options(self.closeness.seed);
        let drill = Drill::new(&world, options, forest, tails, self.system.clone());
        let power_cut = point.tails.is_none();
        self.system.died(if power_cut { Death::PowerCut(Unflushed::Lost) } else { Death::Kill });
        drill.forget(power_cut, &point.death);
        let disk = SimDisk::with_image(&world, drill.disk_options(), point.image.clone());
        let work = async {
            drill.check(&disk, false).await?;
            let mut prng = world.prng();
            let (disk, (process, pool)) = drill.open(disk.clone(), 0, &mut prng).await?;
            let life = Life::new(&drill, pool);
            life.verify().await?;
            drill.close(&life, disk, process).await.map(drop)
        };
        guarded(&world, work)
    }
}

/// What may become of some unflushed changes: nothing kept and all kept, then other subsets, then torn ones.
fn fates(requests: &[u64], images_max: usize, prng: &mut Prng) -> Vec<BTreeMap<u64, Fate>> {
    let subset = |bits: u64| -> BTreeMap<u64, Fate> {
        let kept = requests.iter().enumerate().filter(|(at, _)| bits >> (at % 64) & 1 == 1);
        kept.map(|(_, request)| (*request, Fate::Kept)).collect()
    };
    let all = u64::MAX;
    let mut chosen = vec![subset(0)];
    if !requests.is_empty() {
        chosen.push(subset(all));
    }
    if requests.len() <= SUBSETS_OF {
        let last = (1u64 << requests.len()) - 1;
        chosen.extend((1..last.max(1)).map(subset));
    } else {
        while chosen.len() < images_max.saturating_sub(2) {
            chosen.push(subset(prng.next_u64()));
        }
    }
    chosen.truncate(images_max.max(2));
    for _ in 0..2 {
        if requests.is_empty() || chosen.len() >= images_max + 2 {
            break;
        }
        let bits = if prng.chance(1, 2) { all } else { prng.next_u64() };
        let mut torn = subset(bits);
        let fate =
            if prng.chance(1, 2) { Fate::Front(prng.range(1..8)) } else { Fate::Sectors(prng.next_u64()) };
        torn.insert(*prng.pick(requests), fate);
        chosen.push(torn);
    }
    chosen
}
