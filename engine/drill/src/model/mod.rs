//! The naive model that the store is compared with: registers, volumes, snapshots.

pub mod content;
pub mod forest;
pub mod register;
pub mod writes;

pub use content::Stamp;
pub use forest::{Doubt, Forest, Held, Origin, Snapshot, Use};
pub use register::{Cut, Piece, Registers};
pub use writes::{Outcome, Tick, WriteId};
