//! A database under load is snapshotted and cloned; each copy recovers and agrees with its moment.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Story;
use crate::objects::{Claim, FILESYSTEM, From, snapshot};
use crate::stage::{Stage, same};

pub(super) const STORY: Story = Story {
    name: "postgres",
    summary: "PostgreSQL runs pgbench; a snapshot and a 10 GiB clone start two more servers that agree",
    run,
};

/// Debian's PostgreSQL, in the image that `cargo xtask` makes.
pub const IMAGE: &str = "localhost/parallax-postgres:stable";
/// Its user there.
const POSTGRES_UID: u32 = 5432;
/// Balance sheets that every transaction of pgbench keeps equal, and how many transactions there were.
const SHEETS: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
    (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history), \
    (select count(*) from pgbench_history)";
/// Longest time of pgbench's own initialisation.
const INITIALISE: Duration = Duration::from_secs(400);

/// A server on a claim. An empty claim is initialised; a copy recovers.
pub fn server(namespace: &str, name: &str, claim: &str) -> Value {
    let script = "export PGDATA=/data/pg; [ -e $PGDATA/PG_VERSION ] || initdb -k -A trust >/dev/null && \
        rm -f $PGDATA/postmaster.pid && exec postgres -c unix_socket_directories=/tmp -c listen_addresses= \
        -c checkpoint_timeout=30s -c shared_buffers=64MB";
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsUser": POSTGRES_UID, "runAsGroup": POSTGRES_UID, "fsGroup": POSTGRES_UID,
                "fsGroupChangePolicy": "OnRootMismatch",
            },
            "containers": [{
                "name": "postgres",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "readinessProbe": {
                    "exec": {"command": ["psql", "-h", "/tmp", "-d", "postgres", "-c", "select 1"]},
                    "periodSeconds": 1,
                    "timeoutSeconds": 5,
                },
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    })
}

/// Asks a server one question.
pub fn ask(stage: &Stage, pod: &str, question: &str) -> Result<String> {
    let answer =
        stage.sh(pod, &format!("psql -h /tmp -d postgres -v ON_ERROR_STOP=1 -Atc \"{question}\""))?;
    Ok(answer.trim().to_owned())
}

/// Number of transactions, after the balances were found equal.
pub fn balanced(stage: &Stage, pod: &str) -> Result<u64> {
    let answer = ask(stage, pod, SHEETS)?;
    let numbers: Vec<i64> = answer
        .split('|')
        .map(|number| number.parse().with_context(|| format!("reading the balances {answer}")))
        .collect::<Result<_>>()?;
    anyhow::ensure!(numbers.len() == 5, "the balances are {answer}");
    same("balances of accounts, tellers, branches and history", numbers[..4].to_vec(), vec![numbers[0]; 4])?;
    u64::try_from(numbers[4]).context("a negative number of transactions")
}

fn transactions(stage: &Stage, pod: &str) -> Result<u64> {
    ask(stage, pod, "select count(*) from pgbench_history")?.parse().context("counting transactions")
}

fn run(stage: &Stage) -> Result<()> {
    let namespace = &stage.namespace;
    stage.step("PostgreSQL starts on a claim of 10 GiB", || {
        stage.claim(Claim { name: "first", class: FILESYSTEM, size: "10Gi", from: From::Empty })?;
        stage.apply(&[server(namespace, "first", "first")])?;
        stage.ready("first")
    })?;
    stage.step("pgbench fills it with 2,000,000 accounts", || {
        let command = ["pgbench", "-h", "/tmp", "-i", "-q", "-s", "20", "postgres"];
        stage.kube.exec(namespace, "first", &command, INITIALISE)
    })?;
    stage.step("pgbench runs against it in the background", || {
        stage.sh("first", "nohup pgbench -h /tmp -n -c 4 -T 600 postgres >/tmp/pgbench.log 2>&1 &")
    })?;
    std::thread::sleep(Duration::from_secs(5));

    let (before, after) = stage.step("a snapshot is taken under load", || {
        let before = transactions(stage, "first")?;
        stage.apply(&[snapshot(namespace, "moment", "first")])?;
        stage.snapshot_ready("moment")?;
        Ok((before, transactions(stage, "first")?))
    })?;
    anyhow::ensure!(before > 0, "pgbench did nothing: {}", stage.sh("first", "cat /tmp/pgbench.log")?);
    std::thread::sleep(Duration::from_secs(2));

    let clone_before = transactions(stage, "first")?;
    let clone_after = stage.step("a clone of the busy 10 GiB starts a second server", || {
        stage.claim(Claim { name: "clone", class: FILESYSTEM, size: "10Gi", from: From::Claim("first") })?;
        stage.apply(&[server(namespace, "second", "clone")])?;
        stage.bound("clone")?;
        let after = transactions(stage, "first")?;
        stage.ready("second")?;
        Ok(after)
    })?;
    stage.step("the restored snapshot starts a third", || {
        stage.claim(Claim {
            name: "restored",
            class: FILESYSTEM,
            size: "10Gi",
            from: From::Snapshot("moment"),
        })?;
        stage.apply(&[server(namespace, "third", "restored")])?;
        stage.ready("third")
    })?;
    stage.step("each copy is balanced and agrees with its moment", || {
        within("the clone", balanced(stage, "second")?, clone_before, clone_after)?;
        within("the restore", balanced(stage, "third")?, before, after)
    })?;
    stage.step("the copies are servers in their own right", || {
        for pod in ["second", "third"] {
            let command = ["pgbench", "-h", "/tmp", "-n", "-c", "2", "-t", "50", "postgres"];
            stage.kube.exec(namespace, pod, &command, INITIALISE)?;
            balanced(stage, pod)?;
        }
        Ok(())
    })?;
    stage.step("the first never stopped", || {
        let now = transactions(stage, "first")?;
        anyhow::ensure!(now > clone_after, "it stands at {now} since the clone");
        Ok(())
    })?;
    stage.step("everything is deleted", || {
        stage.delete(&["pod/first", "pod/second", "pod/third", "pvc/first", "pvc/clone", "pvc/restored"])?;
        stage.delete(&["volumesnapshot/moment"])
    })
}

/// A copy holds every transaction acknowledged before its moment and none begun after it.
fn within(who: &str, found: u64, low: u64, high: u64) -> Result<()> {
    crate::say::note(format!("{who} has {found} transactions; its moment lay between {low} and {high}"));
    anyhow::ensure!((low..=high).contains(&found), "{who} does not agree with its moment");
    Ok(())
}
