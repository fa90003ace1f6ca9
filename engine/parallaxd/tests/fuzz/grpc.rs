//! The daemon's services on their socket, over a real pool: calls with hostile messages, and bytes that are no call.
//!
//! `ID` in an input stands for the id of the volume `data`, which is another on every run.

use crate::folder;
use parallax_api::{
    client::{Client, Endpoint},
    v1::{self, volume_ref::By},
};
use parallax_device::IoMode;
use parallax_fuzz::{
    Bound, Outcome, Target, explore,
    grpc::{self, seed},
    replay,
};
use parallax_store::Name;
use parallaxd::{
    config::GcConfig,
    engine::{Engine, EngineOptions, Format},
    gc::Collector,
    metrics::Metrics,
    openings::{ExportOptions, Openings},
    server::{self, Health},
    service::Core,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};

const DEADLINE: Duration = Duration::from_secs(30);
/// Requests are at most 8 MiB, and are held by the client, by HTTP/2's windows and by the server.
const BOUND: Bound = Bound { memory: 96 << 20, time: Duration::from_secs(60) };

/// A daemon's services in this process.
struct Bed {
    runtime: Runtime,
    client: Client,
    socket: PathBuf,
    pool: grpc::Pool,
    engine: Arc<Engine>,
    _health: watch::Sender<bool>,
    directory: TempDir,
    _tails: TempDir,
}

impl Bed {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        // In memory: what matters here is not how fast a disk flushes.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let tails = tempfile::tempdir_in("/dev/shm").unwrap();
        let socket = directory.path().join("socket");
        let (health, changes) = watch::channel(true);
        let (engine, client) = runtime.block_on(async {
            let options = EngineOptions {
                path: directory.path().join("pool"),
                io: IoMode::Threads,
                data_threads: 1,
                io_flusher: false,
                tails: tails.path().join("tails"),
                host: Name::new("node-1").unwrap(),
                create: Some(Format { file_bytes: Some(64 << 20), extent_bytes: None, force: false }),
            };
            let engine = Arc::new(Engine::open(options).await.unwrap());
            let exports = ExportOptions {
                directory: directory.path().join("exports"),
                attachments_max: 16,
                memory_bytes_max: 16 << 20,
                holder: None,
            };
            let openings = Arc::new(Openings::new(Arc::clone(&engine), exports));
            let metrics = Arc::new(Metrics::default());
            let gc = GcConfig { automatic: false, ..GcConfig::default() };
            let collector = Arc::new(Collector::new(Arc::clone(&engine), Arc::clone(&metrics), gc));
            let core = Core { engine: Arc::clone(&engine), openings, collector, metrics };
            let (listener, file) = server::bind_socket(&socket).await.unwrap();
            tokio::spawn(async move {
                let _file = file;
                let forever = std::future::pending();
                server::serve_socket(&core, &Health::new(changes), listener, forever).await
            });
            let client = Client::connect(&Endpoint::Unix(socket.clone())).await.unwrap();
            (engine, client.with_deadline(DEADLINE))
        });
        let pool = runtime.block_on(grpc::Pool::new(client.clone(), &socket, DEADLINE));
        Self { runtime, client, socket, pool, engine, _health: health, directory, _tails: tails }
    }

    fn still_serves(&self) {
        let name = Some(v1::VolumeRef { by: Some(By::Name("data".into())) });
        let request = self.client.request(v1::GetVolumeRequest { volume: name, with_usage: false });
        let volume = self.runtime.block_on(async { self.client.manager().get_volume(request).await });
        assert_eq!(volume.unwrap().into_inner().name, "data");
    }

    fn called(&self, bytes: &[u8]) -> Outcome {
        let outcome = self.runtime.block_on(self.pool.called(bytes));
        self.still_serves();
        outcome
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Errors say nothing about the inputs; the pool goes with its directory.
        let _ = self.runtime.block_on(self.engine.close());
        let _ = self.directory.path();
    }
}

#[test]
fn manager_and_content() {
    let bed = Bed::new();
    let manager =
        |name, method: &str, message| seed(name, &format!("/parallax.v1.Manager/{method}"), message);
    let target = Target {
        name: "grpc",
        folder: folder(),
        seeds: vec![
            manager("create-volume", "CreateVolume", "1=\"new\" 2=v:1048576 5=( 1=\"k\" 2=\"v\" ) 6=v:512"),
            manager("clone", "CreateVolume", "1=\"new\" 3=\"ID@1\""),
            manager("delete-volume", "DeleteVolume", "1=( 2=\"gone\" )"),
            manager("get-volume", "GetVolume", "1=( 1=\"ID\" ) 2=v:1"),
            manager("list-volumes", "ListVolumes", "1=v:10 2=\"ID\" 3=v:1 4=v:1"),
            manager("rename", "RenameVolume", "1=( 2=\"data\" ) 2=\"other\""),
            manager("resize", "ResizeVolume", "1=( 2=\"data\" ) 2=v:8388608"),
            manager("filesystem", "SetFilesystemState", "1=( 2=\"data\" ) 2=v:1 3=v:2"),
            manager("publish", "PublishVolume", "1=( 2=\"data\" ) 2=( 1=\"node-1\" 2=v:1 )"),
            manager("unpublish", "UnpublishVolume", "1=( 2=\"data\" ) 2=\"node-1\""),
            manager("snapshot", "CreateSnapshots", "1=( 2=\"data\" ) 2=\"label\" 3=\"snap\""),
            manager("get-snapshot", "GetSnapshot", "2=\"kept\" 3=v:1"),
            manager("list-snapshots", "ListSnapshots", "1=( 2=\"data\" ) 2=v:10 4=v:1"),
            manager("label", "LabelSnapshot", "1=\"ID@1\" 2=\"text\""),
            manager("diff", "DiffSnapshots", "2=\"ID@1\" 3=v:4096"),
            manager("revert", "RevertVolume", "1=( 2=\"data\" ) 2=\"ID@1\""),
            manager("delete-snapshot", "DeleteSnapshot", "1=\"ID@7\""),
            seed("read", "/parallax.v1.Node/ReadContent", "3=\"data\""),
            seed(
                "write",
                "*parallax.v1.Node/WriteContent",
                "1=( 1=( 2=\"data\" ) ) 1=( 2=v:4096 3=ab*4096 )",
            ),
        ],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 150,
        run: Box::new(|bytes| bed.called(bytes)),
    };
    replay(&target);
    explore(&target);
}

/// What would make devices and sockets on this machine if it were accepted is not mutated.
#[test]
fn node() {
    let bed = Bed::new();
    replay(&Target {
        name: "grpc-node",
        folder: folder(),
        seeds: vec![
            seed("node", "/parallax.v1.Node/GetNode", ""),
            seed("detach", "/parallax.v1.Node/Detach", "3=\"data\""),
        ],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 0,
        run: Box::new(|bytes| bed.called(bytes)),
    });
}

#[test]
fn bytes_that_are_no_call() {
    let bed = Bed::new();
    let target = Target {
        name: "frames",
        folder: folder(),
        seeds: vec![],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 100,
        run: Box::new(|bytes| {
            let outcome = grpc::frames(&bed.socket, bytes);
            bed.still_serves();
            outcome
        }),
    };
    replay(&target);
    explore(&target);
}
