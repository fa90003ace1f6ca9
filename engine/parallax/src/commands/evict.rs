//! pool evict.

use crate::{
    args::Place,
    failure::{Failure, Outcome},
    output::Output,
};
use parallax_device::{IoMode, OpenOptions, ShmTails, open_device};
use parallax_store::{Environment, Name, Pool};
use parallaxd::engine::{Reactors, entropy, host_name};
use serde::Serialize;
use std::{path::Path, sync::Arc};

#[derive(Serialize)]
struct Evicted<'a> {
    path: String,
    host: &'a str,
}

/// Marks a host as gone for good. The operator answers for it.
pub(crate) async fn run(output: Output, place: &Place, path: &Path, name: &str, yes: bool) -> Outcome {
    let host = Name::new(name)?;
    if !yes {
        return Err(Failure::new(format!(
            "evicting '{name}' from {} is only safe if that machine is switched off, or cut off from the device, \
             and stays so: if it goes on writing, the pool is destroyed",
            path.display()
        ))
        .or_try(format!("parallax pool evict {} {name} --yes, once you have made sure", path.display())));
    }
    let reactors = Reactors::start(1, IoMode::Auto, false)?;
    let device = open_device(path, reactors.home(), OpenOptions::default()).map_err(|error| {
        Failure::from(error).or_try("stopping whoever uses the device; parallaxd, or a mount")
    })?;
    let environment = Environment {
        runtime: Arc::new(reactors.home().clone()),
        tails: Arc::new(ShmTails::open(&place.tails)?),
        host: host_name()?,
        entropy: entropy(),
    };
    reactors.home().run(async move { Pool::evict_host(device, &environment, &host).await }).await??;
    tokio::task::spawn_blocking(move || reactors.shutdown())
        .await
        .map_err(|error| Failure::new(format!("stopping the data thread failed: {error}")))?;
    output.show(&Evicted { path: path.display().to_string(), host: name }, |_| {
        format!(
            "'{name}' is evicted; this machine may open the pool now. If '{name}' runs again, stop Parallax on it first"
        )
    })
}
