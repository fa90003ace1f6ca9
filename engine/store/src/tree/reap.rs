//! Takes apart a subtree that nobody can reach any more.

use super::{DIRTY_RO, Link, Superseded};
use crate::disk::Disk;
use parallax_block::Result;
use parallax_format::{Entry, node::FANOUT};

/// What a node of such a subtree held alone.
pub(crate) enum Child {
    Data(Entry),
    Node(Link),
}

/// The children of a node that were not shared, and the node itself. `None` if the link itself was shared, or a
/// hole.
pub(crate) async fn open_exclusive(
    disk: &Disk,
    link: Link,
    level: u8,
) -> Result<Option<(Vec<Child>, Superseded)>> {
    if link.is_hole() || link.is_ro() {
        return Ok(None);
    }
    let mut children = Vec::new();
    let superseded = match &link {
        Link::Clean(entry) => {
            let node = disk.node(*entry, level).await?;
            for word in node.words() {
                let entry = Entry::from_raw(*word);
                if !entry.is_hole() && !entry.is_ro() {
                    children.push(if level == 0 {
                        Child::Data(entry)
                    } else {
                        Child::Node(Link::Clean(entry))
                    });
                }
            }
            Superseded::Clean(*entry)
        }
        Link::Dirty(node, _) => {
            for at in 0..FANOUT {
                let entry = node.node.entry(at);
                if let Some(child) = node.child(at) {
                    if entry.raw() & DIRTY_RO == 0 {
                        children.push(Child::Node(Link::Dirty(child.clone(), false)));
                    }
                } else if !entry.is_hole() && !entry.is_ro() {
                    children.push(if level == 0 {
                        Child::Data(entry)
                    } else {
                        Child::Node(Link::Clean(entry))
                    });
                }
            }
            Superseded::Writing(node.written.clone())
        }
    };
    Ok(Some((children, superseded)))
}
