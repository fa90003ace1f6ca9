//! A server to test: over memory, and over a file by io_uring and by threads.

use parallax_block::BlockDevice;
use parallax_device::{IoMode, OpenOptions, RamDevice, Reactor, ReactorHandle, ReactorOptions, open_device};
use parallax_export::nbd::{Limits, NbdExport, NbdServer, NbdServerHandle};
use std::{
    ffi::OsStr,
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

pub(crate) const SIZE: u64 = 32 << 20;

pub(crate) struct Bed {
    pub(crate) server: NbdServerHandle,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) reactors: Vec<ReactorHandle>,
    directory: TempDir,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Backing {
    Ram(u32),
    File(IoMode),
}

/// Runs a test over every kind of device.
pub(crate) fn everywhere(test: impl Fn(&Bed)) {
    for backing in [Backing::Ram(512), Backing::File(IoMode::Uring), Backing::File(IoMode::Threads)] {
        eprintln!("over {backing:?}");
        test(&Bed::new(backing, Limits::default()));
    }
}

impl Bed {
    pub(crate) fn new(backing: Backing, limits: Limits) -> Self {
        let io = if let Backing::File(io) = backing { io } else { IoMode::Auto };
        let reactors: Vec<_> = ["nbd-0", "nbd-1"]
            .map(|name| Reactor::start(name, ReactorOptions { io, ..ReactorOptions::default() }).unwrap())
            .to_vec();
        let directory = tempfile::tempdir().unwrap();
        let device: Arc<dyn BlockDevice> = match backing {
            Backing::Ram(sector) => Arc::new(RamDevice::new(SIZE, sector).unwrap()),
            Backing::File(io) => {
                let path = directory.path().join("disk");
                File::create(&path).unwrap().set_len(SIZE).unwrap();
                open_device(&path, &reactors[0], OpenOptions { io, ..OpenOptions::default() }).unwrap()
            }
        };
        let export = NbdExport {
            name: String::new(),
            device: Arc::clone(&device),
            read_only: false,
            description: "the disk".to_owned(),
        };
        let socket = directory.path().join("nbd");
        let server = NbdServer::start(&reactors, &socket, vec![export], limits).unwrap();
        Self { server, device, reactors, directory }
    }

    /// Offers the same device under another name.
    pub(crate) fn also_as(&self, name: &str, read_only: bool) {
        self.server
            .add_export(NbdExport {
                name: name.to_owned(),
                device: Arc::clone(&self.device),
                read_only,
                description: String::new(),
            })
            .unwrap();
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.server.socket().display())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.server.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    pub(crate) fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        self.reactors[0].block_on(task).unwrap()
    }

    pub(crate) fn shut_down(&self) {
        let server = self.server.clone();
        self.run(async move { server.shutdown().await });
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.shut_down();
        }
        self.reactors.iter().for_each(ReactorHandle::shutdown);
    }
}

fn start<I: AsRef<OsStr>>(tool: &str, arguments: impl IntoIterator<Item = I>) -> Output {
    // A server that hangs must fail a test, not stop it. The distribution's Python, which has libnbd's module,
    // goes before any other.
    let path = format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default());
    Command::new("timeout").arg("60").arg(tool).args(arguments).env("PATH", path).output().unwrap()
}

/// Runs a client and returns what it prints. It must succeed.
pub(crate) fn tool<I: AsRef<OsStr>>(tool: &str, arguments: impl IntoIterator<Item = I>) -> String {
    let output = start(tool, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_ne!(
        output.status.code(),
        Some(127),
        "{tool} is missing: apt-get install libnbd-bin python3-libnbd qemu-utils"
    );
    assert!(output.status.success(), "{tool}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs Python with a connected handle `h`.
pub(crate) fn nbdsh(uri: &str, script: &str) -> String {
    let script = script.replace("\n    ", "\n");
    tool("nbdsh", ["--base-allocation", "-u", uri, "-c", "import nbd, errno", "-c", script.trim_start()])
}

/// Bytes without a pattern that a mistake could repeat.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Writes noise at the start of a sparse file of the export's size.
pub(crate) fn image(path: &Path, length: usize, seed: u64) {
    std::fs::write(path, noise(length, seed)).unwrap();
    File::options().write(true).open(path).unwrap().set_len(SIZE).unwrap();
}
