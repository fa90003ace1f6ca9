//! A daemon for tests: the real one, or one of our own over plain files and real loop devices.
//!
//! `PARALLAXD=/path/to/parallaxd` runs every test over the real daemon. Without it the driver is tested by itself:
//! the test daemon keeps the promises of `parallax.proto` that the driver depends on (idempotency by name, one node
//! for a volume, compare-and-set of the filesystem state, devices that are held are not detached) and can be told to
//! fail. Its snapshots and clones are sparse copies. What the driver never calls is left out.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod manager;
mod node;
pub mod plugin;
pub mod shop;
pub mod world;

use parallax_api::client::{Client, Endpoint};
use parallax_api::v1::{self, manager_server::ManagerServer, node_server::NodeServer};
use shop::Shop;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;

/// Name of the only node.
pub const NODE: &str = "node-1";

/// Loop devices and mounts need root; elsewhere such tests say so and end.
pub fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !root {
        eprintln!("not run: needs root and loop devices");
    }
    root
}

/// A running daemon; what it attached goes with it.
pub struct Daemon {
    pub socket: PathBuf,
    kind: Kind,
}

enum Kind {
    Ours { shop: Arc<Mutex<Shop>>, task: JoinHandle<()> },
    Real { folder: PathBuf, child: Child },
}

impl Daemon {
    /// Starts one that keeps its files in `folder`.
    pub async fn start(folder: &Path) -> Self {
        match std::env::var_os("PARALLAXD") {
            None => Self::start_ours(folder).await,
            Some(program) => Self::start_real(folder, Path::new(&program)).await,
        }
    }

    async fn start_ours(folder: &Path) -> Self {
        let socket = folder.join("parallaxd.sock");
        let files = folder.join("pool");
        std::fs::create_dir_all(&files).unwrap();
        let shop = Arc::new(Mutex::new(Shop::new(files)));
        let listener = UnixListener::bind(&socket).unwrap();
        let router = tonic::transport::Server::builder()
            .add_service(ManagerServer::new(manager::Service(Arc::clone(&shop))))
            .add_service(NodeServer::new(node::Service(Arc::clone(&shop))));
        let task = tokio::spawn(async move {
            router.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { socket, kind: Kind::Ours { shop, task } }
    }

    async fn start_real(folder: &Path, program: &Path) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = folder.join("daemon");
        let tails = folder.join("tails");
        std::fs::create_dir_all(folder.join("exports")).unwrap();
        std::fs::create_dir_all(&tails).unwrap();
        std::fs::set_permissions(&tails, std::fs::Permissions::from_mode(0o700)).unwrap();
        let at = folder.display();
        let config = format!(
            "node: {NODE}\npool:\n  path: {at}/pool.img\n  create:\n    size: 64GiB\nsocket: {at}/parallaxd.sock\n\
             tails: {at}/tails\nexports:\n  directory: {at}/exports\n  attachments_max: 100\n"
        );
        std::fs::write(folder.join("parallaxd.yaml"), config).unwrap();
        // Its file may be replaced by the next build.
        std::fs::copy(program, folder.join("parallaxd")).unwrap();
        let socket = folder.join("parallaxd.sock");
        let daemon = Self { socket, kind: Kind::Real { child: spawn_real(&folder), folder } };
        daemon.wait_until_ready().await;
        daemon
    }

    /// Kills it without warning and starts it again: devices of the first one are dead.
    pub async fn lose_devices(&mut self) {
        match &mut self.kind {
            Kind::Ours { shop, .. } => shop.lock().unwrap().detach_everything(),
            Kind::Real { folder, child } => {
                child.kill().await.unwrap();
                *child = spawn_real(folder);
                self.wait_until_ready().await;
            }
        }
    }

    async fn wait_until_ready(&self) {
        let client = self.client();
        for _ in 0..600 {
            if client.node().get_node(client.request(v1::GetNodeRequest {})).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the daemon is not ready");
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::lazy(&Endpoint::Unix(self.socket.clone())).unwrap()
    }

    /// The inside of our own daemon; a test that needs it says so and ends where there is none.
    pub fn shop(&self) -> Option<MutexGuard<'_, Shop>> {
        match &self.kind {
            Kind::Ours { shop, .. } => Some(shop.lock().unwrap()),
            Kind::Real { .. } => {
                eprintln!("not run: the real daemon cannot be told to fail");
                None
            }
        }
    }

    /// Where it listens, as an argument.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

fn spawn_real(folder: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    // Whoever mounts its devices must not share a mount namespace with it.
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(folder.join("parallaxd"))
        .arg("--config")
        .arg(folder.join("parallaxd.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Ours { shop, task } => {
                task.abort();
                if let Ok(mut shop) = shop.lock() {
                    shop.detach_everything();
                }
            }
            Kind::Real { folder, child } => {
                if std::thread::panicking() {
                    eprintln!("{}", std::fs::read_to_string(folder.join("log")).unwrap_or_default());
                }
                end_cleanly(child);
            }
        }
    }
}

/// Asks the daemon to end, so that it takes its devices away.
fn end_cleanly(child: &mut Child) {
    let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) else { return };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    for _ in 0..300 {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
