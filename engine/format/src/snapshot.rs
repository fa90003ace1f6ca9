//! Records of the snapshot table: 128 bytes each, 32 to a leaf, at the index of their number.
//!
//! ```text
//!   0  number  u64   0: no record
//!   8  taken   i64   milliseconds since the Unix epoch
//!  16  root    u64   link to the root node, or a hole
//!  24  size    u64   bytes
//!  32  set     u128  or nil
//!  48  parent  u64   the snapshot that it descends from, or 0
//!  56  depth   u8    levels of its tree
//!  57  state   u8    filesystem state
//!  58  label length u8, then 5 bytes of zero
//!  64  label   64 bytes
//! ```

use crate::{
    Node,
    codec::{Reader, Writer},
    journal::LABEL_MAX,
    record::Filesystem,
    root::TreeRoot,
};
use parallax_block::{Error, Result};
use uuid::Uuid;

/// Words of a record.
pub const RECORD_WORDS: usize = 16;

/// Records of a leaf.
pub const RECORDS_PER_LEAF: u64 = 32;

/// No volume has so many snapshots, ever: numbers stay below what a table can index.
pub const SNAPSHOT_MAX: u64 = 1 << 48;

/// Deepest table: its 2^54 words hold [`SNAPSHOT_MAX`] records.
pub const TABLE_DEPTH_MAX: u8 = 6;

/// A materialised snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// From 1, never reused.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub taken_ms: i64,
    /// Its block map.
    pub map: TreeRoot,
    /// Bytes.
    pub size: u64,
    /// Shared by snapshots of one instant, or nil.
    pub set: Uuid,
    /// The snapshot that it descends from, or 0.
    pub parent: u64,
    /// Filesystem state at that moment.
    pub filesystem: Filesystem,
    /// Text for people, at most 64 bytes.
    pub label: String,
}

impl SnapshotRecord {
    /// Reads the record at `index` (0 to 31) of a leaf.
    pub fn get(leaf: &Node, index: usize) -> Result<Option<Self>> {
        let words = &leaf.words()[index * RECORD_WORDS..(index + 1) * RECORD_WORDS];
        let mut bytes = [0; RECORD_WORDS * 8];
        for (word, out) in words.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *out = word.to_le_bytes();
        }
        let mut r = Reader::new(&bytes, "snapshot record");
        let number = r.u64()?;
        if number == 0 {
            return Ok(None);
        }
        let (taken_ms, root, size) = (r.i64()?, r.u64()?, r.u64()?);
        let set = Uuid::from_u128(r.u128()?);
        let (parent, depth, state, length) = (r.u64()?, r.u8()?, r.u8()?, usize::from(r.u8()?));
        r.take(5)?;
        let label = r.take(LABEL_MAX)?.get(..length).ok_or_else(|| Error::corrupt("label length"))?;
        let label = String::from_utf8(label.to_vec())
            .map_err(|e| Error::corrupt("a snapshot's label is not UTF-8").with_source(e))?;
        if number > SNAPSHOT_MAX || parent > SNAPSHOT_MAX || number % RECORDS_PER_LEAF != index as u64 {
            return Err(Error::corrupt(format!("snapshot {number} cannot be at place {index} of its leaf")));
        }
        Ok(Some(Self {
            number,
            taken_ms,
            map: TreeRoot::decode_map(root, depth, size)?,
            size,
            set,
            parent,
            filesystem: Filesystem::from_byte(state)?,
            label,
        }))
    }

    /// Writes the record at `index` of a leaf; `None` clears it.
    pub fn put(leaf: &mut Node, index: usize, record: Option<&Self>) {
        let mut w = Writer::default();
        if let Some(record) = record {
            w.u64(record.number);
            w.i64(record.taken_ms);
            w.u64(record.map.link.raw());
            w.u64(record.size);
            w.u128(record.set.as_u128());
            w.u64(record.parent);
            w.u8(record.map.depth);
            w.u8(record.filesystem.to_byte());
            w.u8(record.label.len() as u8);
            w.raw(&[0; 5]);
            w.raw(record.label.as_bytes());
        }
        w.0.resize(RECORD_WORDS * 8, 0);
        let words = &mut leaf.words_mut()[index * RECORD_WORDS..(index + 1) * RECORD_WORDS];
        for (word, bytes) in words.iter_mut().zip(w.0.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }
}
