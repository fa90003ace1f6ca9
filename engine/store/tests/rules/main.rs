//! One named test for each rule of the design: snapshots (3), writes and journal (4), space (5), and races between
//! every pair of operations. Each runs the whole store in the fake world and makes its one thing happen on purpose.

mod hosts;
mod incidents;
mod journal;
mod late;
mod meanwhile;
mod races;
mod rig;
mod scrub;
mod snapshots;
mod space;
mod writes;
