//! completions, man.

use crate::{
    args::Arguments,
    failure::{Failure, Outcome},
};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// Prints completions.
pub(crate) fn completions(shell: Shell) {
    clap_complete::generate(shell, &mut Arguments::command(), "parallax", &mut std::io::stdout());
}

/// Writes a page for every command.
pub(crate) fn man(directory: &Path) -> Outcome {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory))
        .map_err(|error| {
            Failure::from(error).during(format!("writing man pages into {}", directory.display()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        man(directory.path()).unwrap();
        for page in ["parallax.1", "parallax-create.1", "parallax-pool-create.1", "parallax-snap-label.1"] {
            let text = std::fs::read_to_string(directory.path().join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}
