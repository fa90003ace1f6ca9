//! The protocol of many hosts, modelled before it is built.
//!
//! One host uses a pool today. What several hosts will do to each other is decided, in `docs/lock-protocol.md`, and
//! this crate tries the decisions. It looks at every state that a small world can reach, with writes that land late
//! or never, and hosts that pause or die between any two steps. Then it takes away one rule at a time, to see that
//! the rule is missed.
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
//! # Why four models
//!
//! One model of everything would have too many states to look at. The four meet at three places, and what one
//! takes for granted there another one proves:
//!
//! | taken for granted | by | proved by |
//! |---|---|---|
//! | a grant, or a record of the registry, counts from one instant on and is never lost | `takeover`, `gc` | `manager` |
//! | who is taken over is dead, or the device refuses it | `takeover` | `lease`, where a watchdog is the evidence |
//! | what an opener finds is the last durable mapping, and nothing lands on it later | `gc` | `takeover` |
//! | a block is reused only if nobody needs it | `takeover`: any block that its volume does not need is reused, at any time | `gc` |
//!
//! Each side is modelled as the most that the other may do: in `takeover` the rest of the pool reuses whatever it
//! may, at the worst moment; in `gc` a volume moves between any two steps; in `manager` whoever was granted something
//! gives it back at any time. So a run of the whole, seen through the blocks of one model, is a run of that model.
//!
//! What the split cannot show is a fault *inside* a step that another model takes for one. `gc` opens a volume at once;
//! but as in `takeover`, the device tells the old state, journal included, until the new owner's first checkpoint has
//! landed, and the owner may do anything before. `takeover` takes a grant for one step; `manager` proves that it is.
//!
//! # What is not in any model
//!
//! * Writes that a forwarding node keeps and sends again (6h); suspension when a lease lapses (6g). Without evidence
//!   nobody takes over, so no promise rests on 6g. It keeps a stale host from serving old data.
//! * Full pools (5g), trees of several levels, volumes of several blocks: the drill has them, on one host.
//! * Damage other than one root slot (5b: two copies of bitmaps and areas): checksums, and `parallax check`.
//!
//! # Why our own explorer
//!
//! It is a breadth-first search over hashed states, some hundred lines. A model checker from a library would bring an
//! HTTP server and an actor framework for what is a queue and a hash map. It would keep whole states where 16 bytes do,
//! and tell neither which situations a run has met, nor a counterexample in words.
#![forbid(unsafe_code)]

pub mod cases;
pub mod device;
pub mod explore;
pub mod gc;
pub mod lease;
pub mod manager;
pub mod takeover;
