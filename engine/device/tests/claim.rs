//! What a restarted daemon relies on: once it has claimed the device, its killed predecessor writes no more.

use parallax_block::{Buffer, ErrorKind, Runtime, WriteOptions};
use parallax_device::{IoMode, OpenOptions, Reactor, ReactorHandle, ReactorOptions, open_device};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

const SIZE: usize = 8 << 20;
const BLOCK: usize = 64 << 10;
const PATH: &str = "PARALLAX_TEST_PATH";
const THREADS: &str = "PARALLAX_TEST_THREADS";

fn start(io: IoMode) -> ReactorHandle {
    Reactor::start("claim", ReactorOptions { io, ..ReactorOptions::default() }).unwrap()
}

/// Not a test by itself: the process that is killed. It writes all over the device, for ever.
#[test]
fn victim() {
    let Ok(path) = std::env::var(PATH) else { return };
    let io = if std::env::var_os(THREADS).is_some() { IoMode::Threads } else { IoMode::Uring };
    let reactor = start(io);
    let options = OpenOptions { io, ..OpenOptions::default() };
    let device = open_device(Path::new(&path), &reactor, options).unwrap();
    for lane in 0..16 {
        let device = Arc::clone(&device);
        reactor.spawn(async move {
            let mut buffer = Buffer::zeroed(BLOCK);
            for round in 0u64.. {
                buffer.fill((round + lane) as u8);
                let offset = (round * 16 + lane) % (SIZE / BLOCK) as u64 * BLOCK as u64;
                let (back, result) = device.write(offset, buffer, WriteOptions { fua: round % 8 == 0 }).await;
                result.unwrap();
                buffer = back;
                if round == 3 && lane == 0 {
                    println!("writing");
                }
            }
        });
    }
    loop {
        std::thread::park();
    }
}

/// Kills the process, whatever becomes of the test.
struct Victim(Child);

impl Victim {
    fn kill(&mut self) {
        self.0.kill().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may be dead already; either way it must be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills a writer and claims its device. Returns two readings of it, some time apart.
fn kill_and_claim(path: &Path, io: IoMode) -> (Buffer, Buffer) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "victim", "--nocapture"]).env(PATH, path).stdout(Stdio::piped());
    if io == IoMode::Threads {
        command.env(THREADS, "yes");
    }
    let mut victim = Victim(command.spawn().unwrap());
    let mut lines = BufReader::new(victim.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("writing")), "the victim has begun");
    let reactor = start(IoMode::Auto);
    let claim = || open_device(path, &reactor, OpenOptions::default());
    assert_eq!(claim().err().unwrap().kind(), ErrorKind::Busy);
    victim.kill();
    let device = loop {
        match claim() {
            Ok(device) => break device,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let timer = reactor.clone();
    let readings = reactor
        .block_on(async move {
            let (first, result) = device.read(0, Buffer::zeroed(SIZE)).await;
            result.unwrap();
            timer.sleep(Duration::from_millis(200)).await;
            let (second, result) = device.read(0, Buffer::zeroed(SIZE)).await;
            result.unwrap();
            (first, second)
        })
        .unwrap();
    reactor.shutdown();
    readings
}

#[test]
fn a_killed_owner_writes_no_more_once_its_device_is_claimed() {
    for io in [IoMode::Uring, IoMode::Threads] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
        for round in 0..5 {
            let (first, second) = kill_and_claim(&path, io);
            assert!(first.iter().any(|byte| *byte != 0), "it had written");
            assert!(
                first[..] == second[..],
                "{io:?}, round {round}: the device changed after it was claimed"
            );
        }
    }
}
