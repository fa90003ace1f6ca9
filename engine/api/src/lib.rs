//! Protocol between plugin, daemon and manager, its client, and the units that people write.
//!
//! * [`v1`]: messages and services, generated; the proto file is their documentation.
//! * [`client`]: connects to a daemon by Unix socket or by mutual TLS, and sets deadlines.
//! * [`units`]: sizes and durations as text, one grammar for configuration, command line and CSI parameters.
//!
//! This crate knows nothing of the engine: the CSI driver links it and never the store.
#![forbid(unsafe_code)]

pub mod client;
pub mod units;

/// Version 1 of the protocol.
#[expect(missing_docs, unused_qualifications, reason = "generated; its documentation is the proto file")]
pub mod v1 {
    tonic::include_proto!("parallax.v1");
}
