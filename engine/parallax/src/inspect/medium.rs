//! A device and what its superblock and registry say, as far as they can be read.

use crate::failure::{Failure, Outcome};
use parallax_block::{BLOCK_SIZE, Error};
use parallax_format::{
    BlockAddress, ExtentId, PoolSalt,
    area::{self, AreaHeader},
    host,
    record::{ExtentRecord, Record, VdiRecord},
    seal::Kind,
    superblock::Superblock,
};
use rustix::fs::{SeekFrom, seek};
use std::{cell::OnceCell, collections::BTreeMap, fs::File, os::unix::fs::FileExt, path::Path};
use uuid::Uuid;

pub(super) struct Medium {
    file: File,
    blocks: u64,
    registry: OnceCell<Registry>,
}

/// One copy of the superblock with its sequence, or why it does not verify.
pub(super) type Copy = Result<(Superblock, u64), String>;

/// Catalogue and registry.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// By logical number.
    pub(super) extents: BTreeMap<ExtentId, ExtentRecord>,
    /// By identity.
    pub(super) vdis: BTreeMap<Uuid, VdiRecord>,
    /// The area that counts, and where its log ends.
    pub(super) area: Option<(AreaHeader, u32)>,
    /// What did not verify.
    pub(super) errors: Vec<String>,
}

impl Medium {
    pub(super) fn open(path: &Path) -> Outcome<Self> {
        let fail = |error: std::io::Error| Failure::from(error).during(format!("opening {}", path.display()));
        let file = File::open(path).map_err(fail)?;
        let bytes = seek(&file, SeekFrom::End(0)).map_err(|error| fail(error.into()))?;
        Ok(Self { file, blocks: bytes / BLOCK_SIZE as u64, registry: OnceCell::new() })
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// One block of the device.
    pub(super) fn physical(&self, at: u64) -> Outcome<Vec<u8>> {
        if at >= self.blocks {
            return Err(Failure::new(format!("block {at} lies past the device's {} blocks", self.blocks)));
        }
        let mut bytes = vec![0; BLOCK_SIZE];
        self.file
            .read_exact_at(&mut bytes, at * BLOCK_SIZE as u64)
            .map_err(|error| Failure::from(error).during(format!("reading block {at}")))?;
        Ok(bytes)
    }

    /// Both copies of the superblock, with where they are.
    pub(super) fn superblocks(&self) -> Vec<(u64, Copy)> {
        [0, self.blocks.saturating_sub(1)]
            .into_iter()
            .map(|at| {
                let decoded = self.physical(at).map_err(|failure| failure.message().to_owned());
                (at, decoded.and_then(|bytes| Superblock::decode(&bytes, at).map_err(text)))
            })
            .collect()
    }

    /// The superblock that counts.
    pub(super) fn superblock(&self) -> Outcome<Superblock> {
        let mut valid: Vec<_> = self.superblocks().into_iter().filter_map(|(_, copy)| copy.ok()).collect();
        valid.sort_by_key(|(_, sequence)| *sequence);
        valid.pop().map(|(superblock, _)| superblock).ok_or_else(|| {
            Failure::new("no superblock of a Parallax pool verifies")
                .or_try("parallax inspect superblock, which says why")
        })
    }

    /// Reads catalogue and registry, as far as they verify.
    pub(super) fn registry(&self, superblock: &Superblock) -> &Registry {
        self.registry.get_or_init(|| self.read_registry(superblock))
    }

    fn read_registry(&self, superblock: &Superblock) -> Registry {
        let mut registry = Registry::default();
        let mut headers: Vec<AreaHeader> = (0..superblock.host_slots)
            .flat_map(|slot| (0..2).map(move |copy| superblock.host_group(slot) + host::AREA_HEADER + copy))
            .filter_map(|at| AreaHeader::decode(&self.physical(at).ok()?, at, superblock.salt).ok())
            .collect();
        headers.sort_by_key(|header| header.id);
        let Some(header) = headers.pop() else {
            registry.errors.push("no area header verifies: catalogue and registry are unknown".into());
            return registry;
        };
        let (mut predecessor, mut index) = (0, 0);
        while let Some(at) = header.block(index) {
            let in_base = index < header.base_blocks;
            let kind = if in_base { Kind::AreaBase } else { Kind::AreaLog };
            let block = self.physical(at).and_then(|bytes| {
                Ok(area::decode_block(&bytes, kind, at, header.id, index, predecessor, superblock.salt)?)
            });
            match block {
                Ok((records, crc)) => {
                    records.into_iter().for_each(|record| registry.apply(record));
                    predecessor = crc;
                }
                Err(failure) => {
                    if in_base {
                        registry.errors.push(format!("base block {index}: {}", failure.message()));
                    }
                    break;
                }
            }
            index += 1;
        }
        registry.area = Some((header, index));
        registry
    }

    /// One block by its logical address.
    pub(super) fn logical(&self, superblock: &Superblock, address: BlockAddress) -> Outcome<Vec<u8>> {
        self.physical(self.place(superblock, address)?)
    }

    /// Where a logical address lies.
    pub(super) fn place(&self, superblock: &Superblock, address: BlockAddress) -> Outcome<u64> {
        let extent = self
            .registry(superblock)
            .extents
            .get(&address.extent())
            .ok_or_else(|| Failure::new(format!("block {address} lies in no extent of the catalogue")))?;
        Ok(superblock.extent_start(extent.position) + u64::from(address.block()))
    }

    /// A volume by name or id.
    pub(super) fn volume(&self, superblock: &Superblock, text: &str) -> Outcome<&VdiRecord> {
        let registry = self.registry(superblock);
        let id = Uuid::parse_str(text).ok();
        registry
            .vdis
            .values()
            .find(|vdi| Some(vdi.id) == id || (id.is_none() && vdi.name == text))
            .ok_or_else(|| {
                let known: Vec<&str> = registry.vdis.values().map(|vdi| vdi.name.as_str()).collect();
                Failure::new(format!("the registry has no volume '{text}'; it has: {}", known.join(", ")))
            })
    }
}

impl Registry {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Extent(extent) => drop(self.extents.insert(extent.extent, extent)),
            Record::ExtentFreed(extent) => drop(self.extents.remove(&extent)),
            Record::Vdi(vdi) => drop(self.vdis.insert(vdi.id, *vdi)),
            Record::VdiDeleted(id) => drop(self.vdis.remove(&id)),
            Record::Set(_) | Record::SetDeleted(_) | Record::Counters { .. } => {}
        }
    }
}

/// Salt of the pool's checksums.
pub(super) fn salt(superblock: &Superblock) -> PoolSalt {
    superblock.salt
}

pub(super) fn text(error: Error) -> String {
    error.to_string()
}
