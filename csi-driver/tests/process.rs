//! The plugins as processes: probes, metrics, registration with kubelet, a clean end, nothing secret in the logs.

mod support;

use parallax_csi::proto::csi::{ListVolumesRequest, NodeGetInfoRequest};
use parallax_csi::proto::registration::{
    InfoRequest, RegistrationStatus, registration_client::RegistrationClient,
};
use std::time::Duration;
use support::Daemon;
use support::plugin::{self, Plugin};
use support::world::{CANARY, CreateRequest, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn liveness_is_ours_and_readiness_is_the_daemons() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path()).await;
    let port = free_port().await;
    let health = format!("127.0.0.1:{port}");
    let args = ["--manager", &daemon.endpoint(), "--health-listen", &health];
    let controller = Plugin::start(folder.path(), "controller", &args).await;
    assert!(get(port, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(port, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(port, "/nothing").await.starts_with("HTTP/1.1 404"));
    controller.controller_client().list_volumes(ListVolumesRequest::default()).await.unwrap();
    let metrics = get(port, "/metrics").await;
    assert!(metrics.contains("parallax_csi_calls_total{method=\"ListVolumes\",code=\"OK\"} 1"), "{metrics}");

    // Restarting the plugin would not bring the daemon back.
    let away = tonic::Status::unavailable("away");
    let Some(()) = daemon.shop().map(|mut shop| drop(shop.failing.insert("get_pool", away))) else { return };
    let ready = get(port, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(get(port, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_finds_the_plugin_in_its_registry() {
    let world = World::new().await;
    let socket = world.folder.path().join("registry/csi.parallax.dev-reg.sock");
    for _ in 0..100 {
        if socket.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut kubelet = RegistrationClient::new(plugin::channel(&socket));
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.parallax.dev"));
    assert_eq!(info.endpoint, world.node.socket.display().to_string());
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    kubelet.notify_registration_status(status).await.unwrap();

    let node = world.n().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((node.node_id.as_str(), node.max_volumes_per_node), ("node-1", 100));
    let pool = world.pool().await.uuid;
    assert_eq!(node.accessible_topology.unwrap().segments["topology.parallax.dev/pool"], pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_plugin_cleanly() {
    let mut world = World::new().await;
    world.create(CreateRequest::new("v", 8).0).await.unwrap();
    for plugin in [&mut world.controller, &mut world.node] {
        let id = rustix::process::Pid::from_raw(plugin.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let status =
            tokio::time::timeout(Duration::from_secs(10), plugin.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}: {}", std::fs::read_to_string(&plugin.log).unwrap());
        assert!(!plugin.socket.exists());
    }
    assert!(!world.folder.path().join("registry/csi.parallax.dev-reg.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_a_log() {
    let world = World::new().await;
    let volume = world.create(CreateRequest::new("v", 8).0).await.unwrap();
    world.snapshot(&volume.volume_id, "s").await;
    let mut refused = CreateRequest::new("w", 8).0;
    refused.parameters.insert("misspelt".into(), "x".into());
    world.create(refused).await.unwrap_err();
    let logs = world.logs();
    assert!(
        logs.contains("<1 redacted>") && logs.contains("misspelt"),
        "requests and refusals are logged: {logs}"
    );
    assert!(!logs.contains(CANARY), "{logs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_cannot_work_is_refused_at_once() {
    let run = |args: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_parallax-csi")).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (ok, complaint) =
        run(&["node", "--endpoint", "/tmp/x/csi.sock", "--kubelet-dir", "/nonexistent/kubelet"]);
    assert!(!ok && complaint.contains("/nonexistent/kubelet"), "{complaint}");
    let (ok, complaint) =
        run(&["controller", "--endpoint", "/tmp/x/csi.sock", "--manager", "https://[::1]:1"]);
    assert!(!ok && complaint.contains("--tls-ca"), "{complaint}");
    let (ok, complaint) = run(&["controller", "--endpoint", "tcp://x", "--manager", "unix:///x"]);
    assert!(!ok && complaint.contains("unix:///path"), "{complaint}");
}
