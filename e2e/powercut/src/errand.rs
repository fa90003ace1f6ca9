//! What a guest is sent for.

use crate::{
    database,
    disk::{Disk, Kind},
    guest::{STOP, Word},
    load::{self, Kept, Plan},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// What runs on the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Task {
    /// Operations on files and names.
    Files,
    /// Transactions of PostgreSQL.
    Database,
}

impl Task {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Database => "database",
        }
    }
}

/// Arguments of every errand.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Where {
    #[arg(long)]
    pub(crate) task: Task,
    #[arg(long)]
    pub(crate) fs: Kind,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) workers: u32,
    #[arg(long)]
    pub(crate) operations: u64,
    #[arg(long)]
    pub(crate) device: PathBuf,
    #[arg(long)]
    pub(crate) mount: PathBuf,
}

impl Where {
    fn disk(&self) -> Disk {
        Disk::new(self.fs, self.seed)
    }

    fn plan(&self) -> Plan {
        Plan { seed: self.seed, operations: self.operations }
    }

    /// As a command line.
    pub(crate) fn arguments(&self, errand: &str) -> Vec<String> {
        let texts = [
            errand.to_owned(),
            format!("--task={}", self.task.name()),
            format!("--fs={}", self.fs.name()),
            format!("--seed={}", self.seed),
            format!("--workers={}", self.workers),
            format!("--operations={}", self.operations),
            format!("--device={}", self.device.display()),
            format!("--mount={}", self.mount.display()),
        ];
        texts.into()
    }
}

#[derive(clap::Subcommand)]
pub(crate) enum Errand {
    /// Make a filesystem with a directory for each worker.
    Format(Where),
    /// Let the workers run.
    Load(Where),
    /// Look at what is left.
    Verify {
        #[command(flatten)]
        at: Where,
        /// Promises of each worker that were kept: `worker:surely:perhaps,...`.
        #[arg(long, default_value = "")]
        kept: String,
    },
}

/// Says a word, and waits until it was heard if it is one that has an answer. Whether to go on.
fn say(word: &Word) -> Result<bool> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().map_err(|_| anyhow::anyhow!("another worker has panicked"))?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", word.line())?;
    output.flush()?;
    if matches!(word, Word::Promise { .. } | Word::Done) {
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            bail!("nobody listens any more");
        }
        return Ok(line.trim() != STOP);
    }
    Ok(true)
}

/// Does an errand; says what went wrong.
pub(crate) fn run(errand: &Errand) -> Result<()> {
    let outcome = match errand {
        Errand::Format(at) => format(at),
        Errand::Load(at) => load(at),
        Errand::Verify { at, kept } => parse(kept).and_then(|kept| verify(at, &kept)),
    };
    if let Err(error) = &outcome {
        say(&Word::Error(format!("{error:#}")))?;
    }
    outcome
}

/// Promises as a guest is told of them: what was kept for sure, and what may have been.
pub(crate) fn kept_text(surely: &BTreeMap<u32, u64>, perhaps: &BTreeMap<u32, u64>) -> String {
    let text = |(worker, most): (&u32, &u64)| {
        format!("{worker}:{}:{most}", surely.get(worker).copied().unwrap_or_default())
    };
    perhaps.iter().map(text).collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> Result<BTreeMap<u32, Kept>> {
    let workers = text.split(',').filter(|worker| !worker.is_empty());
    workers
        .map(|worker| {
            let numbers: Vec<u64> = worker.split(':').map(str::parse).collect::<Result<_, _>>()?;
            let [worker, surely, perhaps] = numbers[..] else { bail!("`worker:surely:perhaps` is wanted") };
            Ok((u32::try_from(worker)?, Kept { surely, perhaps }))
        })
        .collect()
}

fn format(at: &Where) -> Result<()> {
    let disk = at.disk();
    disk.make(&at.device)?;
    disk.mount(&at.device, &at.mount)?;
    match at.task {
        Task::Files => {
            (0..at.workers)
                .try_for_each(|worker| std::fs::create_dir(at.mount.join(load::folder(worker))))?;
        }
        Task::Database => database::make(&at.mount)?,
    }
    disk.unmount(&at.mount)
}

fn load(at: &Where) -> Result<()> {
    let disk = at.disk();
    disk.mount(&at.device, &at.mount)?;
    match at.task {
        Task::Files => {
            work(at)?;
            say(&Word::Done)?;
        }
        Task::Database => {
            let promise = |worker, number| say(&Word::Promise { worker, number });
            database::run(at.plan(), at.workers, &at.mount, promise, || say(&Word::Done).map(drop))?;
        }
    }
    disk.unmount(&at.mount)
}

fn work(at: &Where) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at.workers)
            .map(|worker| {
                let promise = move |number| say(&Word::Promise { worker, number }).map(drop);
                scope.spawn(move || load::run(at.plan(), worker, &at.mount, promise))
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker has panicked")))
    })
}

fn verify(at: &Where, kept: &BTreeMap<u32, Kept>) -> Result<()> {
    let disk = at.disk();
    disk.mount(&at.device, &at.mount)?;
    let wrong = match at.task {
        Task::Files => (0..at.workers)
            .map(|worker| {
                load::verify(at.plan(), worker, kept.get(&worker).copied().unwrap_or_default(), &at.mount)
            })
            .collect::<Result<Vec<_>>>()
            .map(|wrong| wrong.concat()),
        Task::Database => database::verify(at.workers, kept, &at.mount),
    };
    let written = write_again(&at.mount);
    disk.unmount(&at.mount)?;
    for text in wrong? {
        say(&Word::Wrong(text))?;
    }
    if let Err(error) = written.and_then(|()| disk.verify(&at.device)) {
        say(&Word::Wrong(format!("{error:#}")))?;
    }
    Ok(())
}

/// What was left must take new files.
fn write_again(mount: &Path) -> Result<()> {
    let path = mount.join("after-the-power-cut");
    std::fs::write(&path, [7; 20_000]).context("writing after the power cut")?;
    std::fs::File::open(&path)?.sync_all().context("syncing after the power cut")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_told_as_they_are() {
        let text = kept_text(&BTreeMap::from([(0, 4)]), &BTreeMap::from([(0, 5), (2, 1)]));
        let kept = BTreeMap::from([(0, Kept { surely: 4, perhaps: 5 }), (2, Kept { surely: 0, perhaps: 1 })]);
        assert_eq!(parse(&text).unwrap(), kept);
        assert!(parse("0:1").is_err());
    }
}
