//! Whether a thread that waits for its clients looks on for a moment before it sleeps.
//!
//! A client that asks one thing at a time comes back within microseconds of a reply. To sleep in between and be woken
//! costs more processor time than to look on, above all in a virtual machine, and adds to the time of every request.
//!
//! Invariants:
//! * A look lasts [`LOOK`] at most, and is for clients alone: never while a device works, which takes longer.
//! * Each look in vain makes the next ones rarer, down to one in [`RARE`]. So a client that takes its time costs nearly
//!   nothing, and a thread that nobody asks for anything costs nothing.

use std::time::Duration;

/// Longest look. Half of it is a whole turn of a quick client.
pub(super) const LOOK: Duration = Duration::from_micros(30);

/// One wait in so many begins with a look when all looks are in vain.
const RARE: u32 = 256;

/// What became of the looks so far.
#[derive(Debug)]
pub(super) struct Patience {
    /// Waits from one look to the next.
    every: u32,
    /// Waits since the last look.
    waits: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { every: 1, waits: 0 }
    }
}

impl Patience {
    /// Asked before a wait: whether it begins with a look.
    pub(super) fn looks(&mut self) -> bool {
        self.waits += 1;
        if self.waits < self.every {
            return false;
        }
        self.waits = 0;
        true
    }

    /// Told after a look: whether something came meanwhile.
    pub(super) fn learn(&mut self, came: bool) {
        self.every = if came { 1 } else { (self.every * 2).min(RARE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in `waits` waits, each of which gives the same answer.
    fn looks(patience: &mut Patience, waits: u32, came: bool) -> u32 {
        let mut looks = 0;
        for _ in 0..waits {
            if patience.looks() {
                looks += 1;
                patience.learn(came);
            }
        }
        looks
    }

    #[test]
    fn looks_in_vain_become_rare_and_one_that_pays_brings_them_back() {
        let mut patience = Patience::default();
        assert_eq!(looks(&mut patience, 100, true), 100);
        let before = looks(&mut patience, 2 * RARE, false);
        assert!(before < 12, "{before} looks in vain while learning");
        assert_eq!(looks(&mut patience, 10 * RARE, false), 10);
        assert!(looks(&mut patience, RARE, true) > 0);
        assert_eq!(looks(&mut patience, 100, true), 100);
    }
}
