//! pool evict.

use crate::{
    args::Place,
    bare::{Bare, HELD},
    failure::{Failure, Outcome},
    output::Output,
};
use parallax_store::{Name, Pool};
use serde::Serialize;
use std::path::Path;

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
    let bare = Bare::open(path, false, HELD)?;
    let environment = bare.environment(place)?;
    bare.run(move |device| async move { Pool::evict_host(device, &environment, &host).await }).await?;
    bare.close().await?;
    output.show(&Evicted { path: path.display().to_string(), host: name }, |_| {
        format!(
            "'{name}' is evicted; this machine may open the pool now. If '{name}' runs again, stop Parallax on it first"
        )
    })
}
