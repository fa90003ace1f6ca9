//! Programs that no package offers, built once and kept by version.
//!
//! A recipe is a Go module in `e2e/cluster/recipes/` (or a published module of its own) and the programs to
//! build from it. What it builds goes to `CACHE/NAME-VERSION/`, each program beside a stamp that holds the
//! digest of the recipe; a program whose stamp differs is built again.

mod debian;
mod go;
mod rust;

pub(crate) use debian::{install, unpack};
pub(crate) use go::{
    AGNHOST, CNI_PLUGINS, CSI_SANITY, CSI_SIDECARS, ETCD, HELM, KUBERNETES, KUBERNETES_E2E, Recipe,
};
pub(crate) use rust::{Profile, ProjectBinaries, project_binaries};

/// The recipes that a running cluster with Parallax needs.
pub(crate) const FOR_CLUSTER: &[&Recipe] = &[&KUBERNETES, &ETCD, &CSI_SIDECARS, &CNI_PLUGINS, &HELM];
