//! Bad disk images: `tests/corpus/qcow2.txt` keeps them, with what must come of each.
//!
//! An image is opened and read to its end, as an import does, in memory that does not depend on what it says.

use super::*;
use parallax_fuzz::{Bound, Outcome, Seed, Target, explore, replay};
use std::{path::PathBuf, time::Duration};

const CLUSTER: usize = 4096;
/// Data that are read of one image; where all of a map leads to one cluster there is no end.
const READ_MAX: u64 = 64 << 20;
/// Tables are cached by the reader; data are read in small pieces.
const BOUND: Bound = Bound { memory: 96 << 20, time: Duration::from_secs(90) };
/// 4096 bytes of 7 by deflate.
const DEFLATED: [u8; 21] = [
    0xed, 0xc1, 0x31, 0x0d, 0x00, 0x00, 0x00, 0xc3, 0xa0, 0xb3, 0xfe, 0x1d, 0xcf, 0xc7, 0x02, 0x14, 0x00,
    0x00, 0x00, 0xf0, 0x6e,
];

fn put(image: &mut [u8], at: usize, bytes: usize, value: u64) {
    let value = value.to_le_bytes();
    for index in 0..bytes {
        image[at + index] = value[bytes - 1 - index];
    }
}

/// An image of 1 MiB: clusters of header, L1, L2, counts and their table, two of data and one that is compressed.
fn image(version: u64) -> Vec<u8> {
    let mut image = vec![0; 8 * CLUSTER];
    let at = |cluster: usize| (cluster * CLUSTER) as u64;
    image[..4].copy_from_slice(b"QFI\xfb");
    put(&mut image, 4, 4, version);
    put(&mut image, 20, 4, 12);
    put(&mut image, 24, 8, 1 << 20);
    put(&mut image, 36, 4, 1);
    put(&mut image, 40, 8, at(1));
    put(&mut image, 48, 8, at(3));
    put(&mut image, 56, 4, 1);
    if version == 3 {
        put(&mut image, 96, 4, 4);
        put(&mut image, 100, 4, 104);
    }
    put(&mut image, CLUSTER, 8, 1 << 63 | at(2));
    put(&mut image, 2 * CLUSTER, 8, 1 << 63 | at(5));
    put(&mut image, 2 * CLUSTER + 8, 8, 1 << 63 | at(6));
    // One sector, and no more: clusters of 4 KiB have 58 bits of offset.
    put(&mut image, 2 * CLUSTER + 16, 8, 1 << 62 | at(7));
    put(&mut image, 3 * CLUSTER, 8, at(4));
    for cluster in 0..8 {
        put(&mut image, 4 * CLUSTER + 2 * cluster, 2, 1);
    }
    image[5 * CLUSTER..6 * CLUSTER].fill(5);
    image[6 * CLUSTER..7 * CLUSTER].fill(6);
    image[7 * CLUSTER..7 * CLUSTER + DEFLATED.len()].copy_from_slice(&DEFLATED);
    image
}

fn seed(name: &'static str, version: u64) -> Seed {
    let tables = [CLUSTER..CLUSTER + 16, 2 * CLUSTER..2 * CLUSTER + 32, 7 * CLUSTER..7 * CLUSTER + 24];
    let focus = [0..112, 0..112].into_iter().chain(tables).collect();
    Seed { name, bytes: image(version), focus }
}

fn imported(path: &Path) -> Outcome {
    let mut image = match open(path, ImageFormat::Auto) {
        Ok(image) => image,
        Err(failure) => return Outcome::Refused(failure.to_string()),
    };
    let read = || -> std::io::Result<()> {
        let (mut at, mut read) = (0, 0);
        let mut piece = vec![0; 64 << 10];
        while let Some(range) = image.next_data(at)? {
            assert!(range.start >= at && range.end > range.start && range.end <= image.size());
            at = range.start;
            while at < range.end {
                let length = (range.end - at).min(piece.len() as u64);
                image.read(at, &mut piece[..length as usize])?;
                at += length;
                read += length;
                if read > READ_MAX {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    Outcome::of(std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).expect("a reader that lives"))
}

#[test]
fn qcow2_images() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.qcow2");
    let target = Target {
        name: "qcow2",
        folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"),
        seeds: vec![seed("two", 2), seed("three", 3)],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 500,
        run: Box::new(|bytes| {
            std::fs::write(&path, bytes).unwrap();
            match imported(&path) {
                Outcome::Refused(words) => Outcome::Refused(words.replace(&*path.to_string_lossy(), "IMAGE")),
                accepted => accepted,
            }
        }),
    };
    // It says what it was meant to say.
    std::fs::write(&path, image(3)).unwrap();
    let mut good = open(&path, ImageFormat::Auto).unwrap();
    let mut bytes = vec![0; 3 * CLUSTER];
    good.read(0, &mut bytes).unwrap();
    let clusters: Vec<u8> = bytes.chunks(CLUSTER).map(|cluster| cluster[CLUSTER - 1]).collect();
    assert_eq!(clusters, [5, 6, 7]);
    replay(&target);
    explore(&target);
}
