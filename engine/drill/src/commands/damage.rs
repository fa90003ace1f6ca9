//! `damage`: one kind of damage to a pool at rest, to see what `check` says of it.

use parallax_device::{OpenOptions, Reactor, ReactorOptions, open_device};
use parallax_store::{Damage, damage};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The pool's file or device. Nobody else may have it open.
    #[arg(required_unless_present = "list")]
    pool: Option<PathBuf>,
    /// What to do to it.
    #[arg(long, required_unless_present = "list")]
    kind: Option<String>,
    /// Lists the kinds.
    #[arg(long)]
    list: bool,
}

/// What a kind is called here: `first-superblock`.
fn name(what: Damage) -> String {
    let mut name = String::new();
    for letter in format!("{what:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// Whether it was done.
pub(crate) fn run(arguments: &Args) -> bool {
    if arguments.list {
        Damage::ALL.into_iter().for_each(|what| println!("{}", name(what)));
        return true;
    }
    let (Some(pool), Some(kind)) = (&arguments.pool, &arguments.kind) else { return false };
    let Some(what) = Damage::ALL.into_iter().find(|what| name(*what) == *kind) else {
        eprintln!("there is no damage called {kind:?}; --list says what there is");
        return false;
    };
    match inflict(pool, what) {
        Ok(()) => {
            println!(
                "DAMAGED: {} now has {kind}. It was done on purpose, and it cannot be undone.",
                pool.display()
            );
            true
        }
        Err(error) => {
            eprintln!("{} was not damaged: {error}", pool.display());
            false
        }
    }
}

/// Holds the pool alone, so that no daemon can have it, and damages it.
fn inflict(pool: &Path, what: Damage) -> parallax_block::Result<()> {
    let reactor = Reactor::start("damage", ReactorOptions::default())?;
    let device = open_device(pool, &reactor, OpenOptions::default())?;
    let outcome = reactor.block_on(async move {
        damage(device.clone(), what).await?;
        device.flush().await
    });
    reactor.shutdown();
    outcome?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let mut names: Vec<String> = Damage::ALL.into_iter().map(name).collect();
        assert!(names.contains(&"first-superblock".to_owned()), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Damage::ALL.len());
    }
}
