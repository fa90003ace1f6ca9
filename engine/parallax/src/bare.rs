//! A pool's device, without the pool: for making one, and for what must work on a pool that does not open.
//!
//! Dropping it stops its thread.

use crate::{
    args::Place,
    failure::{Failure, Outcome},
};
use parallax_block::BlockDevice;
use parallax_device::{IoMode, OpenOptions, ShmTails, open_device};
use parallax_store::{Environment, Name};
use parallaxd::engine::{Reactors, entropy, host_name};
use std::{path::Path, sync::Arc};

/// What to try when somebody else has the device.
pub(crate) const HELD: &str = "stopping whoever uses the device; parallaxd, or a mount";

pub(crate) struct Bare {
    reactors: Reactors,
    device: Arc<dyn BlockDevice>,
}

impl Bare {
    /// Opens the device at `path`, to read it only or to hold it alone. `hint` says what to try if somebody else does.
    pub(crate) fn open(path: &Path, read_only: bool, hint: &str) -> Outcome<Self> {
        let reactors = Reactors::start(1, IoMode::Auto, false)?;
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let device = open_device(path, reactors.home(), options).map_err(|error| {
            Failure::from(error).during(format!("opening {}", path.display())).or_try(hint)
        })?;
        Ok(Self { reactors, device })
    }

    /// What a store on this device needs from outside.
    pub(crate) fn environment(&self, place: &Place) -> Outcome<Environment> {
        Ok(Environment {
            runtime: Arc::new(self.reactors.home().clone()),
            tails: Arc::new(ShmTails::open(&place.tails)?),
            host: place.host.as_deref().map_or_else(host_name, Name::new)?,
            entropy: entropy(),
        })
    }

    /// Does work on the device's thread.
    pub(crate) async fn run<T, Work>(
        &self,
        work: impl FnOnce(Arc<dyn BlockDevice>) -> Work + Send + 'static,
    ) -> Outcome<T>
    where
        T: Send + 'static,
        Work: Future<Output = parallax_block::Result<T>> + Send + 'static,
    {
        let device = Arc::clone(&self.device);
        Ok(self.reactors.home().run(async move { work(device).await }).await??)
    }

    /// Lets go of the device, whose last requests it waits for.
    pub(crate) async fn close(self) -> Outcome {
        let Self { reactors, device } = self;
        drop(device);
        tokio::task::spawn_blocking(move || reactors.shutdown())
            .await
            .map_err(|error| Failure::new(format!("stopping the data thread failed: {error}")))
    }
}
