//! Who uses a block device: for messages, never for decisions.
//!
//! Only the driver knows whether a device is open; what is listed here is what this process may see of the reasons:
//! devices stacked on top, mounts in any visible mount namespace, processes that have it open.

use parallax_device::loop_control::LoopDevice;
use std::{collections::BTreeSet, fs, path::Path};

/// Holders named in one message.
const NAMED_MAX: usize = 8;

/// Describes the holders that can be seen, such as `mounted at /data, process 4711 (fio)`.
pub(super) fn describe(device: LoopDevice, major_minor: (u32, u32)) -> String {
    let mut found = BTreeSet::new();
    stacked(device, &mut found);
    let number = format!("{}:{}", major_minor.0, major_minor.1);
    let node = device.path();
    for process in names_in(Path::new("/proc")).filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    {
        let directory = Path::new("/proc").join(&process);
        if let Ok(mounts) = fs::read_to_string(directory.join("mountinfo")) {
            found.extend(mounts_of(&number, &mounts).map(|target| format!("mounted at {target}")));
        }
        let opened = names_in(&directory.join("fd"))
            .any(|fd| fs::read_link(directory.join("fd").join(fd)).is_ok_and(|target| target == node));
        if opened {
            let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
            found.insert(format!("process {process} ({})", name.trim()));
        }
        if found.len() >= NAMED_MAX {
            break;
        }
    }
    if found.is_empty() {
        return "a holder that this process cannot see".to_owned();
    }
    found.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join(", ")
}

fn stacked(device: LoopDevice, found: &mut BTreeSet<String>) {
    found.extend(names_in(&device.sysfs().join("holders")).map(|name| format!("device {name} on top of it")));
}

fn names_in(directory: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Mount points of the device with that number in one mountinfo table. Spaces in them stay escaped.
fn mounts_of<'a>(number: &'a str, mountinfo: &'a str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number).then(|| fields.nth(1)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_device_number() {
        let table = "24 1 7:3 / /data rw - ext4 /dev/loop3 rw\n25 1 7:30 / /other rw - ext4 /dev/loop30 rw\n";
        assert_eq!(mounts_of("7:3", table).collect::<Vec<_>>(), ["/data"]);
        assert_eq!(mounts_of("7:4", table).count(), 0);
    }
}
