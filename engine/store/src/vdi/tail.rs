//! Keeps acknowledged records in memory that outlives the process, until their group is durable.
//!
//! The format is in `parallax_format::tail`. The ring is bounded; when it is full, whoever wants to append must
//! let a commit pass first.

use crate::mutants::{self, Mutant};
use parallax_block::{Error, ErrorKind, Result, Tail, TailStore};
use parallax_format::{
    PoolSalt,
    codec::Reader,
    journal::JournalRecord,
    root::Epoch,
    tail::{self, ENTRY_HEADER, RING, TailHeader},
};
use std::collections::VecDeque;
use uuid::Uuid;

/// Bytes of the ring.
pub(crate) const CAPACITY: u64 = 1 << 20;

pub(crate) struct TailWriter {
    tail: Box<dyn Tail>,
    salt: PoolSalt,
    header: TailHeader,
    /// Which of the two headers was written last.
    turn: u64,
    /// Ring offset behind the last entry.
    end: u64,
    /// Record number and ring offset of every entry that still counts.
    entries: VecDeque<(u64, u64)>,
}

/// Name of the tail of one epoch.
pub(crate) fn key(pool: Uuid, vdi: Uuid, epoch: Epoch) -> String {
    format!("{}-{}-{:x}", pool.simple(), vdi.simple(), epoch.to_bits())
}

/// Name under which a pool notes that a flush of its device has failed. No VDI has the pool's id, and no epoch this number.
fn loss(pool: Uuid) -> (Uuid, Epoch) {
    (pool, Epoch { grant: 0, open: 0 })
}

/// Notes that a flush has failed: for volumes that were in use before, and that nobody has opened since, it may have
/// dropped what their tails name.
pub(crate) fn note_loss(store: &dyn TailStore, pool: Uuid, salt: PoolSalt) -> Result<()> {
    let (vdi, epoch) = loss(pool);
    TailWriter::create(store, pool, vdi, epoch, 1, salt).map(drop)
}

/// Whether that was noted since the machine was started.
pub(crate) fn was_lost(store: &dyn TailStore, pool: Uuid, salt: PoolSalt) -> Result<bool> {
    let (vdi, epoch) = loss(pool);
    Ok(read(store, pool, vdi, epoch, 1, salt)?.is_some())
}

/// Takes the note away.
pub(crate) fn forget_loss(store: &dyn TailStore, pool: Uuid) -> Result<()> {
    let (vdi, epoch) = loss(pool);
    store.remove(&key(pool, vdi, epoch))
}

impl TailWriter {
    /// An empty tail whose first entry will be `record`.
    pub(crate) fn create(
        store: &dyn TailStore,
        pool: Uuid,
        vdi: Uuid,
        epoch: Epoch,
        record: u64,
        salt: PoolSalt,
    ) -> Result<Self> {
        let tail = store.create(&key(pool, vdi, epoch))?;
        let header = TailHeader { boot: store.boot_id(), vdi, epoch, start: 0, record, doubtful: false };
        let mut writer = Self { tail, salt, header, turn: 0, end: 0, entries: VecDeque::new() };
        writer.write_header()?;
        Ok(writer)
    }

    fn write_header(&mut self) -> Result<()> {
        self.tail.write_at(self.turn % 2 * 64, &self.header.encode(self.salt))?;
        self.turn += 1;
        Ok(())
    }

    /// Notes that data which these records name may be gone, for whoever reads them next.
    pub(crate) fn doubt(&mut self) -> Result<()> {
        self.header.doubtful = true;
        // Over both: of two headers that say the same, either may be read.
        self.write_header()?;
        self.write_header()
    }

    /// Whether `bytes` of records fit now.
    pub(crate) fn has_room(&self, bytes: usize, records: usize) -> bool {
        let need = (bytes + records * (ENTRY_HEADER + 8)) as u64;
        self.end - self.header.start + need <= CAPACITY
    }

    /// Appends a record. The caller has asked [`Self::has_room`].
    pub(crate) fn append(&mut self, record: u64, bytes: &[u8]) -> Result<()> {
        let entry = tail::encode_entry(record, self.header.epoch, bytes, self.salt);
        let at = self.end % CAPACITY;
        let first = entry.len().min((CAPACITY - at) as usize);
        self.tail.write_at(RING + at, &entry[..first])?;
        if first < entry.len() {
            self.tail.write_at(RING, &entry[first..])?;
        }
        self.entries.push_back((record, self.end));
        self.end += entry.len() as u64;
        Ok(())
    }

    /// Lets go of every record before `record`: they are durable.
    pub(crate) fn release(&mut self, record: u64) -> Result<()> {
        while self.entries.front().is_some_and(|(number, _)| *number < record) {
            self.entries.pop_front();
        }
        self.header.start = self.entries.front().map_or(self.end, |(_, offset)| *offset);
        self.header.record = record;
        self.write_header()
    }
}

/// What a tail says.
pub(crate) struct Found {
    /// In order.
    pub(crate) records: Vec<JournalRecord>,
    /// A flush of the device has failed since.
    pub(crate) doubtful: bool,
}

/// Records of a tail from `record` on. `None` if the tail is missing, of another boot or epoch,
/// damaged, or begins behind `record`: then nothing of it may be used.
pub(crate) fn read(
    store: &dyn TailStore,
    pool: Uuid,
    vdi: Uuid,
    epoch: Epoch,
    record: u64,
    salt: PoolSalt,
) -> Result<Option<Found>> {
    let Some(bytes) = store.load(&key(pool, vdi, epoch))? else { return Ok(None) };
    let header = [0usize, 64]
        .iter()
        .filter_map(|at| TailHeader::decode(bytes.get(*at..at + 64)?, salt).ok())
        .filter(|header| header.boot == store.boot_id() && header.vdi == vdi && header.epoch == epoch)
        .max_by_key(|header| (header.record, header.start, header.doubtful));
    let Some(header) = header.filter(|header| header.record <= record) else { return Ok(None) };
    let mut ring = bytes.get(RING as usize..).unwrap_or_default().to_vec();
    ring.resize(CAPACITY as usize, 0);
    // Unrolled once, so that an entry that wraps around is in one piece.
    ring.rotate_left((header.start % CAPACITY) as usize);
    let mut left = &ring[..];
    let mut number = header.record;
    let mut records = Vec::new();
    while let Some((body, length)) = tail::decode_entry(left, number, epoch, salt) {
        if number >= record {
            let mut reader = Reader::new(body, "tail entry");
            records.push(JournalRecord::decode(&mut reader)?);
        }
        number += 1;
        left = &left[length.min(left.len())..];
    }
    if mutants::on(Mutant::TailDropsLast) {
        records.pop();
    }
    // The tail must reach back to the journal's end without a gap.
    Ok((number >= record).then_some(Found { records, doubtful: header.doubtful }))
}

/// The same for a VDI that garbage collection looks at. A tail of this boot must be there: whatever it names is in use,
/// so without it nothing can be said to be unused.
pub(crate) fn tail_runs(
    pool: &crate::pool::PoolCore,
    vdi: Uuid,
    epoch: Epoch,
    record: u64,
    of_this_boot: bool,
) -> Result<Vec<JournalRecord>> {
    let superblock = &pool.disk.superblock;
    let found = read(&*pool.environment.tails, superblock.uuid, vdi, epoch, record, superblock.salt)?;
    if found.is_none() && of_this_boot {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            "it was in use since this machine was started, and the tail with its last writes is not where tails are \
             looked for; say where they are (`parallax --tails`), or attach and detach the volume to give them up",
        ));
    }
    Ok(found.map_or(Vec::new(), |found| found.records))
}
