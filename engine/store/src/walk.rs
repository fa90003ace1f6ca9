//! Walks durable trees: block maps, and snapshot tables with the maps that they name. Each node is read once,
//! many at a time.

use crate::disk::Disk;
use parallax_block::{BoxFuture, Result, join_all};
use parallax_format::{
    BlockAddress, Entry, Node,
    node::TABLE_LEVEL,
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

/// What a walk does on its way.
pub(crate) trait Visit: Send {
    /// A node is met; whether to read it and go on below.
    fn enter(&mut self, address: BlockAddress) -> bool;
    /// A leaf of a block map.
    fn leaf(&mut self, node: &Node) -> Result<()>;
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
}

/// Visits everything below `roots`.
pub(crate) async fn walk(disk: &Disk, roots: Roots, visit: &mut dyn Visit) -> Result<()> {
    let tables = roots.tables.into_iter().map(|root| (root, TABLE_LEVEL));
    let maps = roots.maps.into_iter().map(|root| (root, 0));
    for (root, base) in tables.chain(maps) {
        let mut stack = vec![(root.link, root.depth.max(1) - 1 + base)];
        while !stack.is_empty() {
            let batch: Vec<(Entry, u8)> = stack.split_off(stack.len().saturating_sub(READS_MAX));
            let batch: Vec<(Entry, u8)> = batch
                .into_iter()
                .filter(|(link, _)| link.address().is_some_and(|address| visit.enter(address)))
                .collect();
            let reads: Vec<BoxFuture<'_, _>> = batch
                .iter()
                .map(|(link, level)| -> BoxFuture<'_, Result<Node>> { Box::pin(read(disk, *link, *level)) })
                .collect();
            for ((link, level), node) in batch.iter().zip(join_all(reads).await) {
                match node {
                    Ok(node) => below(&node, *level, &mut stack, visit)?,
                    Err(error) => visit.damaged(*link, error)?,
                }
            }
        }
        visit.root_done();
    }
    Ok(())
}

fn below(node: &Node, level: u8, stack: &mut Vec<(Entry, u8)>, visit: &mut dyn Visit) -> Result<()> {
    match level {
        0 => visit.leaf(node),
        TABLE_LEVEL => {
            for at in 0..RECORDS_PER_LEAF as usize {
                if let Some(record) = SnapshotRecord::get(node, at)?
                    && visit.snapshot(&record)
                    && !record.map.link.is_hole()
                {
                    stack.push((record.map.link, record.map.depth.max(1) - 1));
                }
            }
            Ok(())
        }
        _ => {
            let links = node.words().iter().map(|word| Entry::from_raw(*word));
            stack.extend(links.filter(|link| !link.is_hole()).map(|link| (link, level - 1)));
            Ok(())
        }
    }
}

/// A node, from the cache or from disk; a walk over everything does not push the cache's content out.
async fn read(disk: &Disk, link: Entry, level: u8) -> Result<Node> {
    if let Some(node) = disk.cache.get(link) {
        return Ok(Node::clone(&node));
    }
    let Some(address) = link.address() else { return Ok(Node::empty()) };
    Node::open(&disk.read_block(address).await?, link, level, disk.salt())
}
