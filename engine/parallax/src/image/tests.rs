//! Images made by QEMU's own tool, where it is installed, and by hand.

use super::*;
use std::process::Command;

fn write_raw(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0u8; 5 << 20];
    for (number, byte) in bytes[1 << 20..(1 << 20) + 70_000].iter_mut().enumerate() {
        *byte = (number % 251) as u8 + 1;
    }
    bytes[(5 << 20) - 1] = 7;
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(&bytes[1 << 20..2 << 20], 1 << 20).unwrap();
    file.write_all_at(&[7], (5 << 20) - 1).unwrap();
    bytes
}

fn content(image: &mut dyn Image) -> (Vec<u8>, u64) {
    let mut bytes = vec![0; usize::try_from(image.size()).unwrap()];
    let (mut at, mut data) = (0, 0);
    while let Some(range) = image.next_data(at).unwrap() {
        assert!(range.start >= at && range.end > range.start && range.end <= image.size());
        image.read(range.start, &mut bytes[range.start as usize..range.end as usize]).unwrap();
        data += range.end - range.start;
        at = range.end;
    }
    (bytes, data)
}

fn qemu_img(arguments: &[&str]) -> bool {
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: qemu-img is not installed (apt-get install qemu-utils)");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_sparse_raw_file_is_read_without_its_holes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.img");
    let expected = write_raw(&path);
    let mut image = open(&path, ImageFormat::Auto).unwrap();
    let (bytes, data) = content(image.as_mut());
    assert!(bytes == expected);
    assert!(data < 3 << 20, "{data} bytes are not a sparse file's");
}

#[test]
fn qcow2_compressed_or_not_has_the_bytes_of_its_source() {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("a.img");
    let expected = write_raw(&raw);
    for compress in [false, true] {
        let qcow2 = directory.path().join(format!("{compress}.qcow2"));
        let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        if compress {
            arguments.push("-c");
        }
        arguments.extend([from, to]);
        if !qemu_img(&arguments) {
            return;
        }
        let mut image = open(&qcow2, ImageFormat::Auto).unwrap();
        let (bytes, data) = content(image.as_mut());
        assert!(bytes == expected, "compressed: {compress}");
        assert!(data < 3 << 20);
    }
}

/// An image may name any file of this machine as its backing file; whoever imports it would read that file into a
/// volume of the image's owner.
#[test]
fn an_image_cannot_make_us_read_another_file() {
    let directory = tempfile::tempdir().unwrap();
    let (secret, image) = (directory.path().join("secret.img"), directory.path().join("evil.qcow2"));
    std::fs::write(&secret, vec![42; 1 << 20]).unwrap();
    let (secret, path) = (secret.to_str().unwrap(), image.to_str().unwrap());
    if !qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, path]) {
        return;
    }
    let failure = open(&image, ImageFormat::Auto).err().expect("opened");
    assert!(failure.message().contains("denied"), "{failure}");
    assert!(failure.next().unwrap().contains("qemu-img convert"), "{failure}");
}

#[test]
fn a_broken_qcow2_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken.qcow2");
    for length in [4usize, 72, 104, 512, 65_536] {
        let mut bytes = vec![0xff; length];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        std::fs::write(&path, &bytes).unwrap();
        assert!(open(&path, ImageFormat::Auto).is_err(), "{length} bytes");
    }
}

#[test]
fn other_formats_are_named_and_not_taken_for_raw() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.vmdk");
    std::fs::write(&path, [b"KDMV".as_slice(), &[0; 508]].concat()).unwrap();
    let failure = open(&path, ImageFormat::Auto).err().expect("opened");
    assert!(failure.message().contains("a VMDK image"), "{failure}");
    assert!(open(&path, ImageFormat::Raw).is_ok());
}
