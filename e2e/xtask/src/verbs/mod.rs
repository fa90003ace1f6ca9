//! One verb, one file.

pub(crate) mod bench;
pub(crate) mod ci;
pub(crate) mod cluster;
pub(crate) mod demo;
pub(crate) mod drill;
pub(crate) mod e2e;
pub(crate) mod fuzz;
pub(crate) mod manifests;
pub(crate) mod model;
pub(crate) mod pass_on;
pub(crate) mod setup;
