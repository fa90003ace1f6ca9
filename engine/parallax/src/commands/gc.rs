//! gc.

use crate::{
    failure::{Failure, Outcome},
    output::{Output, size},
    session::Session,
};
use parallax_api::v1;
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Collected {
    freed_data_bytes: u64,
    freed_metadata_bytes: u64,
    nodes_visited: u64,
    seconds: f64,
}

pub(crate) async fn run(session: &Session, output: Output) -> Outcome {
    let client = session.client();
    let begun = Instant::now();
    let mut stream =
        client.manager().collect_garbage(client.unbounded(v1::CollectGarbageRequest {})).await?.into_inner();
    let bar = output.steps_bar();
    let mut last = None;
    while let Some(step) = stream.message().await? {
        bar.set_message(step.phase.clone());
        bar.set_length(step.total);
        bar.set_position(step.done);
        last = Some(step);
    }
    bar.finish_and_clear();
    let done = last.filter(|step| step.phase == "done").ok_or_else(|| {
        Failure::new("the collection did not say that it finished").or_try("the same again")
    })?;
    let collected = Collected {
        freed_data_bytes: done.freed_data_bytes,
        freed_metadata_bytes: done.freed_metadata_bytes,
        nodes_visited: done.nodes_visited,
        seconds: begun.elapsed().as_secs_f64(),
    };
    output.show(&collected, |collected| {
        format!(
            "freed {} of data and {} of metadata; {} nodes read in {:.1} s",
            size(collected.freed_data_bytes),
            size(collected.freed_metadata_bytes),
            collected.nodes_visited,
            collected.seconds
        )
    })
}
