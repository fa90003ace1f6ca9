//! `demo`: the story of a volume, told on a real cluster, for a person who watches.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parallax_e2e::kube::Kube;
use parallax_e2e::objects::{Claim, From, XFS, xfs_class};
use parallax_e2e::pool::Pool;
use parallax_e2e::say;
use parallax_e2e::stage::{PATIENCE, Stage};
use parallax_e2e::stories::postgres::{ask, balanced, server};
use parallax_e2e::wait;

use super::e2e::stories::ready;
use crate::build::{KUBERNETES, Profile};
use crate::cluster::up;
use crate::image;
use crate::world::World;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use a cluster that exists and has Parallax and the demo's images, instead of starting one.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    let kube = match &args.kubeconfig {
        Some(path) => {
            KUBERNETES.ensure(world)?;
            Kube::new(KUBERNETES.program(world, "kubectl"), path)
        }
        None => {
            chapter("A real Kubernetes, on this machine");
            say("etcd, the control plane, containerd and kubelet start in namespaces of their own, and Helm");
            say(
                "installs Parallax over one plain file. On a real cluster that file is a LUN that every node sees.",
            );
            println!();
            let kube = ready(world, args.profile)?;
            up::import(world, &[image::postgres(world)?])?;
            kube
        }
    };
    let pool = Pool::of(&kube);
    let stage = Stage::open(&kube, &pool, "demo")?;
    tell(&stage)?;
    farewell(&stage);
    Ok(())
}

fn tell(stage: &Stage) -> Result<()> {
    let namespace = &stage.namespace;

    stage.apply(&[xfs_class()])?;
    chapter("1. A claim becomes a disk, and a database moves in");
    say("The claim asks for 10 GiB. Nothing is copied or zeroed: a volume is a root of a radix tree.");
    stage.step("PostgreSQL starts on a claim of 10 GiB", || {
        stage.claim(Claim { name: "shop", class: XFS, size: "10Gi", from: From::Empty })?;
        stage.apply(&[server(namespace, "shop", "shop")])?;
        stage.ready("shop")
    })?;
    stage.step("a million accounts are created", || {
        stage.sh("shop", "pgbench -h /tmp -i -q -s 10 postgres 2>&1 | tail -1")
    })?;
    stage.step("customers arrive: four sessions of pgbench, until the end of this demo", || {
        stage.sh("shop", "nohup pgbench -h /tmp -n -c 4 -T 900 postgres >/tmp/load 2>&1 &")
    })?;
    std::thread::sleep(Duration::from_secs(3));
    show(stage, &["get", "pvc,pods"]);

    chapter("2. A snapshot, while the customers shop");
    say("A snapshot marks the root's links read-only and appends one record. No write waits for it.");
    let begun = Instant::now();
    stage.step("a VolumeSnapshot of the busy database", || stage.snapshot("noon", "shop"))?;
    fact(&format!(
        "ready to restore after {}, Kubernetes' own machinery included",
        say::seconds(begun.elapsed())
    ));
    for hour in ["one", "two", "three"] {
        stage.step(&format!("another one, at {hour}"), || stage.snapshot(&format!("at-{hour}"), "shop"))?;
    }
    show(stage, &["get", "volumesnapshots"]);

    chapter("3. A clone of 10 GiB, for the developers");
    say(
        "A clone is a new root that points at the same blocks. It costs the same for a gigabyte or a terabyte.",
    );
    let begun = Instant::now();
    stage.step("a claim with the database as its source", || {
        stage.claim(Claim { name: "playground", class: XFS, size: "10Gi", from: From::Claim("shop") })?;
        stage.apply(&[server(namespace, "playground", "playground")])?;
        stage.bound("playground")
    })?;
    fact(&format!("bound after {}", say::seconds(begun.elapsed())));
    stage.step("a second server recovers on it", || stage.ready("playground"))?;
    let count = stage.step("its books balance", || balanced(stage, "playground"))?;
    fact(&format!(
        "the clone holds {count} transactions: a consistent moment of a database that never stopped"
    ));

    chapter("4. Somebody makes a mistake");
    stage.step("truncate every table, and commit", || {
        ask(stage, "shop", "truncate pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history")
            .map(drop)
    })?;
    fact(&format!(
        "accounts left in the shop: {}",
        ask(stage, "shop", "select count(*) from pgbench_accounts")?
    ));
    say("The snapshot of noon is still there. A restore is a clone of it.");
    let begun = Instant::now();
    stage.step("the shop opens again, on the snapshot of noon", || {
        let from = From::Snapshot("noon");
        stage.claim(Claim { name: "shop-again", class: XFS, size: "10Gi", from })?;
        stage.apply(&[server(namespace, "shop-again", "shop-again")])?;
        stage.ready("shop-again")
    })?;
    let accounts = ask(stage, "shop-again", "select count(*) from pgbench_accounts")?;
    fact(&format!("{accounts} accounts are back, {} after the decision", say::seconds(begun.elapsed())));

    chapter("5. Business is good: the volume grows, on line");
    let room = "df -h /data | tail -1 | awk '{print $2}'";
    let before = stage.sh("shop-again", room)?;
    stage.step("the claim asks for 40 GiB", || {
        let patch = r#"{"spec":{"resources":{"requests":{"storage":"40Gi"}}}}"#;
        stage.kube.run(&["patch", "-n", namespace, "pvc", "shop-again", "-p", patch])?;
        wait::until("the filesystem to grow", PATIENCE, || {
            Ok((stage.sh("shop-again", room)? != before).then_some(()))
        })
    })?;
    fact(&format!("the filesystem had {}, now {}", before.trim(), stage.sh("shop-again", room)?.trim()));

    chapter("6. What all of it costs");
    let info = stage.pool.json(&["pool", "info"])?;
    let bytes = |key: &str| info[key].as_u64().unwrap_or_default();
    fact(&format!(
        "volumes promise {}; the pool holds {} of data and {} of metadata",
        gib(bytes("provisioned_bytes")),
        gib(bytes("data_bytes")),
        gib(bytes("metadata_bytes"))
    ));
    say("The family, as Parallax sees it:");
    println!();
    println!("{}", stage.pool.parallax(&["tree"])?.trim_end());
    println!();
    stage.step("the whole pool is verified", || stage.pool.check())
}

fn farewell(stage: &Stage) {
    let kube = &stage.kube;
    chapter("It is yours now");
    println!("  export KUBECONFIG={}", kube.kubeconfig().display());
    println!("  kubectl get pvc,volumesnapshots,pods -n {}", stage.namespace);
    println!("  kubectl exec -n {} -it shop-again -- psql -h /tmp postgres", stage.namespace);
    println!("  kubectl exec -n parallax-system ds/parallax-daemon -- parallax tree");
    println!();
    println!("When you have seen enough: {}", say::bold("cargo xtask cluster down"));
}

fn chapter(title: &str) {
    println!("\n{}\n", say::bold(title));
}

fn say(line: &str) {
    println!("  {line}");
}

fn fact(line: &str) {
    println!("  {} {}", say::good("→"), say::bold(line));
}

/// A command as a person would type it, with its answer.
fn show(stage: &Stage, arguments: &[&str]) {
    println!("\n  {}", say::dim(format!("$ kubectl {}", arguments.join(" "))));
    let mut all = vec!["-n", stage.namespace.as_str()];
    all.extend(arguments);
    match stage.kube.run(&all).context("asking the cluster") {
        Ok(answer) => answer.lines().for_each(|line| println!("  {line}")),
        Err(error) => say::note(format!("{error:#}")),
    }
}

fn gib(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib >= 10 * 1024 { format!("{} GiB", mib >> 10) } else { format!("{mib} MiB") }
}
