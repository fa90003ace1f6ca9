//! The protocol of many hosts, modelled before it is built.
//!
//! The store runs on one host today. What several hosts will do to each other is decided, in
//! [docs/lock-protocol.md](../../../docs/lock-protocol.md), and this crate tries the decisions: it looks at every
//! state that a small world can reach, with writes that land late or never, hosts that pause or die between any
//! two steps, and takes away one rule at a time to see that it is missed.
//!
//! Read in this order:
//!
//! * [`device`]: what a shared block device may do with a write.
//! * [`manager`]: who may change the registry and the catalogue.
//! * [`takeover`]: how a volume passes from owner to owner.
//! * [`gc`]: how garbage is collected while all hosts go on.
//! * [`lease`]: when a silent host may be taken for dead.
//! * [`explore`]: how all states are found, and how a counterexample becomes a story.
//! * [`cases`]: what is run, and what is expected of it.
//!
//! # Why our own explorer
//!
//! It is a breadth-first search over hashed states, a hundred lines. A model checker from a library would bring an
//! HTTP server and an actor framework for what is a queue and a hash map, keeps whole states where 16 bytes do,
//! and reports neither which situations a run has met nor steps in words.
#![forbid(unsafe_code)]

pub mod cases;
pub mod device;
pub mod explore;
pub mod gc;
pub mod lease;
pub mod manager;
pub mod takeover;
