//! `kill -9` of a real process that runs the store on a real file, again and again: the next one shows every write
//! that was acknowledged.
//!
//! This test is its own victim: it starts its own executable with [`VICTIM`] set. The victim says on its standard
//! output, one line each, which write it is about to send and which was acknowledged; a pipe outlives it.

use parallax_block::{BlockDevice, Buffer, Runtime, WriteOptions};
use parallax_device::{OpenOptions, Reactor, ReactorHandle, ReactorOptions, ShmTails, open_device};
use parallax_drill::model::Stamp;
use parallax_sim::Prng;
use parallax_store::{
    CreatePool, CreateVdi, Environment, Name, Pool, Severity, Source, Timestamp, Vdi, check,
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::DirBuilderExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const VICTIM: &str = "PARALLAX_DRILL_VICTIM";
const SECTORS: u64 = 4096;
const KILLS: u64 = 12;

fn environment(reactor: &ReactorHandle, directory: &Path) -> Environment {
    let runtime: Arc<dyn Runtime> = Arc::new(reactor.clone());
    let entropy = parking_lot::Mutex::new(Prng::new(clock()));
    Environment {
        runtime,
        tails: Arc::new(ShmTails::open(&directory.join("tails")).unwrap()),
        host: Name::new("node-1").unwrap(),
        entropy: Arc::new(move || entropy.lock().next_u128()),
    }
}

fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

fn start() -> ReactorHandle {
    Reactor::start("kill", ReactorOptions::default()).unwrap()
}

fn device(reactor: &ReactorHandle, directory: &Path) -> Arc<dyn BlockDevice> {
    let path = directory.join("pool");
    // The kernel may still finish what the victim had in flight, and the claim is its until then.
    for _ in 0..200 {
        match open_device(&path, reactor, OpenOptions::default()) {
            Ok(device) => return device,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    open_device(&path, reactor, OpenOptions::default()).unwrap()
}

async fn attach(pool: &Pool) -> Arc<Vdi> {
    pool.attach(pool.vdis()[0].id).await.unwrap()
}

/// Writes until it is killed.
fn be_the_victim(directory: &Path) {
    let reactor = start();
    let (device, environment) = (device(&reactor, directory), environment(&reactor, directory));
    let work = async move {
        let pool = Pool::open(device, environment).await.unwrap();
        let vdi = attach(&pool).await;
        let mut prng = Prng::new(clock());
        let mut out = std::io::stdout();
        for number in 0.. {
            let stamp = Stamp(clock() | 1);
            let length = prng.range(1..24);
            let first = prng.range(0..SECTORS - length);
            let mut buffer = Buffer::zeroed(length as usize * 512);
            for (index, sector) in buffer.chunks_mut(512).enumerate() {
                stamp.fill(first + index as u64, sector);
            }
            writeln!(out, "begin {} {first} {length}", stamp.0).unwrap();
            out.flush().unwrap();
            vdi.write(first * 512, buffer, WriteOptions { fua: number % 50 == 0 }).await.1.unwrap();
            writeln!(out, "done {}", stamp.0).unwrap();
            out.flush().unwrap();
            if number % 40 == 39 {
                vdi.flush().await.unwrap();
            }
        }
    };
    reactor.block_on(work).unwrap();
}

/// Runs a victim for a while, kills it, and tells what it had said.
fn kill_one(directory: &Path, after: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "acknowledged_writes_survive_kill_9", "--nocapture"])
        .env(VICTIM, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let reader =
        std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
    std::thread::sleep(after);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the victim ended by itself: {status}");
    reader.join().unwrap()
}

/// What every sector may hold, after what victims have said.
struct Expected(BTreeMap<u64, Vec<Stamp>>);

impl Expected {
    /// Learns from the lines of one victim: of its writes only the last may be unacknowledged.
    fn hear(&mut self, lines: &[String]) -> usize {
        let mut writes: Vec<(Stamp, std::ops::Range<u64>)> = Vec::new();
        let mut done = 0;
        for line in lines {
            // The test harness writes lines of its own, and may share one with the first of ours.
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| word.parse::<u64>().ok();
            if let Some(at) = words.iter().position(|word| *word == "begin")
                && let [stamp, first, length] = words[at + 1..]
                && let (Some(stamp), Some(first), Some(length)) =
                    (number(stamp), number(first), number(length))
            {
                writes.push((Stamp(stamp), first..first + length));
            } else if words.first() == Some(&"done") {
                done += 1;
            }
        }
        assert!(writes.len() - done <= 1, "{} begun, {done} done", writes.len());
        for (index, (stamp, sectors)) in writes.into_iter().enumerate() {
            for lba in sectors {
                let values = self.0.entry(lba).or_insert_with(|| vec![Stamp::ZERO]);
                if index < done {
                    values.clear();
                }
                values.push(stamp);
            }
        }
        done
    }

    /// Compares, and keeps what was found.
    fn see(&mut self, bytes: &[u8]) {
        for (lba, sector) in (0..).zip(bytes.chunks(512)) {
            let found =
                Stamp::read(lba, sector).unwrap_or_else(|garbage| panic!("sector {lba} holds {garbage}"));
            let allowed = self.0.entry(lba).or_insert_with(|| vec![Stamp::ZERO]);
            assert!(allowed.contains(&found), "sector {lba} holds {found}, which may be {allowed:?}");
            *allowed = vec![found];
        }
    }
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    if let Some(directory) = std::env::var_os(VICTIM) {
        be_the_victim(&PathBuf::from(directory));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::DirBuilder::new().mode(0o700).create(path.join("tails")).unwrap();
    std::fs::File::create(path.join("pool")).unwrap().set_len(64 << 20).unwrap();
    let reactor = start();
    {
        let (device, environment) = (device(&reactor, path), environment(&reactor, path));
        let create = async move {
            let options = CreatePool { extent_bytes: Some(256 << 10), force: false };
            Pool::create(device.clone(), options, &environment).await.unwrap();
            let pool = Pool::open(device, environment).await.unwrap();
            let request = CreateVdi {
                name: Name::new("volume").unwrap(),
                size: Some(SECTORS * 512),
                source: Source::Empty,
                logical_block: 512,
                attributes: BTreeMap::new(),
                at: Timestamp(1),
            };
            pool.create_vdi(request).await.unwrap();
            pool.close().await.unwrap();
        };
        reactor.block_on(create).unwrap();
    }
    let mut expected = Expected(BTreeMap::new());
    let mut prng = Prng::new(9);
    let mut acknowledged = 0;
    for _ in 0..KILLS {
        acknowledged += expected.hear(&kill_one(path, Duration::from_millis(prng.range(80..500))));
        let (device, environment) = (device(&reactor, path), environment(&reactor, path));
        let look = async move {
            let pool = Pool::open(device.clone(), environment).await.unwrap();
            let vdi = attach(&pool).await;
            let (buffer, result) = vdi.read(0, Buffer::zeroed(SECTORS as usize * 512)).await;
            result.unwrap();
            pool.close().await.unwrap();
            let findings = check(device, &|_, _| {}).await.unwrap();
            assert!(findings.iter().all(|finding| finding.severity != Severity::Damage), "{findings:?}");
            buffer.to_vec()
        };
        expected.see(&reactor.block_on(look).unwrap());
    }
    assert!(acknowledged > 100, "only {acknowledged} writes were acknowledged in {KILLS} lives");
}
