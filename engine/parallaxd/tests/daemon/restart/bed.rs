//! A held daemon, its devices and their users.

use crate::world::{World, create};
use parallax_api::{client::Client, v1};
use rustix::fs::OFlags;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Kills in a row, unless the environment says how many.
pub(super) const KILLS: u32 = 20;
pub(super) const KILLS_VARIABLE: &str = "PARALLAX_TEST_KILLS";

/// Long enough for everything that a test waits for on purpose; I/O that waits longer fails.
pub(super) const PATIENCE: u32 = 60;

pub(super) const BOUND: Duration = Duration::from_secs(120);

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn machine_can() -> bool {
    let mut release = rustix::system::uname().release().to_string_lossy().into_owned();
    release.retain(|digit| digit.is_ascii_digit() || digit == '.');
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let devices = ["/dev/fuse", "/dev/loop-control"];
    let opens = |path: &&str| OpenOptions::new().read(true).write(true).open(path).is_ok();
    let can = rustix::process::geteuid().is_root() && devices.iter().all(opens) && version >= (6, 9);
    if !can {
        eprintln!("skipped: needs root, /dev/fuse, the loop driver and Linux 6.9 (this is {release})");
    }
    can
}

pub(super) async fn attach(client: &Client, volume: &str) -> PathBuf {
    let target = Some(v1::attach_request::Target::VolumeName(volume.into()));
    let request = client.request(v1::AttachRequest { target, read_only: false });
    client.node().attach(request).await.unwrap().into_inner().device.into()
}

pub(super) async fn detach(client: &Client, volume: &str) {
    let target = Some(v1::detach_request::Target::VolumeName(volume.into()));
    client.node().detach(client.request(v1::DetachRequest { target })).await.unwrap();
}

/// A world with a holder, a daemon and volumes that are attached.
pub(super) async fn held(volumes: &[(&str, u64)]) -> (World, Client, Vec<PathBuf>) {
    held_in(World::new(), volumes).await
}

pub(super) async fn held_in(mut world: World, volumes: &[(&str, u64)]) -> (World, Client, Vec<PathBuf>) {
    world.start_holder(PATIENCE);
    let client = world.start().await;
    let mut devices = Vec::new();
    for (name, size) in volumes {
        create(&client, name, *size).await;
        devices.push(attach(&client, name).await);
    }
    (world, client, devices)
}

pub(super) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&text));
    output
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Opened as a database does it: around the page cache.
pub(super) fn direct(device: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(device)
        .unwrap()
}

/// Reads one block around the page cache.
pub(super) fn read_block(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut buffer = parallax_block::Buffer::zeroed(4096);
    file.read_exact_at(&mut buffer, offset).map(|()| buffer.to_vec())
}

pub(super) fn write_block(file: &File, offset: u64, byte: u8) -> io::Result<()> {
    file.write_all_at(&parallax_block::Buffer::copy_of(&[byte; 4096]), offset)
}

pub(super) fn fio(mount: &Path, name: &str, words: &str) -> Child {
    Command::new("fio")
        .args(words.split(' '))
        .arg(format!("--name={name}"))
        .arg(format!("--directory={}", mount.display()))
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randrepeat=0",
            "--time_based",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub(super) fn finish(name: &str, mut process: Child) {
    let end = Instant::now() + BOUND;
    while process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "{name} does not end");
        thread::sleep(Duration::from_millis(50));
    }
    let output = process.wait_with_output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&text));
}

/// Reads one block over and over, and remembers the longest time that a read took.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Duration>>,
}

impl Reader {
    pub(super) fn start(device: &Path) -> Self {
        let file = direct(device);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(SeqCst) {
                let start = Instant::now();
                read_block(&file, 0)?;
                longest = longest.max(start.elapsed());
                thread::sleep(Duration::from_millis(2));
            }
            Ok(longest)
        });
        Self { stop, thread }
    }

    pub(super) fn longest(self) -> Duration {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap().expect("a read failed")
    }
}

/// Nothing damaged, and nothing that garbage collection would not give back.
pub(super) async fn assert_clean(client: &Client) {
    let request = client.unbounded(v1::CheckPoolRequest {});
    let mut progress = client.manager().check_pool(request).await.unwrap().into_inner();
    let mut findings = Vec::new();
    while let Some(step) = progress.message().await.unwrap() {
        findings.extend(step.findings);
    }
    assert!(findings.iter().all(|finding| finding.severity != "damage"), "{findings:?}");
}

/// Runs I/O that is expected to fail, and not to hang.
pub(super) fn fails(file: &File) {
    let start = Instant::now();
    let outcome = write_block(file, 4096, 1).and_then(|()| read_block(file, 4096));
    let error = outcome.expect_err("a dead device answers");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(start.elapsed() < BOUND);
}
