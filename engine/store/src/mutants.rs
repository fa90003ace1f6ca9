//! Bugs on request: the drill must find each of them, or it is deaf to their kind.
//!
//! Compiled in only with the feature `mutants`, which nothing that is shipped asks for; otherwise [`on`] is a constant
//! `false` and costs nothing. A mutant is switched on for one thread: a simulated world runs on one, so worlds with
//! different mutants run beside each other.

/// A bug of the store. Its comment names the rule that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// The journal is written without the flush that makes data and marks durable [4b].
    JournalBeforeData,
    /// A journal group is written and not made durable [4b].
    JournalNotFlushed,
    /// A flush without new records does not reach the device [4g].
    QuietFlushSkipped,
    /// A flush is answered by a commit that was sealed before it arrived [4g].
    FlushJoinsSealed,
    /// After a failed flush it is tried again, and the epoch goes on [4h].
    FailedFlushRetried,
    /// A write that failed on the device is acknowledged.
    FailedWriteAcknowledged,
    /// Blocks of writes that failed and may land late are used again [4h].
    LateBlocksReused,
    /// A root that failed and may land late does not keep what it names [4h].
    LateRootForgotten,
    /// FUA is acknowledged without a flush [4g].
    FuaForgotten,
    /// FUA passes to the device although the mapping is not durable [4g].
    FuaPassesUnmapped,
    /// A write is acknowledged before its record is in the tail [4d].
    TailSkipped,
    /// Records leave the tail when their group is sealed, not when it is durable [4d].
    TailReleasedEarly,
    /// The last record of the tail is not replayed [4d].
    TailDropsLast,
    /// Replay takes any valid journal block, whatever came before it [4b].
    ReplayIgnoresChain,
    /// Replay leaves out the last durable record [4c].
    ReplayDropsLast,
    /// Replay takes a damaged journal for a short one [4c].
    ReplayIgnoresWitness,
    /// The root is published before the nodes that it names are durable [3d].
    RootBeforeNodes,
    /// The root is not forced to the medium before the old state is let go [3d].
    RootNotForced,
    /// Every checkpoint goes to the same slot [3d].
    RootInOneSlot,
    /// Nodes are reused while the older root slot names them [3d].
    NodesReusedEarly,
    /// Journal is reused while the older root slot needs it [3d].
    JournalRetiredEarly,
    /// A snapshot leaves the volume's blocks writable [3e].
    SnapshotKeepsWritable,
    /// A node copied through a read-only link keeps its links writable [3c].
    CopyKeepsWritable,
    /// A snapshot is acknowledged before its record is durable [3e].
    SnapshotNotCommitted,
    /// A snapshot is complete while older writes are in flight [3e].
    SnapshotNotDrained,
    /// Members of a set that was never named are kept [3e].
    UnnamedSetKept,
    /// A new block gets the old bytes before a partial write, not those behind it [4e].
    FillStopsEarly,
    /// A new block gets zeroes around a partial write [4e].
    FillForgotten,
    /// Writes do not wait for each other [4e].
    BlocksUnlocked,
    /// Discarded blocks are free before their unmapping is durable [4f].
    FreedBeforeDurable,
    /// Discarded blocks are free while reads of them are under way [4f].
    FreedBeforeReadsEnd,
    /// A discard leaves no record.
    UnmapNotRecorded,
    /// A growth leaves no record.
    GrowthNotRecorded,
    /// The deletion of a snapshot leaves no record [3f].
    DeletionNotRecorded,
    /// Runs are used without a mark on the device [5d].
    MarksSkipped,
    /// A torn bitmap is believed [5b].
    TornBitmapBelieved,
    /// Data takes the last extents [5g].
    ReserveIgnored,
    /// Garbage collection looks at roots before the checkpoints [5e].
    GcRootsEarly,
    /// Garbage collection does not look at snapshots [5e].
    GcForgetsSnapshots,
    /// Garbage collection does not look at journals that nobody has replayed [5e].
    GcForgetsJournals,
    /// What is allocated during a garbage collection stays a candidate [5e].
    GcFreesNewBlocks,
    /// Nodes superseded during a garbage collection are reused before it ends [5e].
    GcReusesNodes,
    /// The check in a link to a node is not looked at [3b].
    CheckBitsIgnored,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 43] = [
        Self::JournalBeforeData,
        Self::JournalNotFlushed,
        Self::QuietFlushSkipped,
        Self::FlushJoinsSealed,
        Self::FailedFlushRetried,
        Self::FailedWriteAcknowledged,
        Self::LateBlocksReused,
        Self::LateRootForgotten,
        Self::FuaForgotten,
        Self::FuaPassesUnmapped,
        Self::TailSkipped,
        Self::TailReleasedEarly,
        Self::TailDropsLast,
        Self::ReplayIgnoresChain,
        Self::ReplayDropsLast,
        Self::ReplayIgnoresWitness,
        Self::RootBeforeNodes,
        Self::RootNotForced,
        Self::RootInOneSlot,
        Self::NodesReusedEarly,
        Self::JournalRetiredEarly,
        Self::SnapshotKeepsWritable,
        Self::CopyKeepsWritable,
        Self::SnapshotNotCommitted,
        Self::SnapshotNotDrained,
        Self::UnnamedSetKept,
        Self::FillStopsEarly,
        Self::FillForgotten,
        Self::BlocksUnlocked,
        Self::FreedBeforeDurable,
        Self::FreedBeforeReadsEnd,
        Self::UnmapNotRecorded,
        Self::GrowthNotRecorded,
        Self::DeletionNotRecorded,
        Self::MarksSkipped,
        Self::TornBitmapBelieved,
        Self::ReserveIgnored,
        Self::GcRootsEarly,
        Self::GcForgetsSnapshots,
        Self::GcForgetsJournals,
        Self::GcFreesNewBlocks,
        Self::GcReusesNodes,
        Self::CheckBitsIgnored,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<(Option<Mutant>, u64)> = const { std::cell::Cell::new((None, 0)) };
}

/// Switches one bug on, or all off, for whatever this thread does from now on. Answers how often the store has come
/// past the one before.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) -> u64 {
    ACTIVE.replace((mutant, 0)).1
}

/// Whether a bug is wanted here.
#[cfg(feature = "mutants")]
pub(crate) fn on(mutant: Mutant) -> bool {
    let (active, met) = ACTIVE.get();
    let wanted = active == Some(mutant);
    if wanted {
        ACTIVE.set((active, met + 1));
    }
    wanted
}

/// Whether a bug is wanted here: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn on(_mutant: Mutant) -> bool {
    false
}
