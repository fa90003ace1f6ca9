//! When each write began and ended, and how: shared by every sector that it touched.

/// A moment of the model: it counts beginnings and ends, so two moments are never equal.
pub type Tick = u64;

/// Never.
pub const NEVER: Tick = u64::MAX;

/// Which write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

impl WriteId {
    /// What every sector holds before anything was written: begun and durable before time.
    pub const BASE: Self = Self(0);
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not answered yet.
    Pending,
    /// Acknowledged.
    Done,
    /// It failed, or its process died: any part of it may have happened.
    Doubtful,
    /// It failed, and may land yet, wherever nothing newer was acknowledged.
    Haunting,
}

/// One write.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// When it was sent.
    pub begin: Tick,
    /// When it was answered or given up; [`NEVER`] until then.
    pub end: Tick,
    /// How.
    pub outcome: Outcome,
    /// Whether a flush has covered it.
    pub flushed: bool,
}

/// All writes of a run, and its clock.
#[derive(Debug, Clone)]
pub struct Writes {
    now: Tick,
    table: Vec<Write>,
}

impl Default for Writes {
    fn default() -> Self {
        Self::new()
    }
}

impl Writes {
    /// Only the base write.
    pub fn new() -> Self {
        Self { now: 1, table: vec![Write { begin: 0, end: 0, outcome: Outcome::Done, flushed: true }] }
    }

    /// The next moment.
    pub fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// A write that begins now.
    pub fn begin(&mut self) -> WriteId {
        let begin = self.tick();
        self.table.push(Write { begin, end: NEVER, outcome: Outcome::Pending, flushed: false });
        WriteId(self.table.len() as u64 - 1)
    }

    /// A write that is durable at once: content that was adopted as it was found.
    pub fn adopt(&mut self) -> WriteId {
        let id = self.begin();
        self.finish(id, Outcome::Done);
        self.table[id.0 as usize].flushed = true;
        id
    }

    /// Ends a write.
    pub fn finish(&mut self, id: WriteId, outcome: Outcome) {
        let end = self.tick();
        let write = &mut self.table[id.0 as usize];
        (write.end, write.outcome) = (end, outcome);
    }

    /// A flush that began at `since` has covered this write, if it had ended by then.
    pub fn flush(&mut self, id: WriteId, since: Tick) -> bool {
        let write = &mut self.table[id.0 as usize];
        write.flushed |= write.outcome == Outcome::Done && write.end < since;
        write.flushed
    }

    /// It is durable because of how it was sent.
    pub fn mark_durable(&mut self, id: WriteId) {
        let write = &mut self.table[id.0 as usize];
        write.flushed |= write.outcome == Outcome::Done;
    }

    /// One.
    pub fn get(&self, id: WriteId) -> Write {
        self.table[id.0 as usize]
    }

    /// Everything that is still pending or haunting becomes doubtful, now.
    pub fn give_up_pending(&mut self) {
        let end = self.tick();
        for write in &mut self.table {
            match write.outcome {
                Outcome::Pending => (write.end, write.outcome) = (end, Outcome::Doubtful),
                Outcome::Haunting => write.outcome = Outcome::Doubtful,
                Outcome::Done | Outcome::Doubtful => {}
            }
        }
    }
}
