//! The node daemon: wiring between the store, the exports and the protocol.
//!
//! ```text
//! config -> engine (device, reactors, pool) -> openings (what is open, and for whom)
//!                                           -> service (Manager, Node) -> server (socket, mutual TLS, health)
//!                                           -> gc, probe (background)  -> metrics (loopback HTTP)
//! ```
//!
//! It is a library as well, so that the command line can run the same services in its own process on a pool
//! that no daemon holds: there is one behaviour, whichever way it is reached.
//!
//! Invariants:
//! * Futures of the store run on a reactor ([`engine::Engine::run`]), never on the executor of the gRPC server.
//! * Nothing listens without either the file permissions of a 0600 socket, or mutual TLS, or (metrics only) a
//!   loopback address.
#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
pub mod engine;
pub mod gc;
pub mod logging;
pub mod metrics;
pub mod openings;
pub mod probe;
pub mod respawn;
pub mod server;
pub mod service;
pub mod supervise;
