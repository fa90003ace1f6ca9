//! The CSI driver of Parallax: a controller that never touches a device, and a node plugin that mounts.
//!
//! ```text
//! sidecars --- unix --> controller --- unix | mTLS --> manager (a role of one parallaxd)
//! kubelet  --- unix --> node       --- unix ---------> parallaxd of this machine (devices)
//! ```
//!
//! Invariants of the whole driver:
//! * Nothing is remembered: every answer is derived from the manager, the daemon and the kernel, so a plugin
//!   killed at any point goes on where it was.
//! * Identifiers and paths from outside are parsed to types ([`ids`]) before anything is done with them.
//! * An operation that may have happened is never reported as definitely failed ([`errors`]).

#![forbid(unsafe_code)]

pub mod capability;
pub mod controller;
pub mod errors;
pub mod health;
pub mod identity;
pub mod ids;
pub mod locks;
pub mod manager;
pub mod metrics;
pub mod node;
pub mod params;
pub mod proto;
pub mod server;

/// Name of the driver, as Kubernetes knows it.
pub const DRIVER_NAME: &str = "csi.parallax.dev";

/// Topology key; its value is the UUID of the pool that a node can reach.
pub const TOPOLOGY_KEY: &str = "topology.parallax.dev/pool";
