//! Every named door of the repository: `cargo xtask VERB`.
//!
//! What a claim of the documentation rests on can be repeated by one of these verbs. Each verb is one file in
//! `verbs/`; the rooms beside it are what they share: `build` makes programs that no package offers, `image`
//! makes container images without a registry, `cluster` runs a real one-node Kubernetes.
//!
//! Invariants:
//! * Nothing outside the repository is changed except the cache, the state directory, missing Debian packages
//!   and, while a cluster runs, one bridge and one cgroup.
//! * A verb that fails says what failed, where its log is, and exits with a status other than zero.
#![forbid(unsafe_code)]

mod build;
mod cluster;
mod image;
mod local;
mod node;
mod verbs;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::world::World;

/// Builds, runs and proves Parallax.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run everything that continuous integration runs, then print one line with the sums.
    Ci(verbs::ci::Args),
    /// Start a cluster, install Parallax and tell its story step by step.
    Demo(verbs::demo::Args),
    /// Start, stop or look at the one-node development cluster.
    #[command(subcommand)]
    Cluster(verbs::cluster::Verb),
    /// Tests against the real daemon, the real driver and the real cluster.
    #[command(subcommand)]
    E2e(verbs::e2e::Verb),
    /// Measure Parallax beside its peers and write the tables of docs/benchmarks.md.
    Bench(verbs::bench::Args),
    /// Run the engine inside the simulator, from seeds.
    Drill(verbs::drill::Args),
    /// Make bad inputs for everything that reads bytes from outside.
    Fuzz(verbs::fuzz::Args),
    /// Look at every state of the many-host protocol's models.
    Model(verbs::pass_on::Args),
    /// Render manifests/ from the chart.
    Manifests(verbs::manifests::Args),
    /// Install what a fresh machine lacks and build what is cached.
    Setup(verbs::setup::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = World::discover().and_then(|world| match cli.verb {
        Verb::Ci(args) => verbs::ci::run(&world, &args),
        Verb::Demo(args) => verbs::demo::run(&world, &args),
        Verb::Cluster(verb) => verbs::cluster::run(&world, &verb),
        Verb::E2e(verb) => verbs::e2e::run(&world, &verb),
        Verb::Bench(args) => verbs::bench::run(&world, &args),
        Verb::Drill(args) => verbs::drill::run(&world, &args),
        Verb::Fuzz(args) => verbs::fuzz::run(&world, &args),
        Verb::Model(args) => verbs::model::run(&world, &args),
        Verb::Manifests(args) => verbs::manifests::run(&world, &args),
        Verb::Setup(args) => verbs::setup::run(&world, &args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            parallax_e2e::say::failure(&error);
            ExitCode::FAILURE
        }
    }
}
