//! The real plugins, as processes, and clients of them.

use hyper_util::rt::TokioIo;
use parallax_csi::proto::csi::{
    ProbeRequest, controller_client::ControllerClient, identity_client::IdentityClient,
    node_client::NodeClient,
};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint, Uri};

/// A running plugin; killed when dropped. What it logs is in a file.
pub struct Plugin {
    pub child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
    command: Vec<String>,
}

impl Plugin {
    /// Starts the controller.
    pub async fn controller(folder: &Path, manager: &str) -> Self {
        Self::start(folder, "controller", &["--manager", manager]).await
    }

    /// Starts the node plugin; every path below `folder` is kubelet's.
    pub async fn node(folder: &Path, daemon: &str) -> Self {
        let kubelet = folder.display().to_string();
        let registry = folder.join("registry").display().to_string();
        let args = ["--daemon", daemon, "--kubelet-dir", &kubelet, "--registration-dir", &registry];
        Self::start(folder, "node", &args).await
    }

    pub async fn start(folder: &Path, command: &str, args: &[&str]) -> Self {
        let socket = folder.join(format!("{command}.sock"));
        let endpoint = format!("unix://{}", socket.display());
        let base = [command, "--log", "debug", "--endpoint", &endpoint];
        let command_line = base.iter().chain(args).map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let log = folder.join(format!("{command}.log"));
        let child = spawn(&command_line, &log, &[]);
        let plugin = Self { child, socket, log, command: command_line };
        plugin.wait_until_ready().await;
        plugin
    }

    /// Starts one that need not become ready, with these variables in its environment.
    pub fn spawn_controller(folder: &Path, args: &[&str], environment: &[(&str, &Path)]) -> Self {
        let socket = folder.join("controller.sock");
        let endpoint = format!("unix://{}", socket.display());
        let command = ["controller", "--endpoint", &endpoint];
        let command = command.iter().chain(args).map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let log = folder.join("controller.log");
        Self { child: spawn(&command, &log, environment), socket, log, command }
    }

    /// What `Probe` says, when it is answered.
    pub async fn ready(&self) -> Option<bool> {
        let answer = IdentityClient::new(self.channel()).probe(ProbeRequest {}).await.ok()?;
        answer.into_inner().ready
    }

    /// Kills it without warning and starts it again.
    pub async fn kill_and_restart(&mut self) {
        self.child.kill().await.unwrap();
        self.child = spawn(&self.command, &self.log, &[]);
        self.wait_until_ready().await;
    }

    pub async fn wait_until_ready(&self) {
        for _ in 0..200 {
            if self.ready().await == Some(true) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the plugin is not ready: {}", std::fs::read_to_string(&self.log).unwrap_or_default());
    }

    pub fn channel(&self) -> Channel {
        channel(&self.socket)
    }

    pub fn controller_client(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel())
    }

    pub fn node_client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel())
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

/// A connection to a socket, made when it is needed.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://plugin").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

fn spawn(args: &[String], log: &Path, environment: &[(&str, &Path)]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    Command::new(env!("CARGO_BIN_EXE_parallax-csi"))
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
