//! `point`: one place of a history that was kept, again.

use crate::{
    bed::{Bed, Under},
    disk::Kind,
    errand::Task,
    media::{
        file,
        player::{Cut, End},
    },
    round::Round,
};
use anyhow::{Result, bail};
use parallax_store::mutants::Mutant;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The history.
    #[arg(long)]
    history: PathBuf,
    #[arg(long, default_value = "files")]
    task: Task,
    #[arg(long)]
    fs: Kind,
    #[arg(long)]
    seed: u64,
    #[arg(long, default_value_t = 3)]
    workers: u32,
    #[arg(long, default_value_t = 300)]
    operations: u64,
    /// Events before the cut.
    #[arg(long)]
    position: usize,
    /// Manner of the cut.
    #[arg(long)]
    end: End,
    /// Decides what is left.
    #[arg(long)]
    choice: u64,
    /// A bug of the store, switched on.
    #[arg(long, value_parser = super::mutant)]
    mutant: Option<Mutant>,
    /// The history is that of a disk without the store.
    #[arg(long, conflicts_with = "mutant")]
    without_store: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::prepare()?;
    let history = file::load(&args.history)?;
    let under = if args.without_store { Under::Nothing } else { Under::Store(args.mutant) };
    let round = Round {
        task: args.task,
        kind: args.fs,
        seed: args.seed,
        workers: args.workers,
        operations: args.operations,
        under,
    };
    let cut = Cut { position: args.position, end: args.end, seed: args.choice };
    let remains = round.player(&history).cut(cut);
    let (wrong, _) = round.examine(&Bed::start(under)?, remains, None)?;
    for wrong in &wrong {
        println!("{wrong}");
    }
    if !wrong.is_empty() {
        bail!("something promised was lost");
    }
    println!("nothing is wrong");
    Ok(())
}
