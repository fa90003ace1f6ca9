//! What is mounted where, read from `/proc/self/mountinfo`.
//!
//! A line of it, with the parts that are used here:
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//!       |    |     |     |          |          |    |         `- options of the filesystem
//!       |    |     |     |          |          |    `- source
//!       |    |     |     |          |          `- type
//!       |    |     |     |          `- any number of tags, ended by a dash
//!       |    |     |     `- options of this mount
//!       |    |     `- where
//!       |    `- which folder or file of the filesystem
//!       `- device
//! ```
//!
//! Blanks, tabs, newlines and backslashes in paths are written as three octal digits.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DeviceNumber {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl DeviceNumber {
    /// From what stat reports.
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Device of the filesystem.
    pub(crate) device: DeviceNumber,
    /// What of the filesystem is mounted.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) target: PathBuf,
    /// Options of this mount.
    pub(crate) options: Vec<String>,
    /// Type of the filesystem.
    pub(crate) kind: String,
    /// Options of the filesystem.
    pub(crate) super_options: Vec<String>,
}

impl Mount {
    /// Whether writing is refused, by this mount or by the filesystem.
    pub(crate) fn read_only(&self) -> bool {
        self.options.iter().chain(&self.super_options).any(|option| option == "ro")
    }
}

/// All mounts of our namespace, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads the kernel's table.
    pub(crate) fn read() -> io::Result<Self> {
        Self::parse(&std::fs::read("/proc/self/mountinfo")?)
    }

    fn parse(text: &[u8]) -> io::Result<Self> {
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mounts = lines.map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line).into_owned();
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("mountinfo has a line of unknown form: {line}"),
                )
            })
        });
        Ok(Self(mounts.collect::<io::Result<_>>()?))
    }

    /// What a path shows: the last mount on it.
    pub(crate) fn at(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.target == path)
    }

    /// Every mount of a filesystem that lies on `device`.
    pub(crate) fn of_device(&self, device: DeviceNumber) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }

    /// Mounts that show a device's node itself: how raw block volumes are published. The node lies on the filesystem
    /// `on`: a devtmpfs, or a tmpfs where the machine is itself a container.
    pub(crate) fn of_node(&self, node: &Path, on: DeviceNumber) -> impl Iterator<Item = &Mount> + use<'_> {
        let name = node.strip_prefix("/dev").ok().map(|name| Path::new("/").join(name));
        self.0.iter().filter(move |mount| mount.device == on && name.as_deref() == Some(&mount.root))
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = device_number(fields.nth(2)?)?;
    let root = unescape(fields.next()?)?;
    let target = unescape(fields.next()?)?;
    let options = list(fields.next()?);
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let super_options = list(fields.nth(1)?);
    Some(Mount { device, root, target, options, kind, super_options })
}

fn device_number(field: &[u8]) -> Option<DeviceNumber> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn list(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
}

fn unescape(field: &[u8]) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(3)?;
        rest = tail;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
    }
    Some(OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
        36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root ro,errors=continue\n\
        40 35 0:5 /loop3 /pods/a\\040b\\134c/dev rw - devtmpfs devtmpfs rw,size=4k\n\
        41 35 7:3 / /pods/one rw - ext4 /dev/loop3 rw\n\
        42 41 7:4 / /pods/one ro - ext4 /dev/loop4 rw\n\
        43 35 0:5 /net/tun /dev/net/tun rw - devtmpfs none rw\n\
        44 35 0:9 /loop5 /pods/inner rw - tmpfs tmpfs rw\n\
        45 35 0:8 /loop5 /pods/other rw - tmpfs tmpfs rw\n";

    #[test]
    fn every_part_of_a_line_is_found() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let mount = table.at(Path::new("/mnt2")).unwrap();
        assert_eq!(mount.device, DeviceNumber { major: 98, minor: 0 });
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.options, ["rw", "noatime"]);
        assert_eq!((mount.kind.as_str(), mount.super_options[0].as_str()), ("ext3", "ro"));
        assert!(mount.read_only());
    }

    #[test]
    fn octal_escapes_in_paths_are_undone() {
        let table = MountTable::parse(SAMPLE).unwrap();
        assert!(table.at(Path::new("/pods/a b\\c/dev")).is_some());
        assert_eq!(unescape(b"tab\\011end").unwrap(), Path::new("tab\tend"));
        assert_eq!(unescape(b"short\\01"), None);
        assert_eq!(unescape(b"not octal\\09x"), None);
    }

    #[test]
    fn of_mounts_on_top_of_each_other_the_last_one_counts() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let top = table.at(Path::new("/pods/one")).unwrap();
        assert_eq!(top.device, DeviceNumber { major: 7, minor: 4 });
        assert!(top.read_only());
    }

    /// Where a machine is itself a container, `/dev` is a tmpfs. Raw volumes there were taken for something else when they
    /// were published a second time, and for unused when they were unstaged.
    #[test]
    fn users_of_a_device_are_found_by_number_and_by_node() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let mounted = table.of_device(DeviceNumber { major: 7, minor: 3 }).count();
        let raw = |node: &str, minor| {
            let on = DeviceNumber { major: 0, minor };
            table.of_node(Path::new(node), on).map(|mount| mount.target.clone()).collect::<Vec<_>>()
        };
        assert_eq!(mounted, 1);
        assert_eq!(raw("/dev/loop3", 5), [Path::new("/pods/a b\\c/dev")]);
        assert!(raw("/dev/loop4", 5).is_empty());
        assert_eq!(raw("/dev/loop5", 9), [Path::new("/pods/inner")]);
    }

    #[test]
    fn a_malformed_line_is_an_error_and_never_skipped() {
        assert!(MountTable::parse(b"36 35 98:0 /mnt1\n").is_err());
        assert!(MountTable::parse(b"36 35 x:0 / /mnt rw - ext4 /dev/a rw\n").is_err());
    }

    #[test]
    fn the_running_kernel_is_understood() {
        let table = MountTable::read().unwrap();
        assert!(table.at(Path::new("/proc")).is_some_and(|mount| mount.kind == "proc"));
    }
}
