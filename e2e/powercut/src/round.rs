//! One round: a load is recorded, then its history is cut off at many places, and each rest is looked at.

use crate::{
    bed::{Bed, Under},
    disk::{Disk, Kind},
    errand::{Task, Where, kept_text},
    guest::{Guest, Word},
    media::{
        Image,
        history::{History, Memory},
        player::{Cut, End, Player, Remains},
    },
};
use anyhow::{Context, Result, bail};
use parallax_sim::Prng;
use parking_lot::Mutex;
use std::{
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
    pub(crate) cut: Cut,
    pub(crate) wrong: Vec<String>,
}

/// What came of a round.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) flushes: usize,
    pub(crate) points: usize,
    pub(crate) kills: usize,
    /// Unflushed writes at all points together.
    pub(crate) unflushed: usize,
    pub(crate) failures: Vec<Failure>,
    pub(crate) recorded_in: Duration,
    pub(crate) looked_in: Duration,
}

impl Round {
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

    /// Runs the load and gives its history.
    pub(crate) fn record(&self) -> Result<History> {
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
        let history = thread::scope(|scope| {
            let disturber = scope.spawn(|| {
                let mut turn = 0;
                while !stop.load(SeqCst) {
                    open.disturb(turn)?;
                    turn += 1;
                    thread::sleep(DISTURBANCE);
                }
                Ok(())
            });
            let history = Guest::start(&at.arguments("load")).and_then(|mut guest| {
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
            });
            stop.store(true, SeqCst);
            let disturbed: Result<()> = disturber.join().unwrap_or_else(|_| bail!("a thread has panicked"));
            disturbed.and(history)
        });
        let history = history.context("the load failed while everything ran")?;
        open.close()?;
        Ok(history)
    }

    /// Places at which to cut: every flush in turn, in any manner.
    pub(crate) fn cuts(&self, history: &History, points: usize) -> Vec<Cut> {
        let flushes = history.flushes();
        let mut prng = Prng::new(self.seed ^ 0xc075);
        let mut cuts: Vec<Cut> = (0..points)
            .filter(|_| !flushes.is_empty())
            .map(|point| {
                // More points than flushes begin anew; fewer are spread evenly.
                let which = match points > flushes.len() {
                    true => point % flushes.len(),
                    false => point * flushes.len() / points,
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
            let mut player = Player::new(history);
            for cut in cuts {
                let remains = player.cut(*cut);
                outcome.points += 1;
                outcome.kills += usize::from(cut.end == End::Kill);
                outcome.unflushed += player.unflushed();
                if full() || send.send((*cut, remains)).is_err() {
                    break;
                }
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
            let wrong = match self.examine(&bed, remains) {
                Ok(wrong) => wrong,
                Err(error) => {
                    // Something may still be attached.
                    bed = Bed::start(self.under)?;
                    vec![format!("{error:#}")]
                }
            };
            if !wrong.is_empty() {
                failures.lock().push(Failure { cut, wrong });
            }
        }
    }

    /// Starts the store on what is left, mounts, compares, checks. What is wrong.
    pub(crate) fn examine(&self, bed: &Bed, remains: Remains) -> Result<Vec<String>> {
        let kept = kept_text(&remains.promises);
        let sector = Disk::new(self.kind, self.seed).logical_block;
        let disk = bed.disk(remains.image, remains.tails, remains.boot, sector);
        let mut wrong = bed.check(&disk).context("the pool as it was left")?;
        let open = bed.open(&disk).context("the pool as it was left")?;
        let at = self.errand(open.device().into(), bed.mount_point());
        let mut arguments = at.arguments("verify");
        arguments.push(format!("--kept={kept}"));
        wrong.extend(Guest::start(&arguments)?.findings()?);
        open.close()?;
        wrong.extend(bed.check(&disk).context("the pool afterwards")?);
        Ok(wrong)
    }
}
