//! Verified radix nodes in memory: bounded, second chance.
//!
//! Keyed by address. A node is write-once, but its address is reused after it was freed; whoever writes a node
//! inserts it, so an older node of the same address never answers. The link is compared all the same.

use parallax_format::{Entry, Node};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

const SHARDS: usize = 16;

pub(crate) struct NodeCache {
    shards: Vec<Mutex<Shard>>,
    shard_max: usize,
}

#[derive(Default)]
struct Shard {
    nodes: BTreeMap<u64, Slot>,
    queue: VecDeque<u64>,
}

struct Slot {
    link: Entry,
    node: Arc<Node>,
    used: bool,
}

impl NodeCache {
    pub(crate) fn new(nodes_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_max: (nodes_max / SHARDS).max(4),
        }
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[(key as usize ^ (key >> 19) as usize) % SHARDS]
    }

    /// The node behind `link`, if it is here.
    pub(crate) fn get(&self, link: Entry) -> Option<Arc<Node>> {
        let key = link.address()?.to_bits();
        let mut shard = self.shard(key).lock();
        let slot = shard.nodes.get_mut(&key)?;
        if !slot.link.same_target(link) {
            return None;
        }
        slot.used = true;
        Some(slot.node.clone())
    }

    /// Remembers a node that was verified or written.
    pub(crate) fn insert(&self, link: Entry, node: Arc<Node>) {
        let Some(key) = link.address().map(|address| address.to_bits()) else { return };
        let mut shard = self.shard(key).lock();
        if shard.nodes.insert(key, Slot { link, node, used: false }).is_none() {
            shard.queue.push_back(key);
        }
        while shard.nodes.len() > self.shard_max {
            let Some(victim) = shard.queue.pop_front() else { break };
            match shard.nodes.get_mut(&victim) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    shard.queue.push_back(victim);
                }
                _ => {
                    shard.nodes.remove(&victim);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_format::{BlockAddress, ExtentId};

    fn link(block: u32, check: u32) -> Entry {
        Entry::node(BlockAddress::new(ExtentId::new(1).unwrap(), block).unwrap(), check, false)
    }

    #[test]
    fn a_reused_address_never_answers_with_its_old_node() {
        let cache = NodeCache::new(64);
        cache.insert(link(5, 1), Arc::new(Node::empty()));
        assert!(cache.get(link(5, 2)).is_none());
        cache.insert(link(5, 2), Arc::new(Node::empty()));
        assert!(cache.get(link(5, 1)).is_none());
        assert!(cache.get(link(5, 2).with_ro()).is_some());
    }

    #[test]
    fn the_cache_stays_within_its_bound() {
        let cache = NodeCache::new(64);
        for block in 0..10_000 {
            cache.insert(link(block, 1), Arc::new(Node::empty()));
        }
        let nodes: usize = cache.shards.iter().map(|shard| shard.lock().nodes.len()).sum();
        assert!(nodes <= 64, "{nodes}");
    }
}
