//! Go programs, from recipes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::debian;
use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use parallax_e2e::say;

/// Version of Kubernetes that everything else follows.
const KUBERNETES_VERSION: &str = "1.36.3";
/// What Kubernetes' own programs say when asked for their version.
const KUBERNETES_FLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";
const PLAIN_FLAGS: &str = "-s -w";

/// Something to build: where from and what.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// First part of the directory's name.
    pub(crate) name: &'static str,
    /// Second part of the directory's name.
    pub(crate) version: &'static str,
    source: Source,
    programs: &'static [Program],
}

#[derive(Debug)]
enum Source {
    /// A folder of `e2e/cluster/recipes/`.
    Module(&'static str),
    /// A published module that builds as it is.
    Published,
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    package: &'static str,
    flags: &'static str,
    /// A test binary (`go test -c`) rather than a command.
    test: bool,
}

const fn program(name: &'static str, package: &'static str, flags: &'static str) -> Program {
    Program { name, package, flags, test: false }
}

/// Control plane, kubelet and kubectl.
pub(crate) const KUBERNETES: Recipe = Recipe {
    name: "kubernetes",
    version: KUBERNETES_VERSION,
    source: Source::Module("kubernetes"),
    programs: &[
        program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", KUBERNETES_FLAGS),
        program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", KUBERNETES_FLAGS),
        program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", KUBERNETES_FLAGS),
        program("kubelet", "k8s.io/kubernetes/cmd/kubelet", KUBERNETES_FLAGS),
        program("kubectl", "k8s.io/kubernetes/cmd/kubectl", KUBERNETES_FLAGS),
    ],
};

/// The cluster's store.
pub(crate) const ETCD: Recipe = Recipe {
    name: "etcd",
    version: "3.6.16",
    source: Source::Module("etcd"),
    programs: &[program("etcd", "go.etcd.io/etcd/server/v3", PLAIN_FLAGS)],
};

/// The stock companions of a CSI driver.
pub(crate) const CSI_SIDECARS: Recipe = Recipe {
    name: "csi-sidecars",
    version: KUBERNETES_VERSION,
    source: Source::Module("sidecars"),
    programs: &[
        program(
            "csi-provisioner",
            "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
            "-s -w -X main.version=v6.3.0",
        ),
        program(
            "csi-attacher",
            "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
            "-s -w -X main.version=v4.12.0",
        ),
        program(
            "csi-snapshotter",
            "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
            "-s -w -X main.version=v8.6.0",
        ),
        program(
            "snapshot-controller",
            "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
            "-s -w -X main.version=v8.6.0",
        ),
        program(
            "csi-resizer",
            "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
            "-s -w -X main.version=v2.2.0",
        ),
    ],
};

/// The CSI conformance test.
pub(crate) const CSI_SANITY: Recipe = Recipe {
    name: "csi-sanity",
    version: "5.4.0",
    source: Source::Published,
    programs: &[program(
        "csi-sanity",
        "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0",
        PLAIN_FLAGS,
    )],
};

/// Pod networking: one bridge.
pub(crate) const CNI_PLUGINS: Recipe = Recipe {
    name: "cni-plugins",
    version: "1.9.1",
    source: Source::Published,
    programs: &[
        program("bridge", "github.com/containernetworking/plugins/plugins/main/bridge@v1.9.1", PLAIN_FLAGS),
        program(
            "loopback",
            "github.com/containernetworking/plugins/plugins/main/loopback@v1.9.1",
            PLAIN_FLAGS,
        ),
        program(
            "host-local",
            "github.com/containernetworking/plugins/plugins/ipam/host-local@v1.9.1",
            PLAIN_FLAGS,
        ),
    ],
};

/// Installs the chart.
pub(crate) const HELM: Recipe = Recipe {
    name: "helm",
    version: "3.18.4",
    source: Source::Published,
    programs: &[program("helm", "helm.sh/helm/v3/cmd/helm@v3.18.4", PLAIN_FLAGS)],
};

/// Kubernetes' test program; also the pause process of every pod.
pub(crate) const AGNHOST: Recipe = Recipe {
    name: "agnhost",
    version: KUBERNETES_VERSION,
    source: Source::Module("kubernetes-e2e"),
    programs: &[program("agnhost", "k8s.io/kubernetes/test/images/agnhost", PLAIN_FLAGS)],
};

/// Kubernetes' own end-to-end tests.
pub(crate) const KUBERNETES_E2E: Recipe = Recipe {
    name: "kubernetes-e2e",
    version: KUBERNETES_VERSION,
    source: Source::Module("kubernetes-e2e"),
    programs: &[
        program("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo", PLAIN_FLAGS),
        Program {
            name: "e2e.test",
            package: "k8s.io/kubernetes/test/e2e",
            flags: KUBERNETES_FLAGS,
            test: true,
        },
    ],
};

impl Recipe {
    /// Where its programs are, whether built yet or not.
    pub(crate) fn folder(&self, world: &World) -> PathBuf {
        world.cache.join(format!("{}-{}", self.name, self.version))
    }

    /// Path of one of its programs.
    pub(crate) fn program(&self, world: &World, name: &str) -> PathBuf {
        self.folder(world).join(name)
    }

    /// Builds what is missing or was built from another recipe.
    pub(crate) fn ensure(&self, world: &World) -> Result<()> {
        let digest = self.digest(world)?;
        let folder = self.folder(world);
        let stamp = |program: &Program| folder.join(format!(".{}.stamp", program.name));
        let stale: Vec<&Program> = self
            .programs
            .iter()
            .filter(|program| {
                !folder.join(program.name).is_file()
                    || fs::read_to_string(stamp(program)).ok().as_deref() != Some(&digest)
            })
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        require_go()?;
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let work = self.lay_out(world)?;
        let log = folder.join("build.log");
        for program in stale {
            say::step(format!("building {} {}", program.name, self.version), || {
                self.build(program, &work, &folder, &log)?;
                fs::write(stamp(program), &digest).context("writing the stamp of a build")
            })?;
        }
        Ok(())
    }

    /// Changes whenever the recipe does. Not cryptographic: it only has to notice an edit.
    fn digest(&self, world: &World) -> Result<String> {
        use sha2::{Digest, Sha256};
        let mut hasher = Sha256::new();
        hasher.update(self.version);
        if let Source::Module(name) = self.source {
            let folder = recipes(world).join(name);
            for file in ["go.mod", "go.sum"] {
                let path = folder.join(file);
                hasher.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
            }
        }
        Ok(hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Copies the module to a work folder, so that a build never writes into the repository.
    fn lay_out(&self, world: &World) -> Result<PathBuf> {
        let work = world.cache.join("work").join(self.name);
        fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
        if let Source::Module(name) = self.source {
            for entry in fs::read_dir(recipes(world).join(name)).context("reading a recipe")? {
                let entry = entry.context("reading a recipe")?;
                fs::copy(entry.path(), work.join(entry.file_name())).context("copying a recipe")?;
            }
        }
        Ok(work)
    }

    fn build(&self, program: &Program, work: &Path, folder: &Path, log: &Path) -> Result<()> {
        let ldflags = format!("-ldflags={}", program.flags);
        let target = folder.join(program.name);
        let mut command = process::command("go");
        command.current_dir(work).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
        match self.source {
            Source::Module(_) => {
                command.env("GOFLAGS", "-buildvcs=false -mod=mod");
                match program.test {
                    true => command.args(["test", "-c"]),
                    false => command.arg("build"),
                };
                command.args(["-trimpath", &ldflags, "-o"]).arg(&target).arg(program.package);
            }
            Source::Published => {
                command.env("GOFLAGS", "-buildvcs=false").env("GOBIN", folder);
                command.args(["install", "-trimpath", &ldflags, program.package]);
            }
        }
        process::logged(&mut command, log, BUILD)?;
        if !target.is_file() {
            bail!("{} was built but is not at {}", program.name, target.display());
        }
        Ok(())
    }
}

fn recipes(world: &World) -> PathBuf {
    world.repo.join("e2e/cluster/recipes")
}

fn require_go() -> Result<()> {
    if debian::on_path("go") {
        return Ok(());
    }
    bail!("Go 1.26 or later is needed to build the cluster's programs; install it so that `go` is on PATH")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_names_its_programs_once_and_has_its_module() {
        let world = World::discover().unwrap();
        let all =
            [&KUBERNETES, &ETCD, &CSI_SIDECARS, &CSI_SANITY, &CNI_PLUGINS, &HELM, &AGNHOST, &KUBERNETES_E2E];
        let mut names: Vec<&str> = all.iter().flat_map(|recipe| recipe.programs).map(|p| p.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for recipe in all {
            recipe.digest(&world).unwrap();
        }
    }
}
