//! The disk of a guest: Debian with systemd on ext4, as qcow2, with its kernel beside it. Made once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::image::root::{Packages, Root};
use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use parallax_e2e::say;

/// Size of the file system.
const SIZE: &str = "1G";

const MARK: &str = include_str!("../../../../../vm/mark.sh");
const SERVICE: &str = include_str!("../../../../../vm/mark.service");

/// Debian packages beside the essential ones. The kernel is the one for virtual machines.
const INCLUDE: &[&str] = &["systemd-sysv", "udev", "initramfs-tools", "linux-image-cloud-amd64"];

/// A disk that can be imported, and what boots it.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) image: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Disk {
    /// Makes it unless it is in the cache.
    pub(super) fn ensure(world: &World) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the guests are for x86-64, this machine is {}", std::env::consts::ARCH);
        }
        let mark = file("/usr/local/sbin/mark", MARK);
        let service = file("/etc/systemd/system/mark.service", SERVICE);
        let hooks = [
            mark.as_str(),
            service.as_str(),
            "chmod 755 \"$1/usr/local/sbin/mark\" && mkdir -p \"$1/var/lib/marks\"",
            "chroot \"$1\" systemctl --quiet enable mark.service",
            // Nothing that works in the background may write while a test compares disks.
            "chroot \"$1\" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
             fstrim.timer e2scrub_all.timer",
            // Whoever offers a login takes the console from everybody else.
            "chroot \"$1\" systemctl --quiet mask getty.target getty-static.service serial-getty@ttyS0.service",
            // Few modules: the guests are emulated, and unpacking is slow.
            "echo MODULES=list > \"$1/etc/initramfs-tools/conf.d/few\"",
            "printf 'virtio_pci\\nvirtio_blk\\next4\\n' >> \"$1/etc/initramfs-tools/modules\"",
            "chroot \"$1\" update-initramfs -u -k all",
            "echo parallax-guest > \"$1/etc/hostname\"; : > \"$1/etc/fstab\"",
        ];
        let root = Root::debian(world, &Packages { name: "vm", include: INCLUDE, hooks: &hooks })?;
        let folder = root.tar().parent().context("a root without a folder")?.join("disk");
        let disk = Self {
            image: folder.join("root.qcow2"),
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd.img"),
        };
        if !disk.image.exists() {
            say::step("making a disk of it", || disk.make(root.tar(), &folder))?;
        }
        Ok(disk)
    }

    fn make(&self, tar: &Path, folder: &Path) -> Result<()> {
        let files = folder.join("files");
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(&files).with_context(|| format!("creating {}", files.display()))?;
        let mut unpack = process::command("tar");
        unpack.arg("--numeric-owner").arg("-xpf").arg(tar).arg("-C").arg(&files);
        process::output(&mut unpack, BUILD)?;
        for (link, to) in [("vmlinuz", &self.kernel), ("initrd.img", &self.initrd)] {
            let from = newest(&files.join("boot"), link)?;
            fs::copy(&from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        let raw = folder.join("root.raw");
        let mut format = process::command("mkfs.ext4");
        format.arg("-q").arg("-d").arg(&files).arg(&raw).arg(SIZE);
        process::output(&mut format, BUILD)?;
        let partial = folder.join("partial.qcow2");
        let mut convert = process::command("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&partial);
        process::output(&mut convert, BUILD)?;
        fs::remove_file(&raw).context("removing the raw image")?;
        fs::remove_dir_all(&files).context("removing the unpacked root")?;
        // Under its name only when it is whole.
        fs::rename(&partial, &self.image).context("naming the image")
    }
}

/// A command that writes a file into the root.
fn file(path: &str, text: &str) -> String {
    format!("cat > \"$1{path}\" <<'END_OF_FILE'\n{text}END_OF_FILE\n")
}

/// The file in `folder` whose name begins with `prefix`; the last by name when there are several.
fn newest(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found.pop().with_context(|| format!("the root has no {prefix} in /boot"))
}
