//! One story, one file.

mod block;
mod daemon_killed;
mod daemon_restart;
mod delete_orders;
mod growth;
mod memory_limit;
mod plugin_killed;
pub mod postgres;
mod refusals;
mod smoke;
mod xfs;

use anyhow::Result;

use crate::stage::Stage;

/// Something that a user lives through.
#[derive(Debug)]
pub struct Story {
    /// How it is called on the command line.
    pub name: &'static str,
    /// What it shows, in one line.
    pub summary: &'static str,
    /// Tells it.
    pub run: fn(&Stage) -> Result<()>,
}

/// Every story, the shortest first.
pub const ALL: &[Story] = &[
    smoke::STORY,
    refusals::STORY,
    block::STORY,
    xfs::STORY,
    growth::STORY,
    delete_orders::STORY,
    daemon_restart::STORY,
    daemon_killed::STORY,
    memory_limit::STORY,
    plugin_killed::STORY,
    postgres::STORY,
];
