//! A daemon for tests: the manager's and the node's services over plain files and real loop devices.
//!
//! Snapshots and clones are sparse copies. It keeps the promises of `parallax.proto` that the driver depends on:
//! idempotency by name, one node for a volume, compare-and-set of the filesystem state, devices that are held are
//! not detached. What the driver never calls is left out.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

mod manager;
mod node;
pub mod plugin;
pub mod shop;
pub mod world;

use parallax_api::v1::{manager_server::ManagerServer, node_server::NodeServer};
use shop::Shop;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
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
    pub shop: Arc<Mutex<Shop>>,
    pub socket: PathBuf,
    task: JoinHandle<()>,
}

impl Daemon {
    /// Starts one that keeps its files in `folder`.
    pub async fn start(folder: &Path) -> Self {
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
        Self { shop, socket, task }
    }

    /// Where it listens, as an argument.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
        if let Ok(mut shop) = self.shop.lock() {
            shop.detach_everything();
        }
    }
}
