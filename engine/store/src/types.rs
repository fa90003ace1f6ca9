//! What the store's callers name and are told: identifiers, requests and answers.

use parallax_block::{ByteRange, Error, Result};
use parallax_format::host::Standing;
use std::{collections::BTreeMap, fmt, str::FromStr};
use uuid::Uuid;

/// Identity of a VDI; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VdiId(pub Uuid);

impl fmt::Display for VdiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VdiId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(Self).map_err(|e| {
            Error::invalid(format!("'{text}' is not a volume id; `parallax list` shows them")).with_source(e)
        })
    }
}

/// Identity of a snapshot: its VDI and a number that the VDI counts up and never reuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// Whose snapshot.
    pub vdi: VdiId,
    /// Which, from 1.
    pub number: u64,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.vdi, self.number)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("'{text}' is not a snapshot id (<volume id>@<number>)"));
        let (vdi, number) = text.split_once('@').ok_or_else(bad)?;
        Ok(Self { vdi: vdi.parse()?, number: number.parse().ok().filter(|n| *n > 0).ok_or_else(bad)? })
    }
}

/// A name that a person or a caller gave: 1 to 128 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Checks and wraps `text`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "the name {text:?} is not 1 to 128 bytes of text without control characters"
            )));
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// Wraps a name that was checked when it was recorded.
    pub(crate) fn trusted(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Milliseconds since the Unix epoch, given by the caller: the store has no wall clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

/// Whether a VDI has ever been given a filesystem. Guards against formatting over data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FilesystemState {
    /// Nothing was ever written.
    #[default]
    Blank,
    /// mkfs was begun by us and is not known to have ended.
    Formatting,
    /// Holds something.
    Formatted,
}

/// What a new VDI starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nothing: all zeroes.
    Empty,
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A VDI as it is now: a snapshot is taken, cloned and dropped.
    Vdi(VdiId),
}

/// A request for a new VDI.
#[derive(Debug, Clone)]
pub struct CreateVdi {
    /// Unique among VDIs that are not headless.
    pub name: Name,
    /// Bytes, a multiple of 4096; `None` takes the source's.
    pub size: Option<u64>,
    /// What it starts from.
    pub source: Source,
    /// 512 or 4096.
    pub logical_block: u32,
    /// Free text of the creator; at most 2 KiB in all.
    pub attributes: BTreeMap<String, String>,
    /// Now.
    pub at: Timestamp,
}

/// A node that may use a VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The node.
    pub node: Name,
    /// Whether writing is refused there.
    pub read_only: bool,
}

/// A VDI as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiInfo {
    /// Identity.
    pub id: VdiId,
    /// Name.
    pub name: Name,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub logical_block: u32,
    /// When.
    pub created: Timestamp,
    /// Snapshot that it was cloned from.
    pub source_snapshot: Option<SnapshotId>,
    /// VDI that was named as its source.
    pub source_vdi: Option<VdiId>,
    /// See [`FilesystemState`].
    pub filesystem: FilesystemState,
    /// Free text of the creator.
    pub attributes: BTreeMap<String, String>,
    /// Nodes that may use it.
    pub publications: Vec<Publication>,
    /// Whether it is open for I/O now.
    pub attached: bool,
    /// Deleted, but kept because snapshots of it live.
    pub headless: bool,
    /// Live snapshots.
    pub snapshots: u64,
}

/// Space of a VDI, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Mapped.
    pub mapped: u64,
    /// Of those, shared with a snapshot or clone.
    pub shared: u64,
    /// Radix nodes.
    pub metadata: u64,
}

/// A request for a snapshot of one VDI, or of several at one instant.
#[derive(Debug, Clone)]
pub struct TakeSnapshot {
    /// Which; not empty, without repetition.
    pub vdis: Vec<VdiId>,
    /// Text for people; at most 64 bytes.
    pub label: String,
    /// Idempotency name, unique in the pool: asking again answers with the same snapshots.
    pub name: Option<Name>,
    /// Now.
    pub at: Timestamp,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Identity.
    pub id: SnapshotId,
    /// Idempotency name.
    pub name: Option<Name>,
    /// Text for people.
    pub label: String,
    /// When.
    pub taken: Timestamp,
    /// Bytes of the VDI at that moment.
    pub size: u64,
    /// Ready to clone, compare and open.
    pub materialised: bool,
    /// Filesystem state of the VDI at that moment.
    pub filesystem: FilesystemState,
    /// Shared by snapshots of one instant.
    pub set: Option<Uuid>,
}

/// An extent in which two snapshots differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffExtent {
    /// Where.
    pub range: ByteRange,
    /// Whether the target maps it; otherwise it is a hole there.
    pub data: bool,
}

/// Shape and fill of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    /// Identity.
    pub uuid: Uuid,
    /// Version of the on-disk format.
    pub format_version: u32,
    /// Names of the feature flags that are set.
    pub features: Vec<String>,
    /// Bytes of the device.
    pub capacity: u64,
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// Extents in the pool.
    pub extents: u64,
    /// Extents that nobody has claimed.
    pub extents_free: u64,
    /// Bytes that data could still take.
    pub free: u64,
    /// Bytes allocated to data.
    pub data_used: u64,
    /// Bytes allocated to metadata.
    pub metadata_used: u64,
    /// Bytes kept back for deletes, checkpoints and garbage collection.
    pub metadata_reserved: u64,
}

/// Steps of a garbage collection, for progress bars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcProgress {
    /// `checkpoint`, `mark`, `sweep` or `done`.
    pub phase: &'static str,
    /// Of `total`.
    pub done: u64,
    /// Roots to mark, or extents to sweep.
    pub total: u64,
    /// Freed so far.
    pub freed_data: u64,
    /// Freed so far.
    pub freed_metadata: u64,
    /// Radix nodes read.
    pub nodes: u64,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space that nothing reaches; `parallax gc` brings it back.
    Leak,
    /// A promise of the format is broken.
    Damage,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Short stable name, such as `node-checksum`.
    pub kind: &'static str,
    /// Where and what.
    pub detail: String,
    /// Names of the VDIs that it touches.
    pub volumes: Vec<String>,
}

/// A host that has a slot in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// Number of its slot.
    pub slot: u32,
    /// Its name.
    pub name: Name,
    /// Rises each time that the host joins anew.
    pub incarnation: u64,
    /// Boot of its machine.
    pub boot_id: u128,
    /// Whether it is still in the pool.
    pub standing: Standing,
    /// How often its slot was written.
    pub renewals: u64,
    /// Highest manager epoch that this incarnation has stood for.
    pub manager_epoch: Option<u64>,
    /// Whether no other host has stood for a higher one.
    pub manager: bool,
}
