//! The services of the protocol: thin. They parse identifiers to types, ask the store, and convert the answer.

mod convert;
mod manager;
mod node;
mod status;

pub use manager::ManagerService;
pub use node::NodeService;
pub use status::to_status;

use crate::{engine::Engine, gc::Collector, metrics::Metrics, openings::Openings};
use parallax_api::v1::{self, volume_ref::By};
use parallax_store::{VdiId, VdiInfo};
use std::sync::Arc;
use tonic::Status;

/// Most entries of one page of a list, so that an answer fits the smallest message that clients accept.
pub const PAGE_MAX: usize = 10_000;

/// What both services work on; cheap to clone.
#[derive(Clone)]
pub struct Core {
    /// The pool.
    pub engine: Arc<Engine>,
    /// What is open.
    pub openings: Arc<Openings>,
    /// Garbage collection.
    pub collector: Arc<Collector>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Core {
    /// Finds the volume that a request names.
    fn resolve(&self, volume: Option<v1::VolumeRef>) -> Result<VdiInfo, Status> {
        match volume.and_then(|volume| volume.by) {
            Some(By::Id(id)) => self.engine.pool().vdi(id.parse().map_err(to_status)?).map_err(to_status),
            Some(By::Name(name)) => self.engine.pool().vdi_named(&name).map_err(to_status),
            None => Err(Status::invalid_argument("the request does not say which volume")),
        }
    }

    /// The volume with this name.
    fn named(&self, name: String) -> Result<VdiId, Status> {
        self.resolve(Some(v1::VolumeRef { by: Some(By::Name(name)) })).map(|info| info.id)
    }

    /// A volume as the protocol has it.
    async fn describe(&self, info: VdiInfo, with_usage: bool) -> Result<v1::Volume, Status> {
        let usage = if with_usage {
            let id = info.id;
            Some(self.engine.run(move |pool| async move { pool.usage(id).await }).await.map_err(to_status)?)
        } else {
            None
        };
        let fault = self.openings.fault(info.id).unwrap_or_default();
        Ok(convert::volume(info, usage, fault))
    }
}
