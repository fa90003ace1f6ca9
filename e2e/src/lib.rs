//! Stories: what a user of Parallax lives through, told to a real cluster and checked at every step.
//!
//! One story is one file in `stories/`. It gets a namespace of its own, speaks to the cluster through kubectl as
//! a user would, and asks Parallax itself only through its command line. What running them needs (programs with
//! deadlines, waiting, words on the terminal) lives here too, because `xtask` needs the same.
//!
//! Invariants:
//! * A story leaves nothing behind when it succeeds, and everything when it fails.
//! * After every story the whole pool is verified; damage fails the story.
#![forbid(unsafe_code)]

pub mod kube;
pub mod objects;
pub mod pool;
pub mod process;
pub mod runner;
pub mod say;
pub mod stage;
pub mod stories;
pub mod wait;
