//! Real images, made by the tools that people use. What is not installed is written by hand from its definition.

use super::*;
use std::process::Command;

const MIB: u64 = 1 << 20;

fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn probed(image: &tempfile::NamedTempFile) -> Content {
    probe(&File::open(image.path()).unwrap()).unwrap()
}

/// An image that `tool` has written to.
fn made_by(tool: &str, args: &[&str], bytes: u64) -> tempfile::NamedTempFile {
    let image = image(bytes);
    let output = Command::new(tool).args(args).arg(image.path()).output().unwrap();
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    image
}

fn written(bytes: u64, pieces: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
    let image = image(bytes);
    for (at, piece) in pieces {
        image.as_file().write_all_at(piece, *at).unwrap();
    }
    image
}

#[test]
fn ext_filesystems_tell_their_size_and_state() {
    for (tool, bytes) in [("mkfs.ext4", 64 * MIB), ("mkfs.ext3", 16 * MIB), ("mkfs.ext2", 8 * MIB)] {
        let image = made_by(tool, &["-q", "-F"], bytes);
        assert_eq!(
            probed(&image),
            Content::Known(Signature::Ext(Ext { bytes, needs_check: false, used: false })),
            "{tool}"
        );
    }
}

#[test]
fn an_ext_filesystem_that_was_not_unmounted_asks_for_a_check() {
    let image = made_by("mkfs.ext4", &["-q", "-F"], 64 * MIB);
    // State: neither clean nor with errors.
    image.as_file().write_all_at(&[0, 0], 1024 + 0x3a).unwrap();
    let content = probed(&image);
    assert!(matches!(content, Content::Known(Signature::Ext(Ext { needs_check: true, .. }))), "{content:?}");
}

#[test]
fn xfs_tells_its_size() {
    let image = made_by("mkfs.xfs", &["-q", "-f"], 400 * MIB);
    assert_eq!(probed(&image), Content::Known(Signature::Xfs { bytes: 400 * MIB, used: false }));
}

#[test]
fn swap_space_is_recognised() {
    assert_eq!(probed(&made_by("mkswap", &["-q"], 4 * MIB)), Content::Known(Signature::Swap));
}

#[test]
fn containers_tables_and_other_filesystems_are_recognised() {
    let entry = [0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0];
    type Pieces<'a> = &'a [(u64, &'a [u8])];
    let cases: [(&str, Pieces<'_>, Signature); 9] = [
        ("LUKS", &[(0, b"LUKS\xba\xbe\0\x02")], Signature::Luks),
        ("second header of LUKS2", &[(16384, b"SKUL\xba\xbe\0\x02")], Signature::Luks),
        ("LVM in the second sector", &[(512, b"LABELONE"), (536, b"LVM2 001")], Signature::Lvm),
        ("LVM in the fourth sector", &[(1536, b"LABELONE"), (1560, b"LVM2 001")], Signature::Lvm),
        ("GPT", &[(512, b"EFI PART")], Signature::Partitions),
        ("GPT of 4 KiB sectors", &[(4096, b"EFI PART")], Signature::Partitions),
        ("backup GPT", &[(4 * MIB - 512, b"EFI PART")], Signature::Partitions),
        ("DOS partition table", &[(446, &entry), (510, &[0x55, 0xaa])], Signature::Partitions),
        ("btrfs", &[(0x1_0040, b"_BHRfS_M")], Signature::Btrfs),
    ];
    for (what, pieces, signature) in cases {
        assert_eq!(probed(&written(4 * MIB, pieces)), Content::Known(signature), "{what}");
    }
}

#[test]
fn only_zeroes_are_blank() {
    for bytes in [MIB, 4 * MIB, 64 * MIB] {
        assert_eq!(probed(&image(bytes)), Content::Zeroes);
        for at in [0, 4000, MIB / 2, bytes - 1] {
            let content = probed(&written(bytes, &[(at, b"x")]));
            assert_eq!(content, Content::Unrecognised, "a byte at {at} of {bytes}");
        }
    }
}

#[test]
fn one_thing_over_another_is_ambiguous() {
    let image = made_by("mkfs.ext4", &["-q", "-F"], 64 * MIB);
    image.as_file().write_all_at(b"EFI PART", 64 * MIB - 512).unwrap();
    let content = probed(&image);
    assert!(matches!(&content, Content::Ambiguous(found) if found.len() == 2));
    assert!(matches!(content.filesystem(), Some(Signature::Ext(_))));
    image.as_file().write_all_at(b"XFSB", 0).unwrap();
    assert_eq!(probed(&image).filesystem(), None, "which of the two?");
}

/// kubernetes#142243 and its kin: a device that could not be read was taken for a blank one, and formatted.
#[test]
fn what_cannot_be_read_is_an_error_and_never_blank() {
    let folder = tempfile::tempdir().unwrap();
    assert!(probe(&File::open(folder.path()).unwrap()).is_err());
}

#[test]
fn damaged_superblocks_do_not_panic() {
    let image = made_by("mkfs.ext4", &["-q", "-F"], 64 * MIB);
    image.as_file().write_all_at(&[0xff; 4], 1024 + 0x18).unwrap();
    assert_eq!(probed(&image), Content::Unrecognised);
}
