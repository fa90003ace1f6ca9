//! `cluster up`: from nothing, or from whatever of it already runs, to a node that is ready.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::files::CGROUP;
use super::{Layout, NODE, kubectl, network, parts, status};
use crate::build::{self, FOR_CLUSTER};
use crate::image::{self, Image};
use crate::world::World;
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::{say, wait};

/// Programs that the cluster takes from Debian.
pub(crate) const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
];

/// Starts the cluster; what runs already is kept.
pub(crate) fn run(world: &World) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a cluster needs root: namespaces, mounts and a bridge. Run: sudo -E cargo xtask cluster up");
    }
    build::install(PACKAGES)?;
    for recipe in FOR_CLUSTER {
        recipe.ensure(world)?;
    }
    let layout = Layout::of(world);
    if status::supervisor(&layout).is_none() {
        say::step("starting etcd, the control plane, containerd and kubelet", || start(world, &layout))?;
    } else {
        say::note("the cluster runs already");
    }
    say::step("waiting for the API server", || {
        wait::until("the API server to be ready", Duration::from_secs(120), || {
            process::output(&mut kubectl(world, &["get", "--raw", "/readyz"]), COMMAND).map(Some)
        })
    })?;
    import(world, &image::for_node(world)?)?;
    say::step("waiting for the node", || {
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        wait::until("the node to be ready", Duration::from_secs(180), || {
            let answer = process::output(&mut kubectl(world, &["get", "node", NODE, "-o", ready]), COMMAND)?;
            Ok((answer.trim() == "True").then_some(()))
        })
    })
}

fn start(world: &World, layout: &Layout) -> Result<()> {
    fs::create_dir_all(&layout.root).with_context(|| format!("creating {}", layout.root.display()))?;
    network::create()?;
    create_cgroups()?;
    let plan = parts::plan(world, layout)?;
    let file = layout.at("plan.json");
    fs::write(&file, serde_json::to_string_pretty(&plan).context("writing the plan")?)
        .with_context(|| format!("writing {}", file.display()))?;
    let me = std::env::current_exe().context("finding this program")?;
    let mut command = process::command("setsid");
    command.args(["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
    command.arg("--mount-proc").arg(me).args(["cluster", "supervise"]).arg(&file);
    command.current_dir("/");
    let child = process::background(&mut command, &plan.logs.join("supervisor.log"))?;
    // `unshare` stays outside the new namespace and waits; its death takes the whole node with it.
    fs::write(layout.pid_file(), child.id().to_string()).context("writing the supervisor's process id")?;
    Ok(())
}

/// Kubelet wants its root cgroup to exist in every hierarchy.
fn create_cgroups() -> Result<()> {
    for hierarchy in cgroup_hierarchies() {
        let path = hierarchy.join(CGROUP);
        fs::create_dir_all(&path).with_context(|| format!("creating the cgroup {}", path.display()))?;
        if hierarchy.file_name().is_some_and(|name| name == "cpuset") {
            // A new cpuset is empty, and nothing can run in it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
                    fs::write(path.join(file), all.trim()).with_context(|| format!("setting {file}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Roots of the cgroup hierarchies: one with version 2, one for each controller with version 1.
pub(crate) fn cgroup_hierarchies() -> Vec<std::path::PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// Brings images to the node's containerd; those that it has are skipped.
pub(crate) fn import(world: &World, images: &[Image]) -> Result<()> {
    let layout = Layout::of(world);
    wait::until("containerd to answer", Duration::from_secs(60), || {
        process::output(&mut inside(&layout, "ctr", &["version"])?, COMMAND).map(Some)
    })?;
    let have =
        process::output(&mut inside(&layout, "ctr", &["-n", "k8s.io", "images", "list", "-q"])?, COMMAND)?;
    let marker = layout.at("imported");
    fs::create_dir_all(&marker).context("creating the folder of imported images")?;
    for image in images {
        let stamp = marker.join(image.digest());
        if stamp.exists() && image.names().iter().all(|name| have.lines().any(|line| line == name)) {
            continue;
        }
        say::step(format!("importing {}", image.names()[0]), || {
            let archive = image.archive().to_string_lossy().into_owned();
            let arguments = ["-n", "k8s.io", "images", "import", &archive];
            process::output(&mut inside(&layout, "ctr", &arguments)?, Duration::from_secs(300))?;
            if let Some(origin) = image.origin() {
                rename(&layout, origin, image.names())?;
            }
            fs::write(&stamp, "").context("noting an imported image")
        })?;
    }
    Ok(())
}

/// Gives an image of the node other names.
fn rename(layout: &Layout, origin: &str, names: &[String]) -> Result<()> {
    let mut arguments = vec!["-n", "k8s.io", "images", "tag", "--force", origin];
    arguments.extend(names.iter().map(String::as_str));
    process::output(&mut inside(layout, "ctr", &arguments)?, COMMAND).map(drop)
}

/// A command that runs inside the node's mount and process namespaces.
pub(crate) fn inside(layout: &Layout, program: &str, arguments: &[&str]) -> Result<std::process::Command> {
    let init =
        status::init(layout).context("the cluster does not run; start it with: cargo xtask cluster up")?;
    let mut command = process::command("nsenter");
    command.args(["--target", &init.to_string(), "--mount", "--pid", "--", program]).args(arguments);
    Ok(command)
}
