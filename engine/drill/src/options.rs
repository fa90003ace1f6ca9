//! Everything that a seed decides, derived before the run and printed with a failure.
//!
//! All draws are made whatever the plan leaves out, so leaving something out changes nothing else that the seed
//! decides.

use crate::{
    plan::{Feature, Plan},
    subject::Death,
};
use parallax_sim::{Prng, Unflushed};
use parallax_store::Limits;
use std::{fmt, ops::Range, time::Duration};

/// Weights of the requests that a lane sends to volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Plain reads.
    pub read: u64,
    /// Writes, a tenth of them with FUA.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Discards.
    pub discard: u64,
    /// Zeroing.
    pub zero: u64,
}

/// What managers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Verb {
    CreateEmpty,
    CloneSnapshot,
    CloneVolume,
    DeleteVolume,
    Rename,
    Resize,
    Revert,
    Attach,
    Detach,
    Snapshot,
    SnapshotSet,
    Inspect,
    Label,
    DeleteSnapshot,
    Diff,
    Space,
    Collect,
    Refused,
}

/// How often each is tried, before the seed has its say.
const VERBS: [(Verb, u64, Option<Feature>); 18] = [
    (Verb::CreateEmpty, 4, None),
    (Verb::CloneSnapshot, 5, Some(Feature::Clones)),
    (Verb::CloneVolume, 3, Some(Feature::Clones)),
    (Verb::DeleteVolume, 3, Some(Feature::Deletions)),
    (Verb::Rename, 1, None),
    (Verb::Resize, 3, Some(Feature::Growth)),
    (Verb::Revert, 3, Some(Feature::Reverts)),
    (Verb::Attach, 12, None),
    (Verb::Detach, 4, None),
    (Verb::Snapshot, 14, Some(Feature::Snapshots)),
    (Verb::SnapshotSet, 5, Some(Feature::Snapshots)),
    (Verb::Inspect, 8, Some(Feature::Snapshots)),
    (Verb::Label, 2, Some(Feature::Snapshots)),
    (Verb::DeleteSnapshot, 8, Some(Feature::Deletions)),
    (Verb::Diff, 4, Some(Feature::Snapshots)),
    (Verb::Space, 3, None),
    (Verb::Collect, 3, Some(Feature::Collections)),
    (Verb::Refused, 2, None),
];

/// How the life of a pool ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Closed as it should be.
    Close,
    /// At the `after`th change or flush of the disk.
    Death {
        /// How.
        how: Death,
        /// When.
        after: u64,
    },
}

/// Derived options of one run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What was asked for.
    pub plan: Plan,
    /// Bytes of the disk.
    pub capacity: u64,
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// Bytes of the disk's sectors.
    pub sector_bytes: u32,
    /// Of volumes in a hundred, how many have sectors of 4 KiB.
    pub large_percent: u64,
    /// The volumes together may outgrow the pool, so running out of space is part of the run.
    pub tight: bool,
    /// Bounds of the store's memory.
    pub limits: Limits,
    /// Sectors of a volume at its creation.
    pub volume_sectors: Range<u64>,
    /// Volumes that are kept at most.
    pub volumes_max: usize,
    /// Snapshots of a volume that are kept at most.
    pub snapshots_max: usize,
    /// Requests to volumes that are outstanding together.
    pub lanes: usize,
    /// Management operations that are outstanding together.
    pub managers: usize,
    /// Several managers may work with one volume.
    pub sharing: bool,
    /// Operations of one life of the pool, for each lane.
    pub ops: u64,
    /// Lives of the pool.
    pub lives: usize,
    /// Sectors of a request at most.
    pub request_sectors_max: u64,
    /// Of requests in a hundred, how many may be smaller than that.
    pub smaller_percent: u64,
    /// Of requests in a hundred, how many go to the same few blocks.
    pub hot_percent: u64,
    /// See [`Weights`].
    pub weights: Weights,
    /// Of writes in a hundred, how many have FUA.
    pub fua_percent: u64,
    /// What managers do, and how often.
    pub verbs: Vec<(Verb, u64)>,
    /// Longest pause of a manager between two operations.
    pub manager_pause: Duration,
    /// Slowest answer of the disk.
    pub latency_max: Duration,
    /// Of a thousand requests, how many take very long.
    pub stuck_per_mille: u64,
    /// How long some reads take. What is freed or reused too early shows only to those that are still under way.
    pub slow_reads: Option<Duration>,
    /// Of a hundred lives, how many meet a disk that fails requests.
    pub faulty_percent: u64,
    /// Of a hundred ends of lives, after how many the pool's metadata is damaged on a copy.
    pub probe_percent: u64,
    /// Of a hundred ends of lives, after how many all space is accounted for on a copy.
    pub account_percent: u64,
    /// Faulty disks may carry out long after what they have said had failed.
    pub haunted: bool,
    /// Faulty disks may say that they have what they have not.
    pub lying: bool,
    /// Of volumes in a hundred, how many are not looked at when the pool has been opened.
    pub unverified_percent: u64,
    /// Pools are opened, now and then, by a process that dies on the way.
    pub deaths_while_opening: bool,
}

impl Options {
    /// What the plan's seed decides.
    pub fn derive(plan: &Plan) -> Self {
        let mut prng = Prng::new(plan.seed ^ 0x6f70_7469_6f6e_7300);
        let has = |feature: Feature| !plan.without.contains(&feature);
        let extent_bytes: u64 = 256 << 10;
        let tight = (prng.chance(1, 4) || plan.tight) && has(Feature::Tight);
        let lives = prng.range(1..6) as usize;
        let lanes = prng.range(1..9) as usize;
        let sizes: [Range<u64>; 3] = [8..64, 64..512, 512..4096];
        let extents = if tight { prng.range(20..48) } else { prng.range(256..1024) };
        let size = prng.pick(&sizes).clone();
        let volumes_max = prng.range(1..6) as usize;
        let snapshots_max =
            if prng.chance(1, 5) { prng.range(12..60) as usize } else { prng.range(1..8) as usize };
        let managers = *prng.pick(&[1, 1, 2, 3, 5]);
        let longest = *prng.pick(&[1, 8, 17, 64, 256]);
        let weights = Weights {
            read: prng.range(5..40),
            write: prng.range(if tight { 50..80 } else { 10..60 }),
            flush: *prng.pick(&[0, 2, 5, 10, 10, 15, 40, 60]),
            discard: prng.range(0..12),
            zero: prng.range(0..12),
        };
        let hot_percent = *prng.pick(&[0, 30, 80, 95]);
        let latency_max = Duration::from_micros(*prng.pick(&[20, 200, 5000]));
        let fua_percent = *prng.pick(&[0, 10, 10, 50]);
        // Swarm: each seed leaves some verbs out and does others often.
        let verbs: Vec<(Verb, u64)> = VERBS
            .iter()
            .map(|(verb, weight, feature)| {
                let factor = *prng.pick(&[0, 1, 1, 1, 4]);
                (*verb, if feature.is_none_or(has) { weight * factor } else { 0 })
            })
            .collect();
        let manager_pause = Duration::from_micros(*prng.pick(&[100, 1000, 1000, 5000]));
        let small = prng.chance(1, 3);
        let limits = Limits { cache_bytes: prng.range(0..64) * 4096, dirty_nodes_max: prng.range(4..64) };
        let large_sectors = prng.chance(1, 8) && has(Feature::LargeSectors);
        let sharing = prng.chance(2, 3) && has(Feature::Sharing);
        // Bitmaps of large extents have more than one sector that changes, so they can be torn.
        let large_extents = prng.chance(1, 10) && !tight;
        let (extent_bytes, extents) =
            if large_extents { (64 << 20, extents / 16) } else { (extent_bytes, extents) };
        let unverified_percent = *prng.pick(&[20, 20, 60]);
        let stuck_per_mille = *prng.pick(&[0, 0, 0, 2, 20]);
        let faulty_percent = *prng.pick(&[0, 0, 25, 60]);
        let probe_percent = *prng.pick(&[0, 0, 20, 50]);
        // In larger extents one claim too many takes all that was kept in reserve.
        let (extent_bytes, extents) =
            if tight && prng.chance(1, 2) { (1 << 20, 20 + extents / 8) } else { (extent_bytes, extents) };
        let flood = (prng.chance(1, 3) | (prng.chance(1, 2) && plan.tight)) && tight;
        let slow = (prng.chance(1, 8) || plan.slow) && has(Feature::SlowReads);
        let rush = Rush::new(&mut prng);
        let haunted = (prng.chance(1, 4) || plan.haunted) && has(Feature::Ghosts) && !plan.forgetful;
        let lying = prng.chance(1, 4) && has(Feature::Lies) && !plan.forgetful;
        let account_percent = *prng.pick(&[0, 0, 25]);
        // What comes back from a failed write after a revert cannot be told from what should be there.
        let verbs = match haunted {
            true => verbs.into_iter().filter(|(verb, _)| *verb != Verb::Revert).collect(),
            false => verbs,
        };
        // Reused blocks are what a late write harms.
        let often =
            |(verb, weight)| (verb, if plan.haunted && verb == Verb::Collect { weight * 8 } else { weight });
        let verbs = verbs.into_iter().map(often).collect();
        let lanes = plan.lanes.map_or(lanes, |bound| lanes.min(bound.max(1)));
        let lives = plan.lives.map_or(lives, |bound| lives.min(bound.max(1)));
        let mut options = Self {
            plan: plan.clone(),
            capacity: extent_bytes * extents,
            extent_bytes,
            sector_bytes: if large_sectors { 4096 } else { 512 },
            large_percent: if large_sectors { 100 } else { 16 },
            tight,
            limits: if small && has(Feature::SmallLimits) { limits } else { Limits::default() },
            volume_sectors: if tight { 4096..12288 } else { size },
            volumes_max: plan.volumes.map_or(volumes_max, |bound| volumes_max.min(bound.max(1))),
            snapshots_max,
            lanes,
            managers: plan.managers.map_or(managers, |bound| managers.min(bound.max(1))),
            sharing,
            ops: plan.ops / lives as u64 / lanes as u64 + 1,
            lives,
            request_sectors_max: if tight { 512 } else { longest },
            smaller_percent: if tight { 50 } else { 100 },
            hot_percent,
            weights: Weights {
                flush: if has(Feature::Flushes) { weights.flush } else { 0 },
                discard: if has(Feature::Discards) { weights.discard } else { 0 },
                zero: if has(Feature::Zeroing) { weights.zero } else { 0 },
                ..weights
            },
            fua_percent: if has(Feature::Fua) { fua_percent } else { 0 },
            verbs,
            manager_pause,
            latency_max,
            stuck_per_mille: if has(Feature::Faults) { stuck_per_mille } else { 0 },
            slow_reads: None,
            faulty_percent: match (has(Feature::Faults), plan.forgetful || plan.haunted) {
                (false, _) => 0,
                (true, false) => faulty_percent,
                (true, true) => 80,
            },
            probe_percent: if has(Feature::Probes) { probe_percent } else { 0 },
            account_percent: if has(Feature::Accounts) { account_percent } else { 0 },
            haunted,
            lying,
            unverified_percent,
            deaths_while_opening: has(Feature::DeathsWhileOpening),
        };
        if slow {
            rush.adjust(&mut options);
        }
        if flood {
            options.flood(&mut prng);
        }
        options
    }

    /// Many large writes at once to few volumes that are larger than the pool: all are admitted before the first of
    /// them takes what is left. Then what must go on: flushes, deletes, collections.
    fn flood(&mut self, prng: &mut Prng) {
        let has = |feature| !self.plan.without.contains(&feature);
        (self.extent_bytes, self.capacity) = (256 << 10, prng.range(20..28) * (256 << 10));
        self.lanes = self.plan.lanes.map_or(8, |bound| bound.clamp(1, 8));
        self.lives = self.lives.min(2);
        self.ops = self.plan.ops / self.lives as u64 / self.lanes as u64 + 1;
        self.volumes_max = self.volumes_max.min(2);
        self.volume_sectors = 12_288..20_480;
        (self.hot_percent, self.smaller_percent) = (0, 10);
        self.faulty_percent = 0;
        self.latency_max = self.latency_max.max(Duration::from_micros(200));
        let Weights { read, write, flush, discard, .. } = self.weights;
        self.weights = Weights {
            read: read.min(10),
            write: write.max(60),
            flush: if has(Feature::Flushes) { flush.clamp(5, 15) } else { 0 },
            discard: if has(Feature::Discards) { discard.min(3) } else { 0 },
            zero: 0,
        };
        for (verb, weight) in &mut self.verbs {
            let least = match verb {
                Verb::Detach | Verb::Snapshot | Verb::DeleteSnapshot | Verb::DeleteVolume => 10,
                Verb::Collect => 5,
                _ => 0,
            };
            *weight = if *weight > 0 { (*weight).max(least) } else { 0 };
        }
    }

    /// How the next life ends.
    pub fn ending(&self, prng: &mut Prng) -> Ending {
        let boundaries = self.ops * self.lanes as u64 * 2;
        let after = if prng.chance(1, 6) { prng.range(1..30) } else { prng.range(1..boundaries.max(30)) };
        match prng.range(0..10) {
            0..3 => Ending::Close,
            3..7 => Ending::Death { how: Death::PowerCut(*prng.pick(&Unflushed::ALL)), after },
            _ => Ending::Death { how: Death::Kill, after },
        }
    }
}

/// What is much done while reads are slow: blocks and nodes cut loose, freed and used again.
struct Rush {
    read: Duration,
    /// Blocks of data, or nodes.
    of_data: bool,
    limits: Limits,
}

impl Rush {
    fn new(prng: &mut Prng) -> Self {
        Self {
            read: Duration::from_micros(*prng.pick(&[2_000, 20_000])),
            of_data: prng.chance(1, 2),
            limits: Limits { cache_bytes: prng.range(0..8) * 4096, dirty_nodes_max: prng.range(4..12) },
        }
    }

    fn adjust(self, options: &mut Options) {
        options.slow_reads = Some(self.read);
        options.latency_max = options.latency_max.min(Duration::from_micros(200));
        let has = |feature| !options.plan.without.contains(&feature);
        let more = |feature, weight: u64, least| if has(feature) { weight.max(least) } else { weight };
        let Weights { read, write, flush, discard, .. } = &mut options.weights;
        (*read, *write) = ((*read).max(20), (*write).max(40));
        *flush = more(Feature::Flushes, *flush, 15);
        *discard = more(Feature::Discards, *discard, if self.of_data { 25 } else { 5 });
        if self.of_data {
            options.hot_percent = options.hot_percent.max(80);
            return;
        }
        options.hot_percent = 0;
        if has(Feature::SmallLimits) {
            options.limits = self.limits;
        }
        if !options.tight {
            // Some leaves each, so that a walk takes long and every checkpoint supersedes several nodes.
            options.volume_sectors = 8192..16384;
        }
        // Small writes everywhere, and hardly anything but collections beside them.
        options.request_sectors_max = options.request_sectors_max.min(17);
        options.lanes =
            options.plan.lanes.map_or(options.lanes.max(4), |bound| options.lanes.min(bound.max(1)));
        options.lives = options.lives.min(2);
        options.ops = options.plan.ops / options.lives as u64 / options.lanes as u64 + 1;
        options.manager_pause = Duration::from_micros(100);
        let collecting = has(Feature::Collections);
        for (verb, weight) in &mut options.verbs {
            *weight = match verb {
                Verb::Collect if collecting => (*weight).max(20),
                Verb::CreateEmpty | Verb::Attach => *weight,
                Verb::Snapshot | Verb::DeleteSnapshot => (*weight).min(4),
                _ if collecting => 0,
                _ => *weight,
            };
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weights { read, write, flush, discard, zero } = self.weights;
        writeln!(
            f,
            "seed {}: disk {} MiB in {} KiB extents and {}-byte sectors{}, latency up to {:?}, {} of 1000 stuck{}",
            self.plan.seed,
            self.capacity >> 20,
            self.extent_bytes >> 10,
            self.sector_bytes,
            if self.tight { ", tight" } else { "" },
            self.latency_max,
            self.stuck_per_mille,
            self.slow_reads.map_or_else(String::new, |most| format!(", reads up to {most:?}")),
        )?;
        writeln!(
            f,
            "  cache {} KiB, {} dirty nodes; up to {} volumes of {}..{} sectors with {} snapshots",
            self.limits.cache_bytes >> 10,
            self.limits.dirty_nodes_max,
            self.volumes_max,
            self.volume_sectors.start,
            self.volume_sectors.end,
            self.snapshots_max,
        )?;
        writeln!(
            f,
            "  {} lanes and {} managers{}, {} lives of {} operations a lane, faults in {} % of lives, probes after {} %, \
             {} % of volumes unverified, accounts after {} %{}{}",
            self.lanes,
            self.managers,
            if self.sharing { " that share volumes" } else { "" },
            self.lives,
            self.ops,
            self.faulty_percent,
            self.probe_percent,
            self.unverified_percent,
            self.account_percent,
            if self.haunted { ", ghosts" } else { "" },
            if self.lying { ", lies" } else { "" },
        )?;
        writeln!(
            f,
            "  requests up to {} sectors ({} % hot, {} % FUA), read {read} write {write} flush {flush} \
             discard {discard} zero {zero}",
            self.request_sectors_max, self.hot_percent, self.fua_percent,
        )?;
        let verbs: Vec<String> = self
            .verbs
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(verb, weight)| format!("{verb:?} {weight}"))
            .collect();
        write!(f, "  managers: {}, pausing up to {:?}", verbs.join(", "), self.manager_pause)?;
        if self.deaths_while_opening { f.write_str("; deaths while opening") } else { Ok(()) }
    }
}
