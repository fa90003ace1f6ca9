//! A virtual machine on an NBD export, and what it said on its console.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::disk::Disk;
use crate::node::Server;
use parallax_e2e::process;

/// Two starts of an emulated machine on a busy one.
pub(super) const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What an emulated kernel need not do: test its ciphers, guard itself against processors, talk much.
const QUICKER: &str = "cryptomgr.notests mitigations=off quiet systemd.show_status=false";

/// Starts a machine whose only disk is what is served on `socket`.
pub(super) fn start(disk: &Disk, name: &str, socket: &Path, folder: &Path) -> Result<Server> {
    let mut command = process::command("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512M", "-smp", "1"]);
    command.args(["-nodefaults", "-display", "none", "-monitor", "none", "-nic", "none"]);
    command.arg("-kernel").arg(&disk.kernel).arg("-initrd").arg(&disk.initrd);
    command.arg("-append").arg(format!("root=/dev/vda rw console=ttyS0 {QUICKER} parallax.name={name}"));
    command.arg("-blockdev");
    command.arg(format!("driver=nbd,node-name=disk,server.type=unix,server.path={}", socket.display()));
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command.arg("-serial").arg(format!("file:{}", console(folder, name).display()));
    Server::aside(&mut command, &folder.join(format!("qemu-{name}.log")))
}

fn console(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("console-{name}.txt"))
}

/// What the mark service of the guest said.
pub(super) fn words(folder: &Path, name: &str) -> Result<Vec<String>> {
    let path = console(folder, name);
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(said(&String::from_utf8_lossy(&bytes), name))
}

fn said(console: &str, name: &str) -> Vec<String> {
    let begin = format!("parallax: {name}: ");
    // Status lines of systemd may stand before it in the same line.
    console.lines().filter_map(|line| Some(line.split_once(&begin)?.1.trim_end().to_owned())).collect()
}

/// Both starts went as they should, on the right kind of disk, and no foreign mark was seen.
pub(super) fn judge(name: &str, said: &[String]) -> Result<()> {
    let [system, wrote, finds] = said else {
        anyhow::bail!("the machine on {name} said {said:?}");
    };
    ensure!(
        system.contains("Debian") && system.contains("/dev/vda") && system.contains("ext4"),
        "{name} {system}"
    );
    ensure!(wrote == "wrote its mark", "{name} {wrote}");
    ensure!(*finds == format!("finds: {name}"), "the machine on {name} {finds}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    1.2] boot\r\n\
        parallax: clone: runs Debian GNU/Linux 12 (bookworm) on /dev/vda ext4\r\n\
        parallax: clone: wrote its mark\r\n\
        [  OK  ] Started xparallax: clone: finds: clone\r\n";

    #[test]
    fn the_words_of_a_guest_are_found_between_those_of_its_system() {
        let said = said(CONSOLE, "clone");
        assert_eq!(said.len(), 3);
        judge("clone", &said).unwrap();
    }

    #[test]
    fn a_foreign_mark_a_missing_start_and_a_failure_are_refused() {
        for (from, to) in [("finds: clone", "finds: clone origin"), ("wrote its mark", "failed")] {
            assert!(judge("clone", &said(&CONSOLE.replace(from, to), "clone")).is_err());
        }
        assert!(judge("clone", &said("", "clone")).is_err());
        assert!(judge("origin", &said(CONSOLE, "origin")).is_err());
    }
}
