//! Keeps nodes as they are while somebody walks over trees that go on changing.
//!
//! Invariants:
//! * While a hold stands, no block of metadata is used again that was let go since the hold was taken.
//! * Space comes first: a pool that runs out of it revokes all holds. Whoever meets a node that does not verify
//!   asks whether its hold still stands before it believes that the node is damaged.

use super::Space;
use std::sync::Arc;

/// Ends when it is dropped.
pub(crate) struct NodeHold {
    space: Arc<Space>,
    round: u64,
}

/// Holds of one pool.
#[derive(Default)]
pub(super) struct Holds {
    /// Those of this round.
    count: u64,
    /// Rises when all are revoked.
    round: u64,
}

impl Holds {
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    /// Ends all of them.
    pub(super) fn revoke(&mut self) {
        self.count = 0;
        self.round += 1;
    }
}

impl Space {
    /// Keeps nodes from being used again.
    pub(crate) fn hold_nodes(self: &Arc<Self>) -> NodeHold {
        let mut inner = self.inner.lock();
        inner.holds.count += 1;
        NodeHold { space: self.clone(), round: inner.holds.round }
    }
}

impl NodeHold {
    /// Whether it has not been revoked.
    pub(crate) fn stands(&self) -> bool {
        self.space.inner.lock().holds.round == self.round
    }
}

impl Drop for NodeHold {
    fn drop(&mut self) {
        let mut inner = self.space.inner.lock();
        if inner.holds.round == self.round {
            inner.holds.count -= 1;
            inner.release_postponed();
        }
    }
}
