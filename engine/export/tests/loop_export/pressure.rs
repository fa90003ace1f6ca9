//! The node must not hang: users of a loop export short of memory, and the daemon killed under them.
//!
//! The daemon is a process of its own (this test binary again). Its users live in a memory control group much
//! smaller than what they write. Every task of the machine is watched for uninterruptible sleep throughout.

use crate::{
    watch::{MemoryGroup, SleepWatch},
    world::{MemoryDevice, Pool, Shape, key, machine_can, run, text, unmount},
};
use parallax_device::loop_control::LoopDevice;
use parallax_export::{
    holder::{Holder, HolderOptions, release},
    loop_export::{Limits, LoopExports, protect_process},
};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

const DIRECTORY: &str = "PARALLAX_TEST_DIRECTORY";
const STUCK: &str = "PARALLAX_TEST_STUCK";
const HOLDER: &str = "PARALLAX_TEST_HOLDER";
const DEVICE_BYTES: u64 = 1 << 30;
const GROUP_BYTES: u64 = 64 << 20;

/// A task that sleeps this long without interruption is taken for hung.
const SLEEP_MAX: Duration = Duration::from_secs(40);

/// Everything that must end after the daemon died must end within this time.
const BOUND: Duration = Duration::from_secs(20);

/// Not a test of its own: the daemon that the tests below start and kill.
#[test]
#[ignore = "a part of the other tests: the daemon that they kill"]
fn daemon() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let protection = protect_process();
    let directory = Path::new(&directory);
    let exports = match std::env::var_os(HOLDER) {
        Some(holder) => {
            let takeover =
                LoopExports::take_over(directory, Pool::new(), Limits::default(), Path::new(&holder))
                    .unwrap();
            takeover.serve(BTreeMap::new()).unwrap()
        }
        None => LoopExports::start(directory, Pool::new(), Limits::default()).unwrap(),
    };
    let device = MemoryDevice::new(Shape::of(DEVICE_BYTES));
    if std::env::var_os(STUCK).is_some() {
        device.slow_to_tell.store(true, SeqCst);
        println!("\nstuck");
    }
    let attachment = exports.attach(key("pressure"), device, false).unwrap();
    println!("\nattached {} {protection:?}", attachment.path.display());
    // Ends with the test, however that ends.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let held = exports.shutdown().unwrap();
    assert!(held.is_empty(), "{held:?}");
}

struct Daemon {
    process: Child,
    device: PathBuf,
    /// Kept open for what it prints at its end.
    _output: BufReader<ChildStdout>,
}

impl Daemon {
    fn start(directory: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "pressure::daemon"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let device = output
            .by_ref()
            .lines()
            .find_map(|line| {
                let line = line.unwrap();
                let line = line.strip_prefix("attached ")?;
                eprintln!("daemon {}: {line}", process.id());
                Some(PathBuf::from(line.split(' ').next().unwrap()))
            })
            .expect("the daemon attaches its device");
        Self { process, device, _output: output }
    }

    fn signal(&self, signal: &str) {
        run("kill", &[signal, &self.process.id().to_string()]);
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn stop(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

fn fio(group: &MemoryGroup, arguments: &[String]) -> Child {
    group
        .command("fio")
        .args(arguments)
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn arguments(words: &str, mount: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = words.split(' ').map(str::to_owned).collect();
    arguments.push(format!("--directory={}", mount.display()));
    arguments
}

/// Dirty pages many times the limit, and an fsync every so often.
fn buffered(mount: &Path) -> Vec<String> {
    arguments("--name=buffered --ioengine=psync --rw=randwrite --bs=4k --size=192m --fsync=64", mount)
}

fn direct(mount: &Path) -> Vec<String> {
    arguments(
        "--name=direct --ioengine=libaio --direct=1 --rw=randwrite --bs=16k --size=192m --iodepth=16",
        mount,
    )
}

fn wait(what: &str, mut process: Child, bound: Duration) -> (bool, String) {
    let start = Instant::now();
    while process.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < bound, "{what} still runs after {bound:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = process.wait_with_output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn mounted(directory: &Path, device: &Path) -> PathBuf {
    let mount = directory.join("mnt");
    fs::create_dir(&mount).unwrap();
    run("mkfs.ext4", &["-q", text(device)]);
    run("mount", &["-o", "discard", text(device), text(&mount)]);
    mount
}

fn assert_no_hang(watch: SleepWatch) -> Duration {
    let longest = watch.longest();
    eprintln!("longest uninterruptible sleep: {:?} of {}", longest.time, longest.task);
    assert!(longest.time < SLEEP_MAX, "{longest:?}");
    longest.time
}

#[test]
fn writers_short_of_memory_neither_hang_nor_lose_a_byte() {
    if !machine_can() {
        return;
    }
    let Some(group) = MemoryGroup::new("short", GROUP_BYTES) else { return };
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path());
    let mount = mounted(directory.path(), &daemon.device);
    let watch = SleepWatch::start();
    let start = Instant::now();
    let jobs = [("buffered", fio(&group, &buffered(&mount))), ("direct", fio(&group, &direct(&mount)))];
    for (name, job) in jobs {
        let (success, output) = wait(name, job, Duration::from_secs(300));
        assert!(success, "{name}: {output}");
    }
    eprintln!(
        "verified under pressure in {:?}; the limit was hit {} times",
        start.elapsed(),
        group.limit_hits()
    );
    assert!(group.limit_hits() > 0, "there was no pressure");
    assert_no_hang(watch);
    unmount(&mount, &daemon.device);
    run("fsck.ext4", &["-f", "-n", text(&daemon.device)]);
    daemon.stop();
}

/// Starts writers under pressure, lets `misfortune` happen to the daemon, and expects errors instead of a hang.
/// Answers with the longest uninterruptible sleep of any task meanwhile; `None` if the machine cannot do this.
fn killed_under_load(name: &str, misfortune: impl FnOnce(&Daemon)) -> Option<Duration> {
    if !machine_can() {
        return None;
    }
    let group = MemoryGroup::new(name, GROUP_BYTES)?;
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path());
    let device = daemon.device.clone();
    let mount = mounted(directory.path(), &device);
    let watch = SleepWatch::start();
    let forever = |mut arguments: Vec<String>| {
        arguments.extend(["--time_based".to_owned(), "--runtime=600".to_owned()]);
        fio(&group, &arguments)
    };
    let jobs = [("buffered", forever(buffered(&mount))), ("direct", forever(direct(&mount)))];
    std::thread::sleep(Duration::from_secs(4));
    misfortune(&daemon);
    daemon.kill();
    let killed = Instant::now();
    for (name, job) in jobs {
        let (success, output) = wait(name, job, BOUND);
        assert!(!success, "{name} claims success on a dead device: {output}");
        let told = output.contains("Input/output error") || output.contains("Read-only file system");
        assert!(told, "{name}: {output}");
        eprintln!("{name}: failed {:?} after the kill", killed.elapsed());
    }
    unmount(&mount, &device);
    eprintln!("unmounted {:?} after the kill", killed.elapsed());
    let direct = OpenOptions::new().read(true).open(&device).unwrap();
    assert!(direct.read_exact_at(&mut [0; 4096], 512 << 20).is_err(), "a dead device answers");
    drop(direct);

    // The next daemon clears the device and serves again.
    let next = Daemon::start(directory.path());
    eprintln!("attached again {:?} after the kill", killed.elapsed());
    run("mkfs.ext4", &["-q", text(&next.device)]);
    run("mount", &[text(&next.device), text(&mount)]);
    let (success, output) = wait("buffered", fio(&group, &buffered(&mount)), Duration::from_secs(300));
    assert!(success, "{output}");
    unmount(&mount, &next.device);
    next.stop();
    Some(assert_no_hang(watch))
}

#[test]
fn a_daemon_killed_under_load_means_errors_and_no_hang() {
    killed_under_load("killed", |_| {});
}

#[test]
fn a_daemon_that_stalls_and_is_killed_releases_everyone() {
    let stall = Duration::from_secs(5);
    let longest = killed_under_load("stalled", |daemon| {
        daemon.signal("-STOP");
        std::thread::sleep(stall);
    });
    // The users do sleep while it stalls: this shows that the watch would see a hang.
    assert!(longest.is_none_or(|longest| longest > stall / 2), "{longest:?}");
}

#[test]
fn a_device_still_mounted_when_the_next_daemon_starts_goes_when_it_is_unmounted() {
    if !machine_can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path());
    let device = daemon.device.clone();
    let mount = mounted(directory.path(), &device);
    daemon.kill();
    let next = Daemon::start(directory.path());
    assert_ne!(next.device, device, "a device in use was taken from its user");
    unmount(&mount, &device);
    let backing = Path::new("/sys/block").join(device.file_name().unwrap()).join("loop/backing_file");
    let start = Instant::now();
    while backing.exists() {
        assert!(start.elapsed() < BOUND, "{} is never cleared", device.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    next.stop();
}

#[test]
fn two_daemons_never_serve_one_directory() {
    if !machine_can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path());
    let error = LoopExports::start(directory.path(), Pool::new(), Limits::default()).err().unwrap();
    assert_eq!(error.kind(), parallax_block::ErrorKind::FailedPrecondition);
    let number = fs::read_to_string(directory.path().join("connection")).unwrap();
    assert!(error.to_string().contains(&format!("connections/{number}/abort")), "{error}");
    // The first one goes on.
    OpenOptions::new().read(true).open(&daemon.device).unwrap().read_exact_at(&mut [0; 4096], 0).unwrap();
    daemon.stop();
}

/// A process that waits for an answer of its own filesystem, and is killed, waits on: the kernel does not interrupt a
/// request that was already read, and the descriptors that would end the connection stay open as long as any
/// thread that shares them lives. The thread that attaches must not share them.
#[test]
fn a_daemon_killed_while_it_waits_for_itself_dies() {
    if !machine_can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "pressure::daemon"])
        .env(DIRECTORY, directory.path())
        .env(STUCK, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    assert!(output.by_ref().lines().any(|line| line.unwrap() == "stuck"));
    std::thread::sleep(Duration::from_millis(500));
    process.kill().unwrap();
    let start = Instant::now();
    while process.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < BOUND, "the daemon waits for itself forever");
        std::thread::sleep(Duration::from_millis(20));
    }
    Daemon::start(directory.path()).stop();
}

/// With a holder the connection does not end when the daemon is killed: the thread that waits for the daemon waits for
/// the next one. It must not keep that one out, and goes when it is answered.
#[test]
fn a_daemon_killed_while_it_waits_for_itself_dies_when_the_next_one_serves() {
    if !machine_can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("holder/holder.sock");
    let options = HolderOptions { socket: socket.clone(), patience: Duration::from_secs(60) };
    let holder = Holder::listen(&options).unwrap();
    // Ends with the test's process, as nothing else can.
    std::thread::spawn(move || holder.run());
    let start = |stuck: bool| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "--nocapture", "pressure::daemon"])
            .env(DIRECTORY, directory.path())
            .env(HOLDER, &socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if stuck {
            command.env(STUCK, "1");
        }
        let mut process = command.spawn().unwrap();
        let wanted = if stuck { "stuck" } else { "attached " };
        let mut output = BufReader::new(process.stdout.take().unwrap());
        assert!(output.by_ref().lines().any(|line| line.unwrap().starts_with(wanted)));
        (process, output)
    };
    let (mut stuck, _output) = start(true);
    std::thread::sleep(Duration::from_millis(500));
    stuck.kill().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(stuck.try_wait().unwrap().is_none(), "it did not wait: this test shows nothing");
    let (mut next, _next_output) = start(false);
    let begun = Instant::now();
    while stuck.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < BOUND, "the daemon waits for itself forever");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(next.stdin.take());
    assert!(next.wait().unwrap().success());
    // What it had attached is left with the holder.
    while let Err(error) = release(&socket) {
        assert!(begun.elapsed() < BOUND, "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let exports = LoopExports::start(directory.path(), Pool::new(), Limits::default()).unwrap();
    assert!(exports.shutdown().unwrap().is_empty());
    let name = fs::read_to_string(directory.path().join("instance")).unwrap();
    let left: Vec<_> =
        LoopDevice::configured().unwrap().into_iter().filter(|(_, file)| file.contains(&name)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whatever the daemon is doing when it is killed, it dies, nothing is left waiting, and the next one cleans up.
#[test]
fn a_daemon_killed_in_the_middle_of_changes_leaves_nothing_that_hangs() {
    if !machine_can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let watch = SleepWatch::start();
    for round in 0..12u64 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "pressure::restless_daemon"])
            .env(DIRECTORY, directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        assert!(output.by_ref().lines().any(|line| line.unwrap() == "restless"));
        std::thread::sleep(Duration::from_millis(150 + round * 37));
        process.kill().unwrap();
        let start = Instant::now();
        while process.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < BOUND, "round {round}: the daemon does not die");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Daemon::start(directory.path()).stop();
    let name = fs::read_to_string(directory.path().join("instance")).unwrap();
    let left: Vec<_> =
        LoopDevice::configured().unwrap().into_iter().filter(|(_, file)| file.contains(&name)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_no_hang(watch);
}

/// Not a test of its own: attaches, writes, grows and detaches without rest until it is killed.
#[test]
#[ignore = "a part of the other tests: a daemon that they kill"]
fn restless_daemon() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let exports = LoopExports::start(Path::new(&directory), Pool::new(), Limits::default()).unwrap();
    println!("\nrestless");
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let exports = &exports;
            scope.spawn(move || {
                for turn in 0.. {
                    let key = key(&format!("restless-{worker}-{}", turn % 3));
                    let device = MemoryDevice::new(Shape { capacity_max: 64 << 20, ..Shape::of(16 << 20) });
                    let attachment = exports.attach(key.clone(), device.clone(), false).unwrap();
                    // A process of its own, as users are: only those may wait for the daemon.
                    let target = format!("of={}", text(&attachment.path));
                    let mut user = Command::new("dd")
                        .args(["if=/dev/zero", &target, "bs=64k", "count=64", "conv=fsync"])
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap();
                    device.grow(64 << 20);
                    exports.resize(&key).unwrap();
                    user.wait().unwrap();
                    exports.detach(&key).unwrap();
                }
            });
        }
    });
}
