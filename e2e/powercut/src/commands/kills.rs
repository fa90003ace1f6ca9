//! `kills`: PostgreSQL on the real daemon's block device, while SIGKILL meets the daemon, and daemon and holder together.
//!
//! With a holder, a kill of the daemon is a pause: no client may see an error. When the holder dies too, the device is
//! gone and the database with it; everything is started again, and what was acknowledged must be there.

use crate::{
    disk::Kind,
    errand::{Task, Where, kept_text},
    guest::{Guest, Word},
    node::Node,
};
use anyhow::{Context, Result, anyhow, bail};
use parallax_sim::Prng;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Longest time between two kills, in milliseconds.
const PAUSE_MAX: u64 = 1200;
const VOLUME: &str = "database";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of `parallaxd` and `parallax`; that of this program.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Kills of the daemon alone.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Kills of daemon and holder together.
    #[arg(long, default_value_t = 5)]
    deaths: u32,
    /// Decides the moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The filesystem.
    #[arg(long, default_value = "ext4")]
    fs: Kind,
    /// Clients that commit.
    #[arg(long, default_value_t = 4)]
    clients: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::prepare()?;
    let own = std::env::current_exe()?;
    let programs =
        args.programs.clone().or_else(|| Some(own.parent()?.to_owned())).context("where is this program?")?;
    let mut trial = Trial {
        node: Node::new(&programs)?,
        args,
        prng: Prng::new(args.seed),
        kept: BTreeMap::new(),
        pause: Duration::ZERO,
    };
    match trial.run() {
        Ok(()) => Ok(()),
        Err(error) => {
            let (folder, tails) = trial.node.keep();
            println!("pool and log are kept in {}, tails in {}", folder.display(), tails.display());
            Err(error)
        }
    }
}

struct Trial<'a> {
    node: Node,
    args: &'a Args,
    prng: Prng,
    /// The last commit of each client that was acknowledged.
    kept: BTreeMap<u32, u64>,
    /// Longest time without any commit.
    pause: Duration,
}

impl Trial<'_> {
    fn run(&mut self) -> Result<()> {
        self.node.start_holder()?;
        self.node.start_daemon()?;
        let size = format!("{}MiB", self.args.fs.volume_bytes(Task::Database) >> 20);
        self.node.cli(&["create", VOLUME, "--size", &size])?;
        let at = self.attach()?;
        Guest::start(&at.arguments("format"))?.findings().context("making the database")?;

        self.kill_under_load(&at).context("while the daemon was killed alone")?;
        self.verify(&at)?;
        println!(
            "{} kills of the daemon: {} commits acknowledged, none lost, nothing failed; longest pause {:.1} s",
            self.args.kills,
            self.kept.values().sum::<u64>(),
            self.pause.as_secs_f64()
        );
        for death in 1..=self.args.deaths {
            self.die_under_load().with_context(|| format!("death {death}"))?;
        }
        println!(
            "{} deaths of daemon and holder: {} commits acknowledged in all, none lost",
            self.args.deaths,
            self.kept.values().sum::<u64>()
        );
        self.node.cli(&["detach", VOLUME])?;
        self.node.cli(&["check"]).map(drop)
    }

    fn attach(&self) -> Result<Where> {
        Ok(Where {
            task: Task::Database,
            fs: self.args.fs,
            seed: self.args.seed,
            workers: self.args.clients,
            operations: u64::from(u32::MAX),
            device: self.node.cli(&["attach", VOLUME])?.into(),
            mount: self.node.mount_point(),
        })
    }

    fn kill_under_load(&mut self, at: &Where) -> Result<()> {
        let mut guest = Guest::start(&at.arguments("load"))?;
        let kills = self.args.kills;
        let moments: Vec<u64> = (0..kills).map(|_| self.prng.range(100..PAUSE_MAX)).collect();
        let (begin, begun): (Sender<()>, Receiver<()>) = channel();
        let node = &mut self.node;
        let (kept, pause) = (&mut self.kept, &mut self.pause);
        thread::scope(|scope| {
            let killer = scope.spawn(move || -> Result<()> {
                // The first commit tells that the database runs.
                if begun.recv().is_err() {
                    return Ok(());
                }
                for moment in moments {
                    thread::sleep(Duration::from_millis(moment));
                    node.kill_daemon()?;
                    node.start_daemon()?;
                }
                Ok(())
            });
            let mut last = Instant::now();
            let load = (|| {
                while let Some(word) = guest.word()? {
                    match word {
                        Word::Promise { worker, number } => {
                            kept.insert(worker, number);
                            if number > 1 {
                                *pause = (*pause).max(last.elapsed());
                            }
                            last = Instant::now();
                            // Nobody waits any more once the killer is through.
                            let _ = begin.send(());
                            if killer.is_finished() { guest.stop()? } else { guest.go_on()? }
                        }
                        Word::Done => guest.go_on()?,
                        Word::Wrong(text) | Word::Error(text) => bail!(text),
                    }
                }
                guest.finish()
            })();
            drop(begin);
            killer.join().unwrap_or_else(|_| bail!("a thread has panicked")).and(load)
        })
    }

    fn die_under_load(&mut self) -> Result<()> {
        let at = self.attach()?;
        let mut guest = Guest::start(&at.arguments("load"))?;
        let moment = Duration::from_millis(self.prng.range(100..PAUSE_MAX));
        let dying = AtomicBool::new(false);
        let mut node = Some(&mut self.node);
        let kept = &mut self.kept;
        thread::scope(|scope| {
            let mut killer = None;
            let ended = loop {
                match guest.word() {
                    Ok(Some(Word::Promise { worker, number })) => {
                        kept.insert(worker, number);
                        if let Some(node) = node.take() {
                            let dying = &dying;
                            killer = Some(scope.spawn(move || -> Result<()> {
                                thread::sleep(moment);
                                dying.store(true, SeqCst);
                                node.kill_holder()?;
                                node.kill_daemon()
                            }));
                        }
                        if let Err(error) = guest.go_on() {
                            break error;
                        }
                    }
                    Ok(other) => break anyhow!("the load ended: {other:?}"),
                    Err(error) => break error,
                }
            };
            let early = !dying.load(SeqCst);
            if let Some(killer) = killer {
                killer.join().unwrap_or_else(|_| bail!("a thread has panicked"))?;
            }
            // Otherwise the database has lost its disk, as it had to.
            if early { Err(ended.context("the load ended before anything died")) } else { Ok(()) }
        })?;
        guest.kill()?;
        self.node.start_holder()?;
        self.node.start_daemon()?;
        let at = self.attach()?;
        self.verify(&at)
    }

    fn verify(&self, at: &Where) -> Result<()> {
        let mut arguments = at.arguments("verify");
        arguments.push(format!("--kept={}", kept_text(&self.kept, &self.kept)));
        let wrong = Guest::start(&arguments)?.findings()?;
        if !wrong.is_empty() {
            bail!("{}", wrong.join("\n"));
        }
        Ok(())
    }
}
