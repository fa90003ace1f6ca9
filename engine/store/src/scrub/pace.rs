//! How fast to read: at most so many bytes a second, without bursts after a pause.

use parallax_block::Runtime;
use std::{num::NonZeroU64, sync::Arc, time::Duration};

/// Shorter waits are left to add up.
const WAIT_MIN: Duration = Duration::from_millis(5);

pub(crate) struct Pace {
    runtime: Arc<dyn Runtime>,
    bytes_per_second: Option<NonZeroU64>,
    /// When everything that was spent so far is paid for.
    due: Duration,
    spent: u64,
}

impl Pace {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, bytes_per_second: Option<NonZeroU64>) -> Self {
        let due = runtime.now();
        Self { runtime, bytes_per_second, due, spent: 0 }
    }

    /// Waits until `bytes` may be read.
    pub(crate) async fn spend(&mut self, bytes: u64) {
        self.spent += bytes;
        let Some(rate) = self.bytes_per_second else { return };
        let now = self.runtime.now();
        let wait = self.due.saturating_sub(now);
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        self.due = self.due.max(now) + Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        if wait >= WAIT_MIN {
            self.runtime.sleep(wait).await;
        }
    }

    /// Bytes so far.
    pub(crate) fn spent(&self) -> u64 {
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_sim::World;

    #[test]
    fn a_rate_is_kept_and_a_pause_is_not_made_up_for() {
        let world = World::new(1);
        let runtime: Arc<dyn Runtime> = Arc::new(world.process("scrub"));
        let took = world.run(async move {
            let mut pace = Pace::new(runtime.clone(), NonZeroU64::new(1 << 20));
            for _ in 0..80 {
                pace.spend(64 << 10).await;
            }
            let first = runtime.now();
            runtime.sleep(Duration::from_secs(100)).await;
            let begun = runtime.now();
            for _ in 0..80 {
                pace.spend(64 << 10).await;
            }
            (first, runtime.now() - begun)
        });
        for took in [took.0, took.1] {
            assert!((4.8..=5.1).contains(&took.as_secs_f64()), "{took:?}");
        }
    }
}
