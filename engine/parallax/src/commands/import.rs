//! import.
//!
//! Lifecycle: open the image, create the volume, send what is not a hole and not zero, wait until it is durable.
//! A volume whose import failed or was interrupted is deleted again.

use crate::{
    args::ImageFormat,
    failure::{Failure, Outcome},
    image::{self, Image},
    output::{Output, VolumeView, size},
    session::{Session, by_id},
};
use indicatif::ProgressBar;
use parallax_api::{units::ByteSize, v1};
use parallax_block::BLOCK_SIZE;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// Bytes of one message.
const PIECE: usize = 1 << 20;

/// Messages between the reader and the daemon.
const QUEUE: usize = 8;

#[derive(Serialize)]
struct Imported {
    #[serde(flatten)]
    volume: VolumeView,
    bytes_written: u64,
}

pub(crate) async fn run(
    session: &Session,
    output: Output,
    path: &Path,
    name: String,
    format: ImageFormat,
    larger: Option<ByteSize>,
) -> Outcome {
    let image = image::open(path, format)?;
    let block = BLOCK_SIZE as u64;
    let bytes = image.size().next_multiple_of(block).max(larger.unwrap_or_default().0);
    refuse_taken(session, &name).await?;
    let client = session.client();
    let request = v1::CreateVolumeRequest { name: name.clone(), size_bytes: bytes, ..Default::default() };
    let volume = client.manager().create_volume(client.request(request)).await?.into_inner();
    let bar = output.bytes_bar(image.size());
    bar.set_message("import");
    let sent = tokio::select! {
        sent = send(session, &volume.id, image, bar.clone()) => sent,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted")),
    };
    bar.finish_and_clear();
    match sent {
        Ok(bytes_written) => {
            let volume = VolumeView::from(session.volume(&volume.id).await?);
            output.show(&Imported { volume, bytes_written }, |imported| {
                format!(
                    "imported {} as {name}: {}, {} of it data",
                    path.display(),
                    size(imported.volume.size_bytes),
                    size(imported.bytes_written)
                )
            })
        }
        Err(failure) => Err(match undo(session, &volume.id).await {
            Ok(()) => failure.during("nothing was imported"),
            Err(_) => {
                failure.or_try(format!("parallax delete {name}: the half that was imported is still there"))
            }
        }),
    }
}

/// Deletes the volume, which is free as soon as the daemon has noticed that nobody sends any more.
async fn undo(session: &Session, id: &str) -> Outcome {
    let client = session.client();
    let mut tries = 50;
    loop {
        let request = v1::DeleteVolumeRequest { volume: by_id(id) };
        match client.manager().delete_volume(client.request(request)).await {
            Err(status) if status.code() == Code::FailedPrecondition && tries > 0 => {
                tries -= 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome.map(drop).map_err(Failure::from),
        }
    }
}

async fn refuse_taken(session: &Session, name: &str) -> Outcome {
    let client = session.client();
    let by = Some(v1::volume_ref::By::Name(name.to_owned()));
    let request = v1::GetVolumeRequest { volume: Some(v1::VolumeRef { by }), with_usage: false };
    match client.manager().get_volume(client.request(request)).await {
        Ok(_) => Err(Failure::new(format!("there is a volume '{name}' already"))
            .or_try(format!("another name, or parallax delete {name}"))),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status.into()),
    }
}

async fn send(session: &Session, id: &str, image: Box<dyn Image>, bar: ProgressBar) -> Outcome<u64> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let first = v1::WriteContentRequest { volume: by_id(id), offset: 0, data: vec![] };
    let reader = tokio::task::spawn_blocking(move || {
        if sender.blocking_send(first).is_err() {
            return Ok(());
        }
        read_all(image, &bar, |offset, data| {
            sender.blocking_send(v1::WriteContentRequest { volume: None, offset, data }).is_ok()
        })
    });
    let client = session.client();
    let answer = client.node().write_content(client.unbounded(ReceiverStream::new(receiver))).await;
    // The reader knows better than the daemon why the stream ended early.
    match reader.await {
        Ok(Ok(())) => Ok(answer?.into_inner().bytes_written),
        Ok(Err(error)) => Err(Failure::from(error).during("reading the image")),
        Err(_) => Err(Failure::new("the image is malformed in a way that its reader did not survive")),
    }
}

/// Passes everything that is neither hole nor zero to `take`, in whole blocks, until that says no.
fn read_all(
    mut image: Box<dyn Image>,
    bar: &ProgressBar,
    mut take: impl FnMut(u64, Vec<u8>) -> bool,
) -> std::io::Result<()> {
    let size = image.size();
    let block = BLOCK_SIZE as u64;
    let mut at = 0;
    while let Some(range) = image.next_data(at)? {
        // Whole blocks, so that two ranges of one block become one write.
        let mut offset = (range.start / block * block).max(at);
        let end = range.end.next_multiple_of(block);
        while offset < end {
            let length = (end - offset).min(PIECE as u64) as usize;
            let mut data = vec![0; length];
            let readable = size.saturating_sub(offset).min(length as u64) as usize;
            image.read(offset, &mut data[..readable])?;
            for (start, run) in runs_of_data(&data) {
                if !take(offset + start as u64, run.to_vec()) {
                    return Ok(());
                }
            }
            offset += length as u64;
            bar.set_position(offset.min(size));
        }
        at = end;
    }
    bar.set_position(size);
    Ok(())
}

/// Runs of blocks that are not all zero.
fn runs_of_data(data: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, block) in data.chunks(BLOCK_SIZE).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (start, end) = (number * BLOCK_SIZE, number * BLOCK_SIZE + block.len());
        match runs.last_mut() {
            Some(run) if run.1 == start => run.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs.into_iter().map(|(start, end)| (start, &data[start..end])).collect()
}

/// A file that is not there yet, in the directory of `path`.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    /// An image with data where it is said to be, in odd places.
    struct Odd {
        bytes: Vec<u8>,
        ranges: Vec<Range<u64>>,
    }

    impl Image for Odd {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn next_data(&mut self, from: u64) -> std::io::Result<Option<Range<u64>>> {
            let next = self.ranges.iter().find(|range| range.end > from);
            Ok(next.map(|range| range.start.max(from)..range.end))
        }

        fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
            let offset = offset as usize;
            bytes.copy_from_slice(&self.bytes[offset..offset + bytes.len()]);
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn whatever_the_map_says_the_bytes_arrive(
            blocks in proptest::collection::vec(any::<Option<u8>>(), 1..40),
            tail in 0usize..4096,
        ) {
            let mut bytes: Vec<u8> = Vec::new();
            let mut ranges = Vec::new();
            for (number, block) in blocks.iter().enumerate() {
                let start = bytes.len() as u64;
                // Ranges of half blocks, as a filesystem with small blocks has.
                bytes.extend(std::iter::repeat_n(block.unwrap_or(0), BLOCK_SIZE / 2));
                if block.is_some() && number % 3 != 2 {
                    ranges.push(start..bytes.len() as u64);
                } else if block.is_some() {
                    let end = bytes.len();
                    bytes[start as usize..end].fill(0);
                }
            }
            bytes.extend(std::iter::repeat_n(0, tail));
            let expected = bytes.clone();
            let mut got = vec![0; expected.len().next_multiple_of(BLOCK_SIZE)];
            let image = Box::new(Odd { bytes, ranges });
            read_all(image, &ProgressBar::hidden(), |offset, data| {
                assert!(offset.is_multiple_of(BLOCK_SIZE as u64));
                assert!(data.len().is_multiple_of(BLOCK_SIZE));
                got[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                true
            }).unwrap();
            prop_assert!(got[..expected.len()] == expected);
            prop_assert!(got[expected.len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn zero_blocks_are_left_out() {
        let mut data = vec![0; 4 * BLOCK_SIZE];
        data[BLOCK_SIZE] = 1;
        data[3 * BLOCK_SIZE - 1] = 1;
        let runs = runs_of_data(&data);
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].0, runs[0].1.len()), (BLOCK_SIZE, 2 * BLOCK_SIZE));
    }
}
