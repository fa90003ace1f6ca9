//! A stand-in for the store that is right by being simple, and wrong on request: it tries the drill itself.
//!
//! Its state is a few maps in memory that outlive every death; requests wait for one write of the simulated
//! disk, so that deaths fall between their beginning and their end. With a [`Bug`] it breaks exactly one promise,
//! and the drill has to notice.

mod pool;
mod state;

use crate::subject::{Death, Subject, System};
use parallax_block::{BoxFuture, Result};
use parallax_sim::{Prng, SimDisk};
use parallax_store::{CreatePool, Environment, Finding, Limits};
use parking_lot::Mutex;
use state::State;
use std::sync::Arc;

/// A promise to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A killed process loses acknowledged writes that no flush covered.
    KillLosesAcknowledged,
    /// A flush makes nothing durable.
    FlushDoesNothing,
    /// FUA is ignored.
    FuaIsVolatile,
    /// A snapshot is copied in two steps.
    SnapshotTears,
    /// Snapshots of a set are taken one after the other.
    SetIsNoInstant,
    /// A snapshot shows writes to its volume for ever.
    SnapshotFollowsVolume,
    /// Discarded blocks keep their bytes.
    DiscardForgets,
    /// The rest of a block is cleared by a write to a part of it.
    PartialWriteClearsBlock,
    /// A revert leaves the last block as it was.
    RevertIsShort,
    /// A deleted snapshot is back after a power cut.
    DeleteComesBack,
    /// The differences of the last blocks are not told.
    DiffIsShort,
    /// Space of deleted volumes is not given back.
    DeleteLeaks,
    /// A write now and then lands one sector further.
    WriteIsMisdirected,
    /// Numbers of deleted snapshots are given again.
    NumbersComeBack,
    /// A flush now and then is never answered.
    FlushHangs,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::KillLosesAcknowledged,
        Self::FlushDoesNothing,
        Self::FuaIsVolatile,
        Self::SnapshotTears,
        Self::SetIsNoInstant,
        Self::SnapshotFollowsVolume,
        Self::DiscardForgets,
        Self::PartialWriteClearsBlock,
        Self::RevertIsShort,
        Self::DeleteComesBack,
        Self::DiffIsShort,
        Self::DeleteLeaks,
        Self::WriteIsMisdirected,
        Self::NumbersComeBack,
        Self::FlushHangs,
    ];
}

/// The stand-in; a new one for every run.
pub struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    bug: Option<Bug>,
    state: Mutex<State>,
    prng: Mutex<Prng>,
}

impl Fake {
    /// Right, or with one bug.
    pub fn new(bug: Option<Bug>) -> Self {
        let (state, prng) = (Mutex::new(State::default()), Mutex::new(Prng::new(4711)));
        Self { shared: Arc::new(Shared { bug, state, prng }) }
    }
}

impl Shared {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

impl System for Fake {
    fn create<'a>(
        &'a self,
        _disk: &'a SimDisk,
        _options: CreatePool,
        _environment: &'a Environment,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn open(
        &self,
        disk: &SimDisk,
        environment: Environment,
        _limits: Limits,
    ) -> BoxFuture<'_, Result<Arc<dyn Subject>>> {
        let pool = pool::Pool::new(self.shared.clone(), disk.clone(), environment);
        Box::pin(async move {
            pool.touch().await;
            Ok(Arc::new(pool) as Arc<dyn Subject>)
        })
    }

    fn check(&self, _disk: &SimDisk) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn died(&self, death: Death) {
        let (mut state, mut prng) = (self.shared.state.lock(), self.shared.prng.lock());
        match death {
            Death::PowerCut(_) => state.power_cut(&mut prng, self.shared.has(Bug::DeleteComesBack)),
            Death::Kill => state.kill(&mut prng, self.shared.has(Bug::KillLosesAcknowledged)),
        }
    }
}
