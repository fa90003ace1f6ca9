//! tree.

use super::{snapshots, volumes};
use crate::{
    failure::{Failure, Outcome},
    forest::{Forest, svg, terminal},
    output::{Output, SnapshotView, VolumeView},
    session::Session,
};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Tree {
    volumes: Vec<Grown>,
}

#[derive(Serialize)]
struct Grown {
    #[serde(flatten)]
    volume: VolumeView,
    live: Vec<SnapshotView>,
}

pub(crate) async fn run(
    session: &Session,
    output: Output,
    volume: Option<&str>,
    picture: Option<&Path>,
) -> Outcome {
    let around = match volume {
        Some(volume) => Some(session.volume(volume).await?.id),
        None => None,
    };
    let volumes = volumes::all(session, true, false).await?.into_iter().map(VolumeView::from).collect();
    let snapshots = snapshots::all(session, None, false).await?.into_iter().map(SnapshotView::from).collect();
    let mut forest = Forest::grow(volumes, snapshots);
    if let Some(id) = around {
        forest = forest.around(&id);
    }
    if let Some(path) = picture {
        std::fs::write(path, svg::draw(&forest))
            .map_err(|error| Failure::from(error).during(format!("writing {}", path.display())))?;
        if !output.json {
            println!("{}", path.display());
            return Ok(());
        }
    }
    let text = terminal::draw(&forest);
    let volumes =
        forest.lanes.into_iter().map(|lane| Grown { volume: lane.volume, live: lane.snapshots }).collect();
    output.show(&Tree { volumes }, |_| {
        if text.is_empty() {
            "no volumes yet; `parallax create NAME --size 10G` makes one".into()
        } else {
            text
        }
    })
}
