//! Which images there are.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Image;
use super::archive::{Entry, Recipe};
use super::root::{Packages, Root};
use crate::build::{self, AGNHOST, CSI_SIDECARS, ProjectBinaries};
use crate::world::World;
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::say;

/// The image of every pod's first container, by the name that containerd is configured with.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// The unprivileged user of images that need none.
const NOBODY: &str = "65532:65532";
/// Registry prefix of the stock sidecars.
const SIG_STORAGE: &str = "registry.k8s.io/sig-storage";
/// Registry prefix of Kubernetes' test images.
const E2E_IMAGES: &str = "registry.k8s.io/e2e-test-images";
/// Filesystem tools that the CSI node plugin starts, and what the daemon needs.
const NODE_TOOLS: &[&str] = &["e2fsprogs", "xfsprogs", "util-linux", "mount", "ca-certificates"];

/// What any cluster needs: pause, a shell for pods, and the sidecars.
pub(crate) fn for_node(world: &World) -> Result<Vec<Image>> {
    let busybox = busybox(world)?;
    let pause = Recipe {
        names: vec![PAUSE.into()],
        entries: vec![Entry::Folder("/bin", 0o755), Entry::Program("/bin/busybox".into(), busybox.clone())],
        entrypoint: vec!["/bin/busybox".into(), "sleep".into(), "infinity".into()],
        user: "65535:65535".into(),
        ..Recipe::default()
    };
    let shell = Recipe {
        names: vec!["localhost/busybox:stable".into(), format!("{E2E_IMAGES}/busybox:1.37.0-1")],
        entries: shell_files(busybox)?,
        entrypoint: Vec::new(),
        ..Recipe::default()
    };
    let mut images = vec![pause.build(world)?, shell.build(world)?];
    for (name, version) in [
        ("csi-provisioner", "v6.3.0"),
        ("csi-attacher", "v4.12.0"),
        ("csi-resizer", "v2.2.0"),
        ("csi-snapshotter", "v8.6.0"),
        ("snapshot-controller", "v8.6.0"),
    ] {
        let path = format!("/{name}");
        let recipe = Recipe {
            names: vec![format!("{SIG_STORAGE}/{name}:{version}")],
            entries: vec![Entry::Program(path.clone(), CSI_SIDECARS.program(world, name))],
            entrypoint: vec![path],
            user: NOBODY.into(),
            ..Recipe::default()
        };
        images.push(recipe.build(world)?);
    }
    Ok(images)
}

/// The project's image: daemon, command line, CSI driver, and the tools that they start.
pub(crate) fn project(world: &World, binaries: &ProjectBinaries) -> Result<Image> {
    let base = Root::debian(world, &Packages { name: "node", include: NODE_TOOLS, hooks: &[] })?;
    let programs = [
        ("parallaxd", &binaries.parallaxd),
        ("parallax", &binaries.parallax),
        ("parallax-csi", &binaries.parallax_csi),
    ];
    let folder = world.cache.join("stripped");
    std::fs::create_dir_all(&folder).context("creating the folder of stripped programs")?;
    let mut entries = Vec::new();
    for (name, path) in programs {
        entries.push(Entry::Program(format!("/usr/local/bin/{name}"), stripped(path, folder.join(name))?));
    }
    Recipe {
        names: vec!["localhost/parallax:CONTENT".into()],
        base: Some(base),
        entries,
        ..Recipe::default()
    }
    .build(world)
}

/// The database and the load generator of the stories.
pub(crate) fn for_stories(world: &World) -> Result<Vec<Image>> {
    Ok(vec![postgres(world)?, fio(world)?])
}

fn fio(world: &World) -> Result<Image> {
    let base = Root::debian(world, &Packages { name: "fio", include: &["fio"], hooks: &[] })?;
    let names = vec!["localhost/parallax-fio:CONTENT".into(), "localhost/parallax-fio:stable".into()];
    Recipe { names, base: Some(base), ..Recipe::default() }.build(world)
}

/// The database that the demo shows.
pub(crate) fn postgres(world: &World) -> Result<Image> {
    let packages = Packages {
        name: "postgres",
        include: &["postgresql", "postgresql-contrib"],
        // A fixed user id, so that a pod can name it.
        hooks: &[
            r#"chroot "$1" groupmod -g 5432 postgres"#,
            r#"chroot "$1" usermod -u 5432 -g 5432 postgres"#,
            r#"chroot "$1" chown -R postgres:postgres /var/lib/postgresql /var/run/postgresql /etc/postgresql"#,
            r#"chroot "$1" sh -c 'ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ 2>/dev/null; true'"#,
        ],
    };
    let base = Root::debian(world, &packages)?;
    let recipe = Recipe {
        names: vec![
            "localhost/parallax-postgres:CONTENT".into(),
            "localhost/parallax-postgres:stable".into(),
        ],
        base: Some(base),
        user: "5432:5432".into(),
        ..Recipe::default()
    };
    recipe.build(world)
}

/// What Kubernetes' storage suite asks for, under its own names.
///
/// `nginx` and `glibc-dns-testing` are used there for their shell alone: they are busybox under another name.
pub(crate) fn for_suite(world: &World) -> Result<Vec<Image>> {
    AGNHOST.ensure(world)?;
    let busybox = busybox(world)?;
    let mut with_agnhost = shell_files(busybox.clone())?;
    with_agnhost.push(Entry::Program("/agnhost".into(), AGNHOST.program(world, "agnhost")));
    let agnhost = Recipe {
        names: vec![format!("{E2E_IMAGES}/agnhost:2.63.0")],
        entries: with_agnhost,
        entrypoint: vec!["/agnhost".into()],
        ..Recipe::default()
    };
    let stand_in = Recipe {
        names: vec![format!("{E2E_IMAGES}/nginx:1.15-4"), format!("{E2E_IMAGES}/glibc-dns-testing:2.0.0")],
        entries: shell_files(busybox)?,
        ..Recipe::default()
    };
    Ok(vec![agnhost.build(world)?, stand_in.build(world)?])
}

/// Debian's static busybox, unpacked and not installed.
fn busybox(world: &World) -> Result<PathBuf> {
    let folder = world.cache.join("busybox-static");
    let program = folder.join("bin/busybox");
    if !program.exists() {
        say::step("unpacking Debian's static busybox", || build::unpack("busybox-static", &folder))?;
    }
    Ok(program)
}

/// A root with a shell: busybox under each of its names.
fn shell_files(busybox: PathBuf) -> Result<Vec<Entry>> {
    let applets = process::output(process::command(&busybox).arg("--list"), COMMAND)?;
    let mut entries = vec![
        Entry::Folder("/bin", 0o755),
        Entry::Folder("/etc", 0o755),
        Entry::Folder("/root", 0o700),
        Entry::Folder("/tmp", 0o1777),
        Entry::Folder("/usr", 0o755),
        Entry::Folder("/usr/bin", 0o755),
        Entry::Folder("/var", 0o755),
        Entry::Text(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n".into(),
        ),
        Entry::Text("/etc/group", "root:x:0:\nnogroup:x:65534:\n".into()),
        Entry::Program("/bin/busybox".into(), busybox),
    ];
    let others = applets.lines().filter(|name| *name != "busybox");
    entries.extend(others.map(|name| Entry::Link(format!("/bin/{name}"), "busybox")));
    Ok(entries)
}

/// A copy without debug information, made again when the program changed.
fn stripped(program: &std::path::Path, copy: PathBuf) -> Result<PathBuf> {
    let changed = |path: &std::path::Path| std::fs::metadata(path).and_then(|meta| meta.modified());
    let source = changed(program).with_context(|| format!("reading {}", program.display()))?;
    if changed(&copy).is_ok_and(|time| time >= source) {
        return Ok(copy);
    }
    let mut command = process::command("strip");
    command.arg("--strip-debug").arg("-o").args([&copy, &program.to_path_buf()]);
    process::output(&mut command, COMMAND)?;
    Ok(copy)
}
