//! Walks durable trees: block maps, and snapshot tables with the maps that they name. Each node is read once,
//! many at a time.

use crate::{disk::Disk, scrub::Pace};
use parallax_block::{BLOCK_SIZE, BoxFuture, Result, join_all};
use parallax_format::{
    BlockAddress, Entry, Node,
    node::{FANOUT, TABLE_LEVEL},
    root::TreeRoot,
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
};

/// Nodes read at a time.
const READS_MAX: usize = 64;

/// Where walks begin.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    pub(crate) maps: Vec<TreeRoot>,
    pub(crate) tables: Vec<TreeRoot>,
}

impl Roots {
    pub(crate) fn total(&self) -> usize {
        self.maps.len() + self.tables.len()
    }
}

/// Where in a tree a node is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Of the node: 0 is a leaf of a block map, [`TABLE_LEVEL`] one of a table.
    pub(crate) level: u8,
    /// First block of the VDI that is below it; means nothing in a table.
    pub(crate) block: u64,
    /// The snapshot whose map it was met in; `None` in the VDI's own map and in its table.
    pub(crate) snapshot: Option<u64>,
}

impl Place {
    fn root(root: TreeRoot, base: u8, snapshot: Option<u64>) -> Self {
        Self { level: root.depth.max(1) - 1 + base, block: 0, snapshot }
    }

    /// Whether the node belongs to a table of snapshots.
    pub(crate) fn is_table(self) -> bool {
        self.level >= TABLE_LEVEL
    }

    fn child(self, at: usize) -> Self {
        Self {
            level: self.level - 1,
            block: self.block.saturating_add((at as u64).saturating_mul(self.span())),
            ..self
        }
    }

    /// Blocks below each of the node's words.
    pub(crate) fn span(self) -> u64 {
        (FANOUT as u64).saturating_pow(u32::from(self.level % TABLE_LEVEL))
    }
}

/// How nodes are read.
pub(crate) enum Through<'a> {
    /// From the cache where they are there, as fast as it goes.
    Cache,
    /// From the device, at a pace.
    Device(&'a mut Pace),
}

/// What a walk does on its way.
pub(crate) trait Visit: Send {
    /// A node is met; whether to read it and go on below.
    fn enter(&mut self, address: BlockAddress, place: Place) -> bool;
    /// A leaf of a block map.
    fn leaf(&mut self, node: &Node, place: Place) -> Result<()>;
    /// A record of a snapshot table; whether to walk its map.
    fn snapshot(&mut self, _record: &SnapshotRecord) -> bool {
        true
    }
    /// A node could not be read or does not verify. An error ends the walk.
    fn damaged(&mut self, _link: Entry, error: parallax_block::Error) -> Result<()> {
        Err(error)
    }
    /// A root and everything below has been visited.
    fn root_done(&mut self) {}
    /// Asked now and then; an error ends the walk.
    fn go_on(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Visits everything below `roots`.
pub(crate) async fn walk(
    disk: &Disk,
    roots: Roots,
    mut through: Through<'_>,
    visit: &mut dyn Visit,
) -> Result<()> {
    let tables = roots.tables.into_iter().map(|root| (root.link, Place::root(root, TABLE_LEVEL, None)));
    let maps = roots.maps.into_iter().map(|root| (root.link, Place::root(root, 0, None)));
    for root in tables.chain(maps) {
        let mut stack = vec![root];
        while !stack.is_empty() {
            visit.go_on()?;
            let batch: Vec<(Entry, Place)> = stack.split_off(stack.len().saturating_sub(READS_MAX));
            let batch: Vec<(Entry, Place)> = batch
                .into_iter()
                .filter(|(link, place)| link.address().is_some_and(|address| visit.enter(address, *place)))
                .collect();
            let cached = match &mut through {
                Through::Cache => true,
                Through::Device(pace) => {
                    pace.spend((batch.len() * BLOCK_SIZE) as u64).await;
                    false
                }
            };
            let reads: Vec<BoxFuture<'_, _>> = batch
                .iter()
                .map(|(link, place)| -> BoxFuture<'_, Result<Node>> {
                    Box::pin(read(disk, *link, place.level, cached))
                })
                .collect();
            for ((link, place), node) in batch.iter().zip(join_all(reads).await) {
                match node.and_then(|node| below(&node, *place, &mut stack, visit)) {
                    Ok(()) => {}
                    Err(error) => visit.damaged(*link, error)?,
                }
            }
        }
        visit.root_done();
    }
    Ok(())
}

fn below(node: &Node, place: Place, stack: &mut Vec<(Entry, Place)>, visit: &mut dyn Visit) -> Result<()> {
    match place.level {
        0 => visit.leaf(node, place),
        TABLE_LEVEL => {
            for at in 0..RECORDS_PER_LEAF as usize {
                if let Some(record) = SnapshotRecord::get(node, at)?
                    && visit.snapshot(&record)
                    && !record.map.link.is_hole()
                {
                    stack.push((record.map.link, Place::root(record.map, 0, Some(record.number))));
                }
            }
            Ok(())
        }
        _ => {
            let links = node.words().iter().map(|word| Entry::from_raw(*word)).enumerate();
            stack.extend(links.filter(|(_, link)| !link.is_hole()).map(|(at, link)| (link, place.child(at))));
            Ok(())
        }
    }
}

/// A node, from the cache if that will do, or from disk; a walk over everything does not push the cache's content
/// out.
async fn read(disk: &Disk, link: Entry, level: u8, cached: bool) -> Result<Node> {
    if cached && let Some(node) = disk.cache.get(link) {
        return Ok(Node::clone(&node));
    }
    let Some(address) = link.address() else { return Ok(Node::empty()) };
    Node::open(&disk.read_block(address).await?, link, level, disk.salt())
}
