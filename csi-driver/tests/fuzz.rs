//! Hostile CSI requests: `tests/corpus/` keeps them, with what must come of each.
//!
//! The driver's services listen on a real socket and ask the test daemon. `ID` in an input stands for the id of the
//! volume `data`, which is another on every run. No call may answer INTERNAL or UNKNOWN, and the driver goes on.

mod support;

use parallax_csi::{
    controller::ControllerService,
    identity::{DependsOn, IdentityService},
    ids::KubeletDir,
    node::NodeService,
    proto::csi::{
        controller_server::ControllerServer, group_controller_server::GroupControllerServer,
        identity_server::IdentityServer, node_server::NodeServer,
        snapshot_metadata_server::SnapshotMetadataServer,
    },
    server::Shell,
};
use parallax_fuzz::{Bound, Outcome, Seed, Target, explore, grpc, replay};
use std::{path::PathBuf, time::Duration};
use support::Daemon;
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

const DEADLINE: Duration = Duration::from_secs(30);
/// gRPC takes messages of at most 4 MiB; client and server are both in this process.
const BOUND: Bound = Bound { memory: 96 << 20, time: Duration::from_secs(60) };
/// Access by one node for writing, as a filesystem.
const EXT4: &str = "( 2=( 1=\"ext4\" ) 3=( 1=v:1 ) )";

struct Bed {
    runtime: Runtime,
    socket: PathBuf,
    pool: grpc::Pool,
    kubelet: PathBuf,
    _daemon: Daemon,
    _folder: TempDir,
}

impl Bed {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubelet = folder.path().join("kubelet");
        std::fs::create_dir(&kubelet).unwrap();
        let socket = folder.path().join("csi.sock");
        let (pool, daemon) = runtime.block_on(async {
            let daemon = Daemon::start(folder.path()).await;
            let client = daemon.client();
            let controller = ControllerService::new(client.clone(), Shell::default());
            let node =
                NodeService::new(client.clone(), KubeletDir::open(&kubelet).unwrap(), Shell::default());
            let listener = UnixListener::bind(&socket).unwrap();
            let router = Server::builder()
                .add_service(IdentityServer::new(IdentityService::new(DependsOn::Manager(client))))
                .add_service(ControllerServer::new(controller.clone()))
                .add_service(GroupControllerServer::new(controller.clone()))
                .add_service(SnapshotMetadataServer::new(controller))
                .add_service(NodeServer::new(node));
            tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
            (grpc::Pool::new(daemon.client(), &socket, DEADLINE).await, daemon)
        });
        Self { runtime, socket, pool, kubelet, _daemon: daemon, _folder: folder }
    }

    fn called(&self, bytes: &[u8]) -> Outcome {
        let outcome = self.runtime.block_on(self.pool.called(bytes));
        let probe = grpc::call(&self.socket, b"/csi.v1.Identity/Probe\n", DEADLINE);
        let goes_on = grpc::outcome(self.runtime.block_on(probe));
        assert_eq!(goes_on, Outcome::Accepted, "the driver goes on");
        match outcome {
            Outcome::Accepted => outcome,
            Outcome::Refused(words) => {
                let kubelet = self.kubelet.display().to_string();
                Outcome::Refused(words.replace(&kubelet, "KUBELET"))
            }
        }
    }
}

fn seed(name: &'static str, method: &str, message: &str) -> Seed {
    grpc::seed(name, &format!("/csi.v1.{method}"), &message.replace("EXT4", EXT4))
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

#[test]
fn controller() {
    let bed = Bed::new();
    let target = Target {
        name: "controller",
        folder: folder(),
        seeds: vec![
            seed("create", "Controller/CreateVolume", "1=\"new\" 2=( 1=v:8388608 2=v:16777216 ) 3=EXT4"),
            seed("clone", "Controller/CreateVolume", "1=\"new\" 3=EXT4 6=( 2=( 1=\"ID\" ) )"),
            seed("delete", "Controller/DeleteVolume", "1=\"gone\""),
            seed("publish", "Controller/ControllerPublishVolume", "1=\"ID\" 2=\"node-1\" 3=EXT4"),
            seed("unpublish", "Controller/ControllerUnpublishVolume", "1=\"ID\" 2=\"node-1\""),
            seed("validate", "Controller/ValidateVolumeCapabilities", "1=\"ID\" 3=EXT4"),
            seed("list", "Controller/ListVolumes", "1=v:10"),
            seed("get", "Controller/ControllerGetVolume", "1=\"ID\""),
            seed("capacity", "Controller/GetCapacity", "1=EXT4"),
            seed("snapshot", "Controller/CreateSnapshot", "1=\"ID\" 2=\"snap\""),
            seed("delete-snapshot", "Controller/DeleteSnapshot", "1=\"ID@9\""),
            seed("list-snapshots", "Controller/ListSnapshots", "1=v:5 3=\"ID\""),
            seed("expand", "Controller/ControllerExpandVolume", "1=\"ID\" 2=( 1=v:8388608 ) 4=EXT4"),
            seed("group", "GroupController/CreateVolumeGroupSnapshot", "1=\"group\" 2=\"ID\""),
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

/// What would mount if it were accepted is not mutated.
#[test]
fn node() {
    let bed = Bed::new();
    replay(&Target {
        name: "node",
        folder: folder(),
        seeds: vec![seed("info", "Node/NodeGetInfo", "")],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 0,
        run: Box::new(|bytes| bed.called(bytes)),
    });
}
