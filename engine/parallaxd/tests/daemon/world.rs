//! One daemon and its files; everything goes when it is dropped.

use parallax_api::{
    client::{Client, Endpoint},
    v1::{self, volume_ref::By},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A killed daemon that is not dead by then waits for something.
const LAST_BREATH: Duration = Duration::from_secs(3);

/// Longest time that a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    directory: TempDir,
    extra: String,
    daemon: Option<Child>,
    holder: Option<Child>,
    respawn: bool,
    /// Killed, and not dead: a thread of it waits for an answer of its successor.
    lingering: Vec<Child>,
}

impl World {
    /// A pool of 256 MiB that the daemon makes itself.
    pub(crate) fn new() -> Self {
        Self {
            directory: TempDir::new().unwrap(),
            extra: String::new(),
            daemon: None,
            holder: None,
            respawn: false,
            lingering: Vec::new(),
        }
    }

    /// With more lines of configuration.
    pub(crate) fn with(mut self, extra: &str) -> Self {
        self.extra.push_str(extra);
        self
    }

    /// The process that is started runs the daemon as a child.
    pub(crate) fn respawning(mut self) -> Self {
        self.respawn = true;
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn pool(&self) -> PathBuf {
        self.path("pool.img")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("parallaxd.sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn holder_socket(&self) -> PathBuf {
        self.path("holder/holder.sock")
    }

    /// Tails of this test, which must not be those of another.
    pub(crate) fn tails(&self) -> PathBuf {
        let name = self.directory.path().display().to_string().replace('/', "-");
        Path::new("/dev/shm").join(format!("parallax-test{name}"))
    }

    /// Starts a holder; the daemon uses it from its next start on.
    pub(crate) fn start_holder(&mut self, patience_seconds: u32) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        // As in a container of its own: daemon and holder do not see each other's processes.
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_parallaxd")])
            .args(["supervise", "--json", "--patience", &patience_seconds.to_string(), "--socket"])
            .arg(self.holder_socket())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.holder = Some(child);
    }

    /// The process around the holder, and whether it has ended.
    pub(crate) fn holder(&mut self) -> (u32, bool) {
        let holder = self.holder.as_mut().expect("a holder was started");
        (holder.id(), holder.try_wait().unwrap().is_some())
    }

    /// SIGKILL to the holder.
    pub(crate) fn kill_holder(&mut self) {
        let holder = self.holder.as_mut().expect("a holder was started");
        holder.kill().unwrap();
        holder.wait().unwrap();
    }

    /// Has the holder end what it keeps, as an operator would.
    pub(crate) fn release(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_parallaxd"))
            .args(["supervise", "--release", "--socket"])
            .arg(self.holder_socket())
            .output()
            .unwrap()
    }

    fn configuration(&self) -> PathBuf {
        let path = self.path("parallaxd.yaml");
        let directory = self.directory.path().display();
        let holder = match self.holder {
            Some(_) => format!(", holder: {}", self.holder_socket().display()),
            None => String::new(),
        };
        let text = format!(
            "node: test\npool: {{path: {directory}/pool.img, create: {{size: 256M}}}}\n\
             socket: {directory}/parallaxd.sock\nexports: {{directory: {directory}/exports{holder}}}\n\
             tails: {}\nlog: {{format: json}}\nshutdown_within: 20s\n{}",
            self.tails().display(),
            self.extra
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A daemon of somebody who knows nothing of the holder, on the same pool; runs until it is dropped.
    pub(crate) async fn stranger(&self) -> (Stranger, Client) {
        let path = self.path("stranger.yaml");
        let socket = self.path("stranger.sock");
        let text = std::fs::read_to_string(self.configuration()).unwrap();
        let (exports, own) = (self.path("exports"), self.path("parallaxd.sock"));
        let text = text
            .replace(&format!(", holder: {}", self.holder_socket().display()), "")
            .replace(&exports.display().to_string(), &self.path("others").display().to_string())
            .replace(&own.display().to_string(), &socket.display().to_string());
        std::fs::write(&path, text).unwrap();
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_parallaxd"))
            .arg("--config")
            .arg(path)
            .stderr(log)
            .spawn()
            .unwrap();
        let stranger = Stranger(child);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(client) = Client::connect(&Endpoint::Unix(socket.clone())).await {
                return (stranger, client.with_deadline(PATIENCE));
            }
            assert!(Instant::now() < end, "the stranger does not answer\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The daemon's command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parallaxd"));
        command.arg("--config").arg(self.configuration());
        if self.respawn {
            command.arg("--respawn");
        }
        command
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) async fn start(&mut self) -> Client {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = self.command().stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        self.reconnect().await
    }

    /// Waits until the daemon answers.
    pub(crate) async fn reconnect(&mut self) -> Client {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(client) = Client::connect(&Endpoint::Unix(self.socket())).await {
                let client = client.with_deadline(PATIENCE);
                let ready = client.manager().get_pool(client.request(v1::GetPoolRequest {})).await;
                if ready.is_ok() {
                    return client;
                }
            }
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < end, "the daemon does not answer\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the daemon to its end and gives what it said.
    pub(crate) fn fail_to_start(&self) -> (ExitStatus, String) {
        let output = self.command().output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("started").id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL. One that was just attaching a device may live until its successor serves.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let mut daemon = self.daemon.take().expect("started");
        let end = Instant::now() + LAST_BREATH;
        while daemon.try_wait().unwrap().is_none() {
            if Instant::now() >= end {
                self.lingering.push(daemon);
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until every daemon that was killed is dead; how many took their time.
    pub(crate) fn bury(&mut self) -> usize {
        let end = Instant::now() + PATIENCE;
        for daemon in &mut self.lingering {
            while daemon.try_wait().unwrap().is_none() {
                assert!(Instant::now() < end, "a killed daemon lives on although another serves");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        std::mem::take(&mut self.lingering).len()
    }

    fn wait(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("started");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the daemon does not stop\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// See [`World::stranger`].
pub(crate) struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if let Some(holder) = &mut self.holder {
            // Whatever still waits for a daemon fails now.
            let _ = holder.kill();
            let _ = holder.wait();
        }
        let _ = std::fs::remove_dir_all(self.tails());
    }
}

pub(crate) fn named(name: &str) -> Option<v1::VolumeRef> {
    Some(v1::VolumeRef { by: Some(By::Name(name.to_owned())) })
}

pub(crate) fn new_volume(name: &str, size_bytes: u64) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest { name: name.to_owned(), size_bytes, ..Default::default() }
}

pub(crate) async fn create(client: &Client, name: &str, size_bytes: u64) -> v1::Volume {
    client.manager().create_volume(client.request(new_volume(name, size_bytes))).await.unwrap().into_inner()
}

pub(crate) async fn snapshot(client: &Client, volume: &str, label: &str) -> v1::Snapshot {
    let request = v1::CreateSnapshotsRequest {
        volumes: vec![named(volume).unwrap()],
        label: label.to_owned(),
        name: String::new(),
    };
    let taken = client.manager().create_snapshots(client.request(request)).await.unwrap().into_inner();
    taken.snapshots.into_iter().next().unwrap()
}

/// Writes pieces of a volume.
pub(crate) async fn write(
    client: &Client,
    volume: &str,
    pieces: &[(u64, &[u8])],
) -> Result<u64, tonic::Status> {
    let first = v1::WriteContentRequest { volume: named(volume), ..Default::default() };
    let rest = pieces.iter().map(|(offset, data)| v1::WriteContentRequest {
        volume: None,
        offset: *offset,
        data: data.to_vec(),
    });
    let messages: Vec<_> = std::iter::once(first).chain(rest).collect();
    let request = client.unbounded(tokio_stream::iter(messages));
    Ok(client.node().write_content(request).await?.into_inner().bytes_written)
}

/// Everything that a volume or a snapshot (`Err`) holds.
pub(crate) async fn read(client: &Client, source: Result<&str, &str>) -> Vec<u8> {
    use v1::read_content_request::Target;
    let target = match source {
        Ok(volume) => Target::VolumeName(volume.to_owned()),
        Err(snapshot) => Target::SnapshotId(snapshot.to_owned()),
    };
    let request = client.unbounded(v1::ReadContentRequest { target: Some(target) });
    let mut stream = client.node().read_content(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        if bytes.is_empty() {
            bytes.resize(usize::try_from(piece.size_bytes).unwrap(), 0);
        }
        let offset = usize::try_from(piece.offset).unwrap();
        bytes[offset..offset + piece.data.len()].copy_from_slice(&piece.data);
    }
    bytes
}
