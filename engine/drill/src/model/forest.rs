//! Volumes and snapshots as the model has them, and operations whose outcome a death has left open.

use super::{
    content::Stamp,
    register::{Cut, Registers, Wrong},
    writes::{Tick, WriteId, Writes},
};
use crate::subject;
use parallax_store::{SnapshotId, VdiId};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

/// What a snapshot holds.
#[derive(Debug, Clone)]
pub enum Held {
    /// Not read yet: one of many.
    Cut(Cut),
    /// Read once and found right; never another again. Sectors that hold zeroes are left out.
    Fixed(BTreeMap<u64, Stamp>),
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Bytes.
    pub size: u64,
    /// Text.
    pub label: String,
    /// Content.
    pub held: Held,
    /// Managers that work with it.
    pub used: Use,
}

/// Who works with something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Use {
    /// Nobody.
    #[default]
    Free,
    /// This many, who do not disturb each other.
    Shared(usize),
    /// One that wants it alone.
    Alone,
}

impl Use {
    /// Takes it alone. Whether it was free.
    pub fn alone(&mut self) -> bool {
        *self == Self::Free && {
            *self = Self::Alone;
            true
        }
    }

    /// Takes a share. Whether nobody had it alone.
    pub fn share(&mut self) -> bool {
        *self = match *self {
            Self::Free => Self::Shared(1),
            Self::Shared(count) => Self::Shared(count + 1),
            Self::Alone => return false,
        };
        true
    }

    /// Gives it back.
    pub fn release(&mut self) {
        *self = match *self {
            Self::Shared(count) if count > 1 => Self::Shared(count - 1),
            _ => Self::Free,
        };
    }
}

/// A volume.
#[derive(Clone)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a sector.
    pub logical_block: u32,
    /// Content.
    pub registers: Registers,
    /// Live snapshots by number.
    pub snapshots: BTreeMap<u64, Snapshot>,
    /// Every number ever seen.
    pub numbers: BTreeSet<u64>,
    /// Deleted, kept for its snapshots.
    pub headless: bool,
    /// What it was cloned from.
    pub source: Option<VdiId>,
    /// For requests, while it is attached.
    pub handle: Option<Arc<dyn subject::Volume>>,
    /// Managers that work with it.
    pub held: Use,
    /// A clone that nobody has read yet: its content is open, and its registers mean nothing.
    pub unread: Option<Cut>,
    /// Acknowledged and not covered by a flush.
    pub unflushed: BTreeSet<WriteId>,
}

impl Volume {
    /// A flush that began at `since` has succeeded.
    pub fn flushed(&mut self, since: Tick, writes: &mut Writes) {
        self.unflushed.retain(|write| !writes.flush(*write, since));
    }
}

/// What a new volume holds.
#[derive(Debug, Clone)]
pub enum Origin {
    /// This.
    Content(BTreeMap<u64, Stamp>),
    /// What a volume held at some moment since.
    Moment(VdiId, Tick),
    /// What a volume held at some moment of these.
    Cut(Cut),
}

/// A management operation that was under way when the process died.
#[derive(Debug, Clone)]
pub enum Doubt {
    /// A volume.
    Create {
        /// Its name.
        name: String,
        /// Bytes.
        size: u64,
        /// Bytes of a sector.
        logical_block: u32,
        /// What it was to hold.
        origin: Origin,
        /// Whose clone.
        source: Option<VdiId>,
    },
    /// A volume's end.
    Delete(VdiId),
    /// A new name.
    Rename(VdiId, String),
    /// A new size.
    Resize(VdiId, u64),
    /// The content of a snapshot.
    Revert(VdiId, BTreeMap<u64, Stamp>),
    /// Snapshots of one instant.
    Snapshot {
        /// Of which.
        vdis: Vec<VdiId>,
        /// Text.
        label: String,
        /// Since when.
        begin: Tick,
        /// Size and content of each; known only when the process has died.
        cuts: Vec<(u64, Cut)>,
    },
    /// A new text.
    Label(SnapshotId, String),
    /// A snapshot's end.
    DeleteSnapshot(SnapshotId),
}

/// One line of the log of a run.
#[derive(Debug, Clone)]
pub struct Note {
    /// When.
    pub tick: Tick,
    /// Which volume.
    pub vdi: Option<VdiId>,
    /// Which sectors; empty for what concerns all.
    pub sectors: Range<u64>,
    /// What.
    pub text: String,
}

/// Everything that the model knows.
#[derive(Clone)]
pub struct Forest {
    /// Clock and writes.
    pub writes: Writes,
    /// All volumes, headless ones too.
    pub volumes: BTreeMap<VdiId, Volume>,
    /// Operations that are under way.
    pub doubts: BTreeMap<u64, Doubt>,
    /// Everything that was asked and answered.
    pub log: Vec<Note>,
    /// Content that a volume may have instead of its registers', when a revert is in doubt.
    pub or_else: BTreeMap<VdiId, BTreeMap<u64, Stamp>>,
    /// Sizes that volumes may have instead, when a growth is in doubt.
    pub growing: BTreeMap<VdiId, u64>,
    /// Sectors of writes that failed and may land late, in blocks that snapshots and clones have come to share.
    ghosts: BTreeMap<u64, BTreeSet<(VdiId, Stamp)>>,
    last_stamp: u64,
    last_name: u64,
    last_label: u64,
}

impl Forest {
    /// No volumes.
    pub fn new() -> Self {
        Self {
            writes: Writes::new(),
            volumes: BTreeMap::new(),
            doubts: BTreeMap::new(),
            log: Vec::new(),
            or_else: BTreeMap::new(),
            growing: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            last_stamp: 0,
            last_name: 0,
            last_label: 0,
        }
    }

    /// A stamp that nothing has.
    pub fn next_stamp(&mut self) -> Stamp {
        self.last_stamp += 1;
        Stamp(self.last_stamp)
    }

    /// A name that nothing has.
    pub fn next_name(&mut self) -> String {
        self.last_name += 1;
        format!("volume-{}", self.last_name)
    }

    /// A label that nothing has.
    pub fn next_label(&mut self) -> String {
        self.last_label += 1;
        format!("label {}", self.last_label)
    }

    /// Writes a line of the log and answers with its moment.
    pub fn note(&mut self, vdi: Option<VdiId>, sectors: Range<u64>, text: impl Into<String>) -> Tick {
        let tick = self.writes.tick();
        self.log.push(Note { tick, vdi, sectors, text: text.into() });
        tick
    }

    /// An operation is under way; forget it with [`Forest::settled`].
    pub fn doubt(&mut self, doubt: Doubt) -> u64 {
        let key = self.writes.tick();
        self.doubts.insert(key, doubt);
        key
    }

    /// The outcome of an operation is known.
    pub fn settled(&mut self, key: u64) {
        self.doubts.remove(&key);
    }

    /// A write has failed and may land late.
    pub fn haunt(&mut self, vdi: VdiId, sectors: Range<u64>, stamp: Stamp) {
        for lba in sectors {
            self.ghosts.entry(lba).or_default().insert((vdi, stamp));
        }
    }

    /// Whether a sector of something that shares blocks with volumes other than this one may hold this because a write to
    /// one of them has landed late. What a volume's own writes do to it, its registers know.
    pub fn is_haunted(&self, except: Option<VdiId>, lba: u64, found: Stamp) -> bool {
        let by = |(vdi, stamp): &(VdiId, Stamp)| *stamp == found && except != Some(*vdi);
        self.ghosts.get(&lba).is_some_and(|ghosts| ghosts.iter().any(by))
    }

    /// A volume that is known to exist.
    pub fn volume(&mut self, id: VdiId) -> &mut Volume {
        self.volumes.get_mut(&id).expect("the model keeps volumes that a manager works with")
    }

    /// Clock and one volume, for changes of both.
    pub fn split(&mut self, id: VdiId) -> (&mut Writes, &mut Volume) {
        let volume = self.volumes.get_mut(&id).expect("the model keeps volumes that a manager works with");
        (&mut self.writes, volume)
    }

    /// A new volume.
    pub fn add(&mut self, id: VdiId, name: String, size: u64, logical_block: u32, registers: Registers) {
        let volume = Volume {
            name,
            size,
            logical_block,
            registers,
            snapshots: BTreeMap::new(),
            numbers: BTreeSet::new(),
            headless: false,
            source: None,
            handle: None,
            held: Use::Free,
            unread: None,
            unflushed: BTreeSet::new(),
        };
        self.volumes.insert(id, volume);
    }

    /// A volume is deleted: gone, or headless while its snapshots live.
    pub fn delete(&mut self, id: VdiId) {
        let volume = self.volume(id);
        volume.headless = true;
        volume.registers = Registers::default();
        volume.unflushed.clear();
        volume.held = Use::Free;
        if volume.snapshots.is_empty() {
            self.volumes.remove(&id);
        }
    }

    /// A snapshot is deleted, and with the last one a headless volume.
    pub fn delete_snapshot(&mut self, id: SnapshotId) {
        let volume = self.volume(id.vdi);
        volume.snapshots.remove(&id.number);
        if volume.headless && volume.snapshots.is_empty() {
            self.volumes.remove(&id.vdi);
        }
    }

    /// Nobody works with anything any more: the process is gone.
    pub fn release_all(&mut self) {
        for volume in self.volumes.values_mut() {
            volume.handle = None;
            volume.held = Use::Free;
            for snapshot in volume.snapshots.values_mut() {
                snapshot.used = Use::Free;
            }
        }
    }

    /// What a snapshot of a volume that was begun at `begin` and ends now may hold.
    pub fn cut(&mut self, id: VdiId, begin: Tick) -> Cut {
        let end = self.writes.tick();
        let (writes, volume) = self.split(id);
        volume.registers.cut(begin, end, writes)
    }

    /// The process has died: whatever was under way ended at this moment, if at all.
    pub fn complete_doubts(&mut self) {
        let mut doubts = std::mem::take(&mut self.doubts);
        for doubt in doubts.values_mut() {
            match doubt {
                Doubt::Create { origin, .. } => {
                    if let Origin::Moment(of, begin) = *origin {
                        *origin = Origin::Cut(self.cut(of, begin).interrupted());
                    }
                }
                Doubt::Snapshot { vdis, begin, cuts, .. } if cuts.is_empty() => {
                    *cuts = vdis
                        .iter()
                        .map(|id| (self.volumes[id].size, self.cut(*id, *begin).interrupted()))
                        .collect();
                }
                _ => {}
            }
        }
        self.doubts = doubts;
    }

    /// A new snapshot. Fails if its number was used before.
    pub fn add_snapshot(&mut self, id: SnapshotId, snapshot: Snapshot) -> Result<(), crate::Failure> {
        let volume = self.volume(id.vdi);
        if !volume.numbers.insert(id.number) {
            return Err(crate::Failure::new(format!("snapshot {id} has a number that was used before")));
        }
        volume.snapshots.insert(id.number, snapshot);
        Ok(())
    }

    /// Tells the story of a sector, for a report.
    pub fn story(&self, vdi: VdiId, lba: u64) -> Vec<String> {
        const LINES_MAX: usize = 60;
        let block = lba / 8 * 8..lba / 8 * 8 + 8;
        let mut lines: Vec<String> = self
            .log
            .iter()
            .filter(|note| note.vdi.is_none_or(|of| of == vdi))
            .filter(|note| {
                note.sectors.is_empty() || (note.sectors.start < block.end && block.start < note.sectors.end)
            })
            .map(|note| format!("{:>8}  {}", note.tick, note.text))
            .collect();
        let left_out = lines.len().saturating_sub(LINES_MAX);
        lines.drain(..left_out);
        if left_out > 0 {
            lines.insert(0, format!("          ({left_out} earlier lines left out)"));
        }
        if let Some(volume) = self.volumes.get(&vdi) {
            let known = volume.registers.describe(lba, &self.writes);
            lines.extend(known.into_iter().map(|line| format!("          sector {lba} may hold {line}")));
        }
        lines
    }

    /// Tells what rule was broken.
    pub fn wrong(&self, vdi: VdiId, what: &str, wrong: &Wrong) -> crate::Failure {
        let allowed: Vec<String> = wrong.allowed.iter().map(ToString::to_string).collect();
        let message = format!(
            "{what}: sector {} holds {}, which may be {}; rule: {}",
            wrong.lba,
            wrong.found,
            allowed.join(" or "),
            wrong.rule
        );
        crate::Failure { message, story: self.story(vdi, wrong.lba) }
    }
}

impl Default for Forest {
    fn default() -> Self {
        Self::new()
    }
}
