//! Lives of one pool in a row, and what came of them.

use crate::{
    faults::{Ailing, Lie},
    life::{Done, Life},
    model::Forest,
    options::{Ending, Options},
    plan::Plan,
    subject::{Death, Subject, System},
};
use parallax_block::Runtime;
use parallax_sim::{
    DiskOptions, Either, FaultCounts, FaultPlan, Image, Prng, Process, SimDisk, SimTails, Unflushed, World,
    either,
};
use parallax_store::{CreatePool, Environment, Name, Severity};
use parking_lot::Mutex;
use std::{fmt, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

/// What went wrong, and the story of the place where it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What.
    pub message: String,
    /// What had been done to that place, in order.
    pub story: Vec<String>,
}

impl Failure {
    /// Without a story.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), story: Vec::new() }
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Summary {
    pub requests: u64,
    pub operations: u64,
    pub snapshots: u64,
    pub clones: u64,
    pub reverts: u64,
    pub collections: u64,
    pub out_of_space: u64,
    pub closes: u64,
    pub kills: u64,
    pub power_cuts: u64,
    pub deaths_while_opening: u64,
    pub checks: u64,
    pub disk_requests: u64,
    pub faulty_lives: u64,
    pub faults: FaultCounts,
    pub probes: u64,
    pub refusals: u64,
    pub lies: u64,
    pub lies_noticed: u64,
    pub accounts: u64,
}

impl Summary {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.operations += other.operations;
        self.snapshots += other.snapshots;
        self.clones += other.clones;
        self.reverts += other.reverts;
        self.collections += other.collections;
        self.out_of_space += other.out_of_space;
        self.closes += other.closes;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.deaths_while_opening += other.deaths_while_opening;
        self.checks += other.checks;
        self.disk_requests += other.disk_requests;
        self.faulty_lives += other.faulty_lives;
        self.faults.add(&other.faults);
        self.probes += other.probes;
        self.refusals += other.refusals;
        self.lies += other.lies;
        self.lies_noticed += other.lies_noticed;
        self.accounts += other.accounts;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests ({} without space), {} operations ({} snapshots, {} clones, {} reverts, {} collections), \
             {} closes, {} kills, {} power cuts ({} deaths while opening), {} checks, {} disk requests, \
             {} lives with faults ({} requests failed, {} delayed, {} ghosts, {} lost, {} astray), {} disks that lied ({} \
             noticed), {} blocks damaged ({} times refused), {} times all space accounted for",
            self.requests,
            self.out_of_space,
            self.operations,
            self.snapshots,
            self.clones,
            self.reverts,
            self.collections,
            self.closes,
            self.kills,
            self.power_cuts,
            self.deaths_while_opening,
            self.checks,
            self.disk_requests,
            self.faulty_lives,
            self.faults.failed,
            self.faults.slowed,
            self.faults.ghosts,
            self.faults.lost,
            self.faults.misdirected,
            self.lies,
            self.lies_noticed,
            self.probes,
            self.refusals,
            self.accounts,
        )
    }
}

/// The outcome of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the seed decided.
    pub options: Options,
    /// What was done.
    pub summary: Summary,
    /// Hash of the whole history.
    pub history: u64,
    /// Virtual time that passed.
    pub elapsed: Duration,
    /// What went wrong.
    pub failure: Option<Failure>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.options)?;
        writeln!(f, "  {}", self.summary)?;
        writeln!(f, "  history {:016x} after {:?} of virtual time", self.history, self.elapsed)?;
        if let Some(failure) = &self.failure {
            writeln!(f, "  FAILED: {}", failure.message)?;
            for line in &failure.story {
                writeln!(f, "    {line}")?;
            }
            writeln!(f, "  again: cargo run -p parallax-drill -- {}", self.options.plan.arguments())?;
        }
        Ok(())
    }
}

/// What all lives of a run share.
pub(crate) struct Drill {
    pub(crate) world: World,
    pub(crate) options: Options,
    pub(crate) forest: Mutex<Forest>,
    pub(crate) summary: Mutex<Summary>,
    /// The disk of a script.
    pub(crate) disk: Mutex<Option<SimDisk>>,
    /// The disk of the life under way, if it meets faults.
    pub(crate) ailing: Mutex<Option<Ailing>>,
    pub(crate) system: Arc<dyn System>,
    pub(crate) tails: SimTails,
    entropy: Arc<dyn Fn() -> u128 + Send + Sync>,
}

/// Runs one seed, with everything that it decides.
pub fn run(seed: u64, ops: u64, system: Arc<dyn System>) -> Report {
    run_plan(&Plan::new(seed, ops), system)
}

/// Runs one seed, as far as the plan wants.
pub fn run_plan(plan: &Plan, system: Arc<dyn System>) -> Report {
    let world = World::new(plan.seed ^ plan.course << 48);
    let options = Options::derive(plan);
    let tails = SimTails::new(&world);
    let drill = Drill::new(&world, options.clone(), Forest::new(), tails, system);
    let failure = guarded(&world, drill.lives());
    let summary = *drill.summary.lock();
    Report { options, summary, history: world.history(), elapsed: world.now(), failure }
}

/// Runs `work` to its end; a panic or a deadlock is a failure like any other.
pub(crate) fn guarded(world: &World, work: impl Future<Output = Result<(), Failure>>) -> Option<Failure> {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| world.try_run(work)));
    // What a task holds may panic when it is dropped, after a panic.
    std::panic::catch_unwind(AssertUnwindSafe(|| world.end())).ok();
    match outcome {
        Ok(Ok(outcome)) => outcome.err(),
        Ok(Err(deadlock)) => Some(Failure::new(deadlock.to_string())),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Failure::new(format!("panic: {}", text.unwrap_or_else(|| "no message".to_owned()))))
        }
    }
}

impl Drill {
    pub(crate) fn new(
        world: &World,
        options: Options,
        forest: Forest,
        tails: SimTails,
        system: Arc<dyn System>,
    ) -> Arc<Self> {
        Arc::new(Self {
            tails,
            entropy: world.entropy(),
            world: world.clone(),
            options,
            forest: forest.into(),
            summary: Mutex::default(),
            disk: Mutex::default(),
            ailing: Mutex::default(),
            system,
        })
    }

    /// Shape and manners of the disk.
    pub(crate) fn disk_options(&self) -> DiskOptions {
        let latency = Duration::from_micros(5)..self.options.latency_max;
        let logical_block = self.options.sector_bytes;
        DiskOptions { latency, logical_block, ..DiskOptions::new(self.options.capacity) }
    }

    /// A pool on a disk that was used before: what is exposed without having been written is not zeroes.
    pub(crate) async fn format(&self) -> Result<SimDisk, Failure> {
        let disk = SimDisk::with_image(&self.world, self.disk_options(), Image::filled(0xee));
        let process = self.world.process("format");
        let options = CreatePool { extent_bytes: Some(self.options.extent_bytes), force: true };
        let created = self.system.create(&disk, options, &self.environment(&process)).await;
        created.map_err(|error| Failure::new(format!("formatting the pool: {error:?}")))?;
        process.kill();
        Ok(disk)
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Summary)) {
        change(&mut self.summary.lock());
    }

    pub(crate) fn environment(&self, process: &Process) -> Environment {
        Environment {
            runtime: Arc::new(process.clone()),
            tails: Arc::new(self.tails.clone()),
            host: Name::new("node-a").expect("a good name"),
            entropy: self.entropy.clone(),
        }
    }

    async fn lives(self: &Arc<Self>) -> Result<(), Failure> {
        let mut prng = self.world.prng();
        let mut disk = self.format().await?;
        for number in 0..=self.options.lives {
            let opened;
            (disk, opened) = self.open(disk, number, &mut prng).await?;
            let (process, pool) = opened;
            let life = Life::new(self, pool);
            life.verify().await?;
            if number == self.options.lives {
                life.empty().await?;
                return self.close(&life, disk, process).await.map(drop);
            }
            let lied;
            (disk, lied) = self.live(&life, disk, process, &mut prng).await?;
            drop(life);
            if let Some(lie) = lied {
                // What it said is not so: there is nothing to hold the next life to.
                return self.autopsy(&disk, lie).await;
            }
            if prng.chance(self.options.account_percent, 100) {
                self.account(&disk, &mut prng).await?;
            }
            if prng.chance(self.options.probe_percent, 100) {
                self.probe(&disk, &mut prng).await?;
            }
        }
        Ok(())
    }

    /// Lets a life happen and end. Answers with the disk that it leaves, and what that lied about.
    async fn live(
        self: &Arc<Self>,
        life: &Arc<Life>,
        disk: SimDisk,
        process: Process,
        prng: &mut Prng,
    ) -> Result<(SimDisk, Option<Lie>), Failure> {
        let ending = self.options.ending(prng);
        let faulty = self.ail(&disk, prng);
        let how = match ending {
            Ending::Close => Death::PowerCut(*prng.pick(&Unflushed::ALL)),
            Ending::Death { how, after } => {
                disk.crash_after(after);
                how
            }
        };
        let done = life.play(&process, &disk).await?;
        let healed = self.heal();
        let how = match how {
            // After a failed flush that forgets, a process that lives on would see what is gone.
            Death::Kill if healed.forgot => Death::PowerCut(*prng.pick(&Unflushed::ALL)),
            // Only this way what a flush has lied about is gone.
            Death::Kill | Death::PowerCut(_) if healed.lied == Some(Lie::Flush) => {
                Death::PowerCut(Unflushed::Lost)
            }
            how => how,
        };
        if healed.lied.is_some() {
            return Ok((self.leave_behind(disk, &process, how), healed.lied));
        }
        if done == Done::PowerLost || faulty {
            return Ok((self.die(disk, &process, how).await?, None));
        }
        if matches!(ending, Ending::Death { .. }) {
            // All work was done before the moment came: die idle, with whatever is under way by itself.
            return Ok((self.die(disk, &process, how).await?, None));
        }
        if prng.chance(1, 3) {
            disk.crash_after(prng.range(1..20));
            let closed = either(life.pool.close(), disk.power_lost()).await;
            if matches!(closed, Either::Right(())) {
                return Ok((self.die(disk, &process, how).await?, None));
            }
        }
        let disk = self.close(life, disk, process).await?;
        if prng.chance(1, 2) {
            self.tails.reboot();
            return Ok((disk.crash(Unflushed::Lost), None));
        }
        Ok((disk, None))
    }

    /// Closes a pool in order, and verifies that it is clean.
    pub(crate) async fn close(
        &self,
        life: &Arc<Life>,
        disk: SimDisk,
        process: Process,
    ) -> Result<SimDisk, Failure> {
        let begin = self.forest.lock().note(None, 0..0, "close");
        match either(life.pool.close(), self.world.sleep(Duration::from_secs(600))).await {
            Either::Left(Ok(())) => {}
            Either::Left(Err(error)) => return Err(Failure::new(format!("closing the pool: {error:?}"))),
            Either::Right(()) => return Err(life.hung("closing the pool", &disk)),
        }
        process.kill();
        {
            let mut forest = self.forest.lock();
            forest.note(None, 0..0, "closed");
            let Forest { writes, volumes, .. } = &mut *forest;
            volumes.values_mut().for_each(|volume| volume.flushed(begin, writes));
            forest.release_all();
        }
        self.count(|summary| {
            summary.closes += 1;
            summary.disk_requests += disk.stats().requests;
        });
        let disk = disk.handover();
        self.check(&disk, true).await?;
        Ok(disk)
    }

    /// The process ends without a word, and what it leaves is in order.
    async fn die(&self, disk: SimDisk, process: &Process, how: Death) -> Result<SimDisk, Failure> {
        let disk = self.leave_behind(disk, process, how);
        self.check(&disk, false).await?;
        Ok(disk)
    }

    /// The process ends without a word.
    fn leave_behind(&self, disk: SimDisk, process: &Process, how: Death) -> SimDisk {
        process.kill();
        self.system.died(how);
        self.count(|summary| {
            summary.disk_requests += disk.stats().requests;
            summary.faults.add(&disk.stats().faults);
        });
        match how {
            Death::PowerCut(unflushed) => {
                self.count(|summary| summary.power_cuts += 1);
                self.tails.reboot();
                self.forget(true, &format!("power cut, {unflushed:?}"));
                disk.crash(unflushed)
            }
            Death::Kill => {
                self.count(|summary| summary.kills += 1);
                self.forget(false, "process killed");
                disk.handover()
            }
        }
    }

    /// What the model makes of a death.
    pub(crate) fn forget(&self, power_cut: bool, what: &str) {
        let mut forest = self.forest.lock();
        forest.note(None, 0..0, what);
        forest.complete_doubts();
        forest.writes.give_up_pending();
        let Forest { writes, volumes, .. } = &mut *forest;
        for volume in volumes.values_mut() {
            if power_cut {
                volume.registers.power_cut(writes);
                volume.unflushed.clear();
            }
        }
        forest.release_all();
    }

    /// Opens the pool, after up to three deaths on the way.
    pub(crate) async fn open(
        &self,
        mut disk: SimDisk,
        number: usize,
        prng: &mut Prng,
    ) -> Result<(SimDisk, (Process, Arc<dyn Subject>)), Failure> {
        // The device is opened exclusively: whoever had it before has ended, with whatever it had asked for.
        disk.lay_ghosts();
        let deaths = if number > 0 && prng.chance(1, 3) { prng.range(1..4) } else { 0 };
        let deaths = if self.options.deaths_while_opening { deaths } else { 0 };
        for attempt in 0..=deaths {
            let process = self.world.process(&format!("life {number}.{attempt}"));
            let faulty = attempt < deaths && prng.chance(self.options.faulty_percent, 100);
            if faulty {
                let boundary_errors = [disk.stats().boundaries + prng.range(1..25)].into();
                self.sicken(&disk, FaultPlan { boundary_errors, ..FaultPlan::default() });
            } else if attempt < deaths {
                disk.crash_after(prng.range(1..25));
            }
            let environment = self.environment(&process);
            let limit = self.world.sleep(Duration::from_secs(600));
            let opened = either(
                self.system.open(&disk, environment, self.options.limits),
                either(disk.power_lost(), limit),
            )
            .await;
            let pool = match opened {
                Either::Left(opened) if faulty => {
                    let meant = opened.is_ok() || opened.is_err_and(|error| self.may_fail(&error));
                    self.heal();
                    if !meant {
                        return Err(Failure::new("a pool on a faulty disk calls itself damaged"));
                    }
                    self.count(|summary| summary.deaths_while_opening += 1);
                    disk = self.die(disk, &process, Death::Kill).await?;
                    continue;
                }
                Either::Left(Ok(pool)) => pool,
                Either::Left(Err(error)) => return Err(Failure::new(format!("opening the pool: {error:?}"))),
                Either::Right(Either::Left(())) => {
                    let how = if prng.chance(1, 3) {
                        Death::Kill
                    } else {
                        Death::PowerCut(*prng.pick(&Unflushed::ALL))
                    };
                    self.count(|summary| summary.deaths_while_opening += 1);
                    disk = self.die(disk, &process, how).await?;
                    continue;
                }
                Either::Right(Either::Right(())) => {
                    let mut story = self.world.pending_tasks();
                    story.extend(
                        disk.in_flight().into_iter().map(|request| format!("in flight: {request:?}")),
                    );
                    return Err(Failure { message: "opening the pool hangs".to_owned(), story });
                }
            };
            disk.crash_never();
            return Ok((disk, (process, pool)));
        }
        Err(Failure::new("the pool was never opened"))
    }

    /// Verifies the pool on a copy of the disk.
    pub(crate) async fn check(&self, disk: &SimDisk, clean: bool) -> Result<(), Failure> {
        let copy = SimDisk::with_image(&self.world, self.disk_options(), disk.crash_image(Unflushed::Kept));
        let found = self.system.check(&copy).await;
        let found = found.map_err(|error| Failure::new(format!("checking the pool: {error:?}")))?;
        self.count(|summary| summary.checks += 1);
        if found.iter().any(|finding| finding.severity == Severity::Damage) {
            let story = found.iter().map(|finding| format!("{finding:?}")).collect();
            let when = if clean { "after a clean close" } else { "after a death" };
            return Err(Failure { message: format!("the check finds damage {when}"), story });
        }
        Ok(())
    }
}
