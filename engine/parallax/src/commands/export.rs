//! export.
//!
//! The file appears under its name only when it is whole and durable; holes stay holes.

use super::import::directory_of;
use crate::{
    failure::{Failure, Outcome},
    output::{Output, size},
    session::{Session, Source},
};
use indicatif::ProgressBar;
use parallax_api::v1;
use serde::Serialize;
use std::{fs::File, os::unix::fs::FileExt, path::Path};
use tokio::sync::mpsc;

/// Pieces between the daemon and the writer.
const QUEUE: usize = 8;

#[derive(Serialize)]
struct Exported {
    file: String,
    size_bytes: u64,
    data_bytes: u64,
}

pub(crate) async fn run(
    session: &Session,
    output: Output,
    source: &str,
    file: &Path,
    force: bool,
) -> Outcome {
    use v1::read_content_request::Target;
    if !force && file.symlink_metadata().is_ok() {
        return Err(exists(file));
    }
    let target = match session.source(source).await? {
        Source::Volume(id) => Target::VolumeId(id),
        Source::Snapshot(id) => Target::SnapshotId(id),
    };
    let directory = directory_of(file);
    let aside =
        tempfile::Builder::new().prefix(".parallax-export-").tempfile_in(&directory).map_err(|error| {
            Failure::from(error).during(format!("creating a file in {}", directory.display()))
        })?;
    let client = session.client();
    let request = v1::ReadContentRequest { target: Some(target) };
    let mut stream = client.node().read_content(client.unbounded(request)).await?.into_inner();
    let bar = output.bytes_bar(0);
    bar.set_message("export");
    let (sender, receiver) = mpsc::channel(QUEUE);
    let handle = aside.reopen()?;
    let shown = bar.clone();
    let writer = tokio::task::spawn_blocking(move || write_all(&handle, receiver, &shown));
    let received = async {
        while let Some(piece) = stream.message().await? {
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<_, Failure>(())
    };
    let received = tokio::select! {
        received = received => received,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted")),
    };
    bar.finish_and_clear();
    received?;
    let (size_bytes, data_bytes) = match writer.await {
        Ok(written) => {
            written.map_err(|error| Failure::from(error).during(format!("writing {}", file.display())))?
        }
        Err(_) => return Err(Failure::new("the writer of the file panicked")),
    };
    let kept = if force { aside.persist(file) } else { aside.persist_noclobber(file) };
    kept.map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(file),
        _ => Failure::from(error.error).during(format!("writing {}", file.display())),
    })?;
    File::open(&directory).and_then(|directory| directory.sync_all())?;
    let exported = Exported { file: file.display().to_string(), size_bytes, data_bytes };
    output.show(&exported, |exported| {
        format!("{source} is in {}: {}, {} of it data", exported.file, size(size_bytes), size(data_bytes))
    })
}

fn exists(file: &Path) -> Failure {
    Failure::new(format!("{} exists", file.display())).or_try("--force, to replace it")
}

/// Writes pieces as they come; the sizes of the whole and of the data.
fn write_all(
    file: &File,
    mut pieces: mpsc::Receiver<v1::Content>,
    bar: &ProgressBar,
) -> std::io::Result<(u64, u64)> {
    let mut size = None;
    let mut data = 0;
    while let Some(piece) = pieces.blocking_recv() {
        let whole = match size {
            Some(size) => size,
            None => {
                file.set_len(piece.size_bytes)?;
                bar.set_length(piece.size_bytes);
                *size.insert(piece.size_bytes)
            }
        };
        let length = piece.data.len() as u64;
        if piece.offset.checked_add(length).is_none_or(|end| end > whole) {
            return Err(std::io::Error::other(format!("a piece at byte {} lies past the end", piece.offset)));
        }
        file.write_all_at(&piece.data, piece.offset)?;
        data += length;
        bar.set_position(piece.offset + length);
    }
    let size = size.ok_or_else(|| std::io::Error::other("the daemon sent nothing"))?;
    file.sync_all()?;
    Ok((size, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(offset: u64, data: &[u8], size_bytes: u64) -> v1::Content {
        v1::Content { offset, data: data.to_vec(), size_bytes }
    }

    fn written(pieces: Vec<v1::Content>) -> std::io::Result<(File, (u64, u64))> {
        let (sender, receiver) = mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        let file = tempfile::tempfile().unwrap();
        let sizes = write_all(&file, receiver, &ProgressBar::hidden())?;
        Ok((file, sizes))
    }

    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let pieces = vec![content(0, &[], 64 << 20), content(32 << 20, &[7; 4096], 0)];
        let (file, sizes) = written(pieces).unwrap();
        assert_eq!(sizes, (64 << 20, 4096));
        let found = file.metadata().unwrap();
        assert_eq!(found.len(), 64 << 20);
        assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
    }

    #[test]
    fn a_piece_past_the_end_is_refused_and_so_is_nothing() {
        assert!(written(vec![content(0, &[], 4096), content(4096, &[1], 0)]).is_err());
        assert!(written(vec![content(0, &[], 4096), content(u64::MAX, &[1], 0)]).is_err());
        assert!(written(vec![]).is_err());
    }
}
