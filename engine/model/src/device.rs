//! The shared device, as all models see it: blocks, and writes that are on their way to them.
//!
//! What a block can do to us:
//!
//! ```text
//!  submit ──► in flight ──► landed (everybody reads it) ──► durable (after a flush; at once with FUA)
//!                 │              │
//!   writer dies,  │              └─► lost, if the device loses power before a flush
//!   gives up, or  ▼
//!   is fenced   ghost ──► lands, at any later time, over whatever is there by then
//!                 └─────► never lands
//! ```
//!
//! Invariants:
//! * A write lands whole. Torn blocks fail their checksum and count as not landed; a torn data block is one that
//!   nobody promised.
//! * A writer has one write in flight to one block; all others there are ghosts.
//! * That a ghost never lands needs no step: no rule waits for it.

use std::hash::Hash;

/// Ghosts that one block may have. A model whose budget allows more panics.
const GHOSTS: usize = 2;

/// One block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block<T> {
    /// What a read returns.
    pub landed: T,
    /// What is there after a power cut.
    pub durable: T,
    /// The write of a live writer.
    pub flight: Option<T>,
    /// In order, so that equal sets are equal states.
    ghosts: [Option<T>; GHOSTS],
}

impl<T: Copy + Ord + Hash> Block<T> {
    /// A block at rest.
    pub fn new(content: T) -> Self {
        Self { landed: content, durable: content, flight: None, ghosts: [None; GHOSTS] }
    }

    /// Begins a write.
    pub fn submit(&mut self, content: T) {
        assert!(self.flight.is_none(), "one write of a live writer at a time");
        self.flight = Some(content);
    }

    /// The live write lands, volatile. Returns what it wrote over.
    pub fn land(&mut self) -> Option<T> {
        let content = self.flight.take()?;
        Some(std::mem::replace(&mut self.landed, content))
    }

    /// The live write lands and is durable (FUA).
    pub fn land_durable(&mut self) -> Option<T> {
        let before = self.land()?;
        self.flush();
        Some(before)
    }

    /// What has landed becomes durable.
    pub fn flush(&mut self) {
        self.durable = self.landed;
    }

    /// The writer is gone, or does not wait any more: its write may land later, or never.
    pub fn abandon(&mut self) {
        if let Some(content) = self.flight.take() {
            let free = self.ghosts.iter_mut().find(|ghost| ghost.is_none());
            *free.expect("the budget allows no more ghosts of one block") = Some(content);
            self.ghosts.sort_unstable();
        }
    }

    /// Ghosts, by number.
    pub fn ghosts(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        self.ghosts.iter().enumerate().filter_map(|(number, ghost)| ghost.map(|content| (number, content)))
    }

    /// A ghost lands. Returns what it wrote over.
    pub fn ghost_lands(&mut self, number: usize) -> Option<T> {
        let content = self.ghosts[number].take()?;
        self.ghosts.sort_unstable();
        Some(std::mem::replace(&mut self.landed, content))
    }

    /// It is known that `which` ghosts land no more.
    pub fn forget_ghosts(&mut self, which: impl Fn(T) -> bool) {
        for ghost in &mut self.ghosts {
            *ghost = ghost.filter(|content| !which(*content));
        }
        self.ghosts.sort_unstable();
    }

    /// The device loses power: what was not flushed is gone, and so is what was on its way.
    pub fn cut(&mut self) {
        *self = Self::new(self.durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_read_when_it_has_landed_and_stays_when_it_was_flushed() {
        let mut block = Block::new(0);
        block.submit(1);
        assert_eq!(block.landed, 0);
        assert_eq!(block.land(), Some(0));
        assert_eq!((block.landed, block.durable), (1, 0));
        block.submit(2);
        block.flush();
        block.cut();
        assert_eq!((block.landed, block.flight), (1, None));
    }

    #[test]
    fn an_abandoned_write_lands_over_newer_ones() {
        let mut block = Block::new(0);
        block.submit(1);
        block.abandon();
        block.submit(2);
        block.land_durable();
        assert_eq!(block.ghosts().collect::<Vec<_>>(), [(1, 1)]);
        assert_eq!(block.ghost_lands(1), Some(2));
        assert_eq!(block.landed, 1);
    }

    #[test]
    fn a_ghost_that_is_known_to_be_dead_is_forgotten() {
        let mut block = Block::new(0);
        block.submit(1);
        block.abandon();
        block.forget_ghosts(|content| content == 1);
        assert_eq!(block.ghosts().count(), 0);
    }
}
