//! One round: a load is recorded, then its history is cut off at many places, and each rest is looked at.

use crate::{
    bed::{Bed, Open, Under},
    disk::{Disk, Kind},
    errand::{Task, Where, kept_text},
    guest::{Guest, Word},
    media::{
        Image,
        history::{History, Memory},
        player::{Cut, End, Player, Remains},
        recorder::Recorder,
    },
};
use anyhow::{Context, Result, bail};
use parallax_sim::Prng;
use parallax_store::SnapshotId;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Pause between two snapshots that are taken beside the load.
const DISTURBANCE: Duration = Duration::from_millis(60);

/// One cut in so many is followed by another.
const TWICE_ONE_IN: u64 = 4;
/// Snapshots of one load that are looked at: those that are kept.
const SNAPSHOTS_LOOKED_AT: usize = 2;

/// What a round is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) task: Task,
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    pub(crate) workers: u32,
    pub(crate) operations: u64,
    pub(crate) under: Under,
}

/// A cut after which something is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The history that was cut, if it is that of a recovery.
    pub(crate) recovery: Option<History>,
    pub(crate) cut: Cut,
    pub(crate) wrong: Vec<String>,
}

/// A load that has run.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) history: History,
    /// Snapshots of the running filesystem that were cloned and looked at.
    pub(crate) snapshots: usize,
}

/// What came of a round.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) flushes: usize,
    pub(crate) points: usize,
    pub(crate) kills: usize,
    /// Points after which the power was cut once more.
    pub(crate) twice: usize,
    pub(crate) snapshots: usize,
    /// Unflushed writes at all points together.
    pub(crate) unflushed: usize,
    pub(crate) failures: Vec<Failure>,
    pub(crate) recorded_in: Duration,
    pub(crate) looked_in: Duration,
}

impl Round {
    /// Goes through a history of this round.
    pub(crate) fn player<'a>(&self, history: &'a History) -> Player<'a> {
        Player::new(history, Disk::new(self.kind, self.seed).piece())
    }

    fn errand(&self, device: PathBuf, mount: PathBuf) -> Where {
        Where {
            task: self.task,
            fs: self.kind,
            seed: self.seed,
            workers: self.workers,
            operations: self.operations,
            device,
            mount,
        }
    }

    /// Runs the load and gives its history. Snapshots that were taken meanwhile are looked at as well.
    pub(crate) fn record(&self) -> Result<Recorded> {
        let bed = Bed::start(self.under)?;
        let disk = Disk::new(self.kind, self.seed);
        let boot = Prng::new(self.seed).next_u128();
        let image = Image::new(bed.disk_bytes(self.kind.volume_bytes(self.task)));
        let recorder = bed.disk(image, Memory::new(), boot, disk.logical_block);
        bed.format(&recorder, self.kind.volume_bytes(self.task), disk.logical_block)?;
        let open = bed.open(&recorder)?;
        let at = self.errand(open.device().into(), bed.mount_point());
        let made = Guest::start(&at.arguments("format"))?.findings().context("making the filesystem");
        made.and_then(|_| open.close())?;

        recorder.record(Prng::new(self.seed ^ 0xde1a));
        let open = bed.open(&recorder)?;
        let at = self.errand(open.device().into(), bed.mount_point());
        let stop = AtomicBool::new(false);
        let (history, taken) = thread::scope(|scope| {
            let disturber = scope.spawn(|| disturb(&open, &recorder, &stop));
            let history = load(&at, &recorder);
            stop.store(true, SeqCst);
            let taken = disturber.join().unwrap_or_else(|_| bail!("a thread has panicked"));
            taken.and_then(|taken| Ok((history?, taken)))
        })
        .context("the load failed while everything ran")?;

        let recent = taken.iter().rev().take(SNAPSHOTS_LOOKED_AT);
        for snapshot in recent.clone() {
            let wrong = open.with_clone(snapshot.id, |device| {
                let at = self.errand(device.into(), bed.mount_point());
                verify(&at, &kept_text(&snapshot.before, &snapshot.after))
            })?;
            if let Some(wrong) = wrong.first() {
                bail!("snapshot {}: {wrong}", snapshot.id);
            }
        }
        let snapshots = recent.count();
        open.close()?;
        Ok(Recorded { history, snapshots })
    }

    /// Places at which to cut: every flush in turn, in any manner.
    pub(crate) fn cuts(&self, history: &History, points: usize) -> Vec<Cut> {
        Self::cuts_of(history, points, &mut Prng::new(self.seed ^ 0xc075))
    }

    fn cuts_of(history: &History, points: usize, prng: &mut Prng) -> Vec<Cut> {
        let flushes = history.flushes();
        let mut cuts: Vec<Cut> = (0..points)
            .filter(|_| !flushes.is_empty())
            .map(|point| {
                // More points than flushes begin anew; fewer are spread evenly.
                let which = match points {
                    1 => prng.index(flushes.len()),
                    _ if points > flushes.len() => point % flushes.len(),
                    _ => point * flushes.len() / points,
                };
                let before = which.checked_sub(1).map_or(0, |before| flushes[before] + 1);
                let position = match prng.range(0..8) {
                    // All that this flush was to cover is open.
                    0..4 => flushes[which],
                    4 => flushes[which] + 1,
                    _ => prng.range(before as u64..flushes[which] as u64 + 1) as usize,
                };
                let end = *prng.pick(&[
                    End::Nothing,
                    End::Everything,
                    End::Some,
                    End::Some,
                    End::Torn,
                    End::Torn,
                    End::ButOne,
                    End::Kill,
                ]);
                Cut { position, end, seed: prng.next_u64() }
            })
            .collect();
        cuts.sort_by_key(|cut| cut.position);
        cuts
    }

    /// Looks at the rests of a history after all these cuts, on `jobs` threads. Ends early after some failures.
    pub(crate) fn look(
        &self,
        history: &History,
        cuts: &[Cut],
        jobs: usize,
        failures_max: usize,
    ) -> Result<Outcome> {
        let mut outcome = Outcome { flushes: history.flushes().len(), ..Outcome::default() };
        let begun = Instant::now();
        let (send, receive) = sync_channel::<(Cut, Remains)>(jobs);
        let receive = Mutex::new(receive);
        let failures = Mutex::new(Vec::new());
        let full = || failures.lock().len() >= failures_max;
        thread::scope(|scope| {
            let lookers: Vec<_> =
                (0..jobs).map(|_| scope.spawn(|| self.look_at_all(&receive, &failures))).collect();
            let mut player = self.player(history);
            for cut in cuts {
                let remains = player.cut(*cut);
                if full() || send.send((*cut, remains)).is_err() {
                    break;
                }
                outcome.points += 1;
                outcome.kills += usize::from(cut.end == End::Kill);
                outcome.twice += usize::from(once_more(*cut));
                outcome.unflushed += player.unflushed();
            }
            drop(send);
            lookers
                .into_iter()
                .try_for_each(|looker| looker.join().unwrap_or_else(|_| bail!("a thread has panicked")))
        })?;
        outcome.failures = failures.into_inner();
        outcome.looked_in = begun.elapsed();
        Ok(outcome)
    }

    fn look_at_all(
        &self,
        points: &Mutex<Receiver<(Cut, Remains)>>,
        failures: &Mutex<Vec<Failure>>,
    ) -> Result<()> {
        let mut bed = Bed::start(self.under)?;
        loop {
            let next = points.lock().recv();
            let Ok((cut, remains)) = next else { return Ok(()) };
            if let Some(failure) = self.look_twice(&mut bed, cut, remains)? {
                failures.lock().push(failure);
            }
        }
    }

    /// Looks at what is left. After some cuts the power goes once more while that is being recovered.
    fn look_twice(&self, bed: &mut Bed, cut: Cut, remains: Remains) -> Result<Option<Failure>> {
        let mut prng = Prng::new(cut.seed ^ 0x2ec0);
        // The history of a recovery begins with the promises that were kept before it.
        let promises = remains.promises.len();
        let (wrong, recovery) = self.attempt(bed, remains, once_more(cut).then(|| prng.fork()))?;
        if !wrong.is_empty() {
            return Ok(Some(Failure { recovery: None, cut, wrong }));
        }
        let Some(recovery) = recovery else { return Ok(None) };
        let Some(mut cut) = Self::cuts_of(&recovery, 1, &mut prng).pop() else { return Ok(None) };
        cut.position = cut.position.max(promises);
        let remains = self.player(&recovery).cut(cut);
        let (wrong, _) = self.attempt(bed, remains, None)?;
        Ok((!wrong.is_empty()).then_some(Failure { recovery: Some(recovery), cut, wrong }))
    }

    /// What is wrong, errors too; and the history of the recovery if it is wanted.
    fn attempt(
        &self,
        bed: &mut Bed,
        remains: Remains,
        record: Option<Prng>,
    ) -> Result<(Vec<String>, Option<History>)> {
        match self.examine(bed, remains, record) {
            Ok(found) => Ok(found),
            Err(error) => {
                // Something may still be attached.
                *bed = Bed::start(self.under)?;
                Ok((vec![format!("{error:#}")], None))
            }
        }
    }

    /// Starts the store on what is left, mounts, compares, checks. What is wrong.
    pub(crate) fn examine(
        &self,
        bed: &Bed,
        remains: Remains,
        record: Option<Prng>,
    ) -> Result<(Vec<String>, Option<History>)> {
        let sector = Disk::new(self.kind, self.seed).logical_block;
        let disk = bed.disk(remains.image, remains.tails, remains.boot, sector);
        let mut wrong = bed.check(&disk).context("the pool as it was left")?;
        if let Some(delays) = record {
            disk.record(delays);
            remains.promises.iter().for_each(|(worker, number)| disk.promise(*worker, *number));
        }
        let open = bed.open(&disk).context("the pool as it was left")?;
        let at = self.errand(open.device().into(), bed.mount_point());
        wrong.extend(verify(&at, &kept_text(&remains.promises, &remains.promises))?);
        open.close()?;
        let recovery = disk.take();
        wrong.extend(bed.check(&disk).context("the pool afterwards")?);
        Ok((wrong, recovery))
    }
}

/// Whether the power goes once more while this cut is being recovered.
fn once_more(cut: Cut) -> bool {
    cut.seed.is_multiple_of(TWICE_ONE_IN)
}

/// A snapshot, with the promises that were kept before it was asked for and after it was there.
struct Taken {
    id: SnapshotId,
    before: BTreeMap<u32, u64>,
    after: BTreeMap<u32, u64>,
}

/// Takes snapshots until it is told to stop.
fn disturb(open: &Open<'_>, recorder: &Recorder, stop: &AtomicBool) -> Result<Vec<Taken>> {
    let mut taken = Vec::new();
    while !stop.load(SeqCst) {
        let before = recorder.promises();
        if let Some(id) = open.disturb(taken.len() as u64)? {
            taken.push(Taken { id, before, after: recorder.promises() });
        }
        thread::sleep(DISTURBANCE);
    }
    Ok(taken)
}

/// Lets the load run to its end; its history ends before it unmounts.
fn load(at: &Where, recorder: &Recorder) -> Result<History> {
    let mut guest = Guest::start(&at.arguments("load"))?;
    while let Some(word) = guest.word()? {
        match word {
            Word::Promise { worker, number } => recorder.promise(worker, number),
            Word::Done => break,
            Word::Wrong(text) | Word::Error(text) => bail!(text),
        }
        guest.go_on()?;
    }
    let history = recorder.take().context("nothing was recorded")?;
    guest.go_on()?;
    guest.finish()?;
    Ok(history)
}

/// What is wrong on a block device.
fn verify(at: &Where, kept: &str) -> Result<Vec<String>> {
    let mut arguments = at.arguments("verify");
    arguments.push(format!("--kept={kept}"));
    Guest::start(&arguments)?.findings()
}
