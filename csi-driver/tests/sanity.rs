//! csi-sanity, whole, against the real plugins.
//!
//! By default over the test daemon; `PARALLAX_SANITY_DAEMON=unix:///path` names a real parallaxd instead.
//! `CSI_SANITY` names the program if it is not in the usual cache or on the path.

mod support;

use std::path::PathBuf;
use std::process::Stdio;
use support::{Daemon, can_mount, plugin::Plugin};

fn csi_sanity() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let named = std::env::var_os("CSI_SANITY").map(PathBuf::from);
    let cached = home.join(".cache/parallax/bin/csi-sanity");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("csi-sanity"));
    named.into_iter().chain([cached]).chain(on_path).find(|program| program.is_file())
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_passes() {
    if !can_mount() {
        return;
    }
    let Some(program) = csi_sanity() else {
        eprintln!(
            "not run: csi-sanity is not installed (go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0)"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (own, endpoint) = match std::env::var("PARALLAX_SANITY_DAEMON") {
        Ok(endpoint) => (None, endpoint),
        Err(_) => {
            let daemon = Daemon::start(folder.path()).await;
            let endpoint = daemon.endpoint();
            (Some(daemon), endpoint)
        }
    };
    let controller = Plugin::controller(folder.path(), &endpoint).await;
    let node = Plugin::node(folder.path(), &endpoint).await;
    let run = || {
        tokio::process::Command::new(&program)
            .arg(format!("--csi.endpoint={}", node.endpoint()))
            .arg(format!("--csi.controllerendpoint={}", controller.endpoint()))
            .arg(format!("--csi.stagingdir={}/staging", folder.path().display()))
            .arg(format!("--csi.mountdir={}/mount", folder.path().display()))
            .args(["--csi.testvolumesize=67108864", "--csi.testvolumeexpandsize=134217728"])
            .arg("--ginkgo.no-color")
            .args(std::env::var("CSI_SANITY_ARGS").unwrap_or_default().split_whitespace())
            .env("GOMAXPROCS", "1")
            .stdin(Stdio::null())
            .output()
    };
    let mut output = run().await.unwrap();
    // It waits for its connection to change, a minute long, also if that was ready before it began to wait. One
    // processor makes this rare.
    if !output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Connection timed out") {
        eprintln!("csi-sanity has missed that it was connected; once more");
        output = run().await.unwrap();
    }
    let report = String::from_utf8_lossy(&output.stdout);
    let logs =
        std::fs::read_to_string(&node.log).unwrap() + &std::fs::read_to_string(&controller.log).unwrap();
    assert!(output.status.success(), "{report}\n{logs}");
    println!("{report}");
    drop(own);
}
