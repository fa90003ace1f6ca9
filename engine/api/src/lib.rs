//! Protocol between plugin, daemon and manager; the proto file is its documentation.

/// Version 1 of the protocol.
#[expect(missing_docs, reason = "generated; documented in the proto file")]
pub mod v1 {
    tonic::include_proto!("parallax.v1");
}
