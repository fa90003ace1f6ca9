//! A daemon that ends while its block devices are in use: with a holder their users notice a pause, and nothing else.
//!
//! Needs root, /dev/fuse, the loop driver and Linux 6.9; without them the tests say so and pass.

use crate::world::{World, create, named, write};
use parallax_api::{client::Client, v1};
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process},
};
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
const KILLS: u32 = 20;
const KILLS_VARIABLE: &str = "PARALLAX_TEST_KILLS";

/// Long enough for everything that a test waits for on purpose; I/O that waits longer fails.
const PATIENCE: u32 = 60;

const BOUND: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;

fn machine_can() -> bool {
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

async fn attach(client: &Client, volume: &str) -> PathBuf {
    let target = Some(v1::attach_request::Target::VolumeName(volume.into()));
    let request = client.request(v1::AttachRequest { target, read_only: false });
    client.node().attach(request).await.unwrap().into_inner().device.into()
}

async fn detach(client: &Client, volume: &str) {
    let target = Some(v1::detach_request::Target::VolumeName(volume.into()));
    client.node().detach(client.request(v1::DetachRequest { target })).await.unwrap();
}

/// A world with a holder, a daemon and volumes that are attached.
async fn held(volumes: &[(&str, u64)]) -> (World, Client, Vec<PathBuf>) {
    held_in(World::new(), volumes).await
}

async fn held_in(mut world: World, volumes: &[(&str, u64)]) -> (World, Client, Vec<PathBuf>) {
    world.start_holder(PATIENCE);
    let client = world.start().await;
    let mut devices = Vec::new();
    for (name, size) in volumes {
        create(&client, name, *size).await;
        devices.push(attach(&client, name).await);
    }
    (world, client, devices)
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&text));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Opened as a database does it: around the page cache.
fn direct(device: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(device)
        .unwrap()
}

/// Reads one block around the page cache.
fn read_block(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut buffer = parallax_block::Buffer::zeroed(4096);
    file.read_exact_at(&mut buffer, offset).map(|()| buffer.to_vec())
}

fn write_block(file: &File, offset: u64, byte: u8) -> io::Result<()> {
    file.write_all_at(&parallax_block::Buffer::copy_of(&[byte; 4096]), offset)
}

fn fio(mount: &Path, name: &str, words: &str) -> Child {
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

fn finish(name: &str, mut process: Child) {
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
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Duration>>,
}

impl Reader {
    fn start(device: &Path) -> Self {
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

    fn longest(self) -> Duration {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap().expect("a read failed")
    }
}

/// The main promise: a daemon killed again and again under verified load. Nothing fails, nothing is lost, and the device
/// stays the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_under_verified_load_are_twenty_pauses() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("files", 96 * MIB), ("raw", 16 * MIB)]).await;
    let mount = world.path("mnt");
    std::fs::create_dir(&mount).unwrap();
    run("mkfs.ext4", &["-q", text(&devices[0])]);
    run("mount", &["-o", "discard", text(&devices[0]), text(&mount)]);
    let jobs = [
        ("buffered", "--ioengine=psync --rw=randwrite --bs=4k --size=12m --fsync=32 --verify_backlog=256"),
        (
            "direct",
            "--ioengine=libaio --direct=1 --rw=randwrite --bs=16k --size=24m --iodepth=16 --fsync=64 --verify_backlog=256",
        ),
    ];
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |kills| kills.parse().unwrap());
    // A kill and the next start take about two seconds.
    let runtime = kills * 9 / 4;
    let jobs: Vec<_> = jobs
        .iter()
        .map(|(name, words)| (*name, fio(&mount, name, &format!("{words} --runtime={runtime}"))))
        .collect();
    let mut pauses = Vec::new();
    for round in 0..kills {
        let reader = Reader::start(&devices[1]);
        tokio::time::sleep(Duration::from_millis(300 + u64::from(round % 20) * 37)).await;
        world.kill();
        client = world.start().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        pauses.push(reader.longest());
    }
    for (name, job) in jobs {
        finish(name, job);
    }
    eprintln!("{pauses:?}");
    pauses.sort();
    eprintln!("pauses: median {:?}, longest {:?}", pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    run("umount", &[text(&mount)]);
    run("e2fsck", &["-f", "-n", text(&devices[0])]);
    assert_eq!(attach(&client, "files").await, devices[0], "the device has changed");
    for volume in ["files", "raw"] {
        detach(&client, volume).await;
    }
    assert_clean(&client).await;
    assert!(world.stop().success(), "{}", world.log());
    assert!(!world.log().contains("requests of a loop device failed"), "{}", world.log());
}

/// Nothing damaged, and nothing that garbage collection would not give back.
async fn assert_clean(client: &Client) {
    let request = client.unbounded(v1::CheckPoolRequest {});
    let mut progress = client.manager().check_pool(request).await.unwrap().into_inner();
    let mut findings = Vec::new();
    while let Some(step) = progress.message().await.unwrap() {
        findings.extend(step.findings);
    }
    assert!(findings.iter().all(|finding| finding.severity != "damage"), "{findings:?}");
}

/// The smallest case: what was written stays, what is asked meanwhile waits, and the device is the same afterwards.
#[tokio::test]
async fn a_killed_daemon_is_a_pause() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    write_block(&file, 4096, 7).unwrap();
    world.kill();
    let waiting = thread::spawn({
        let file = file.try_clone().unwrap();
        move || write_block(&file, 8192, 8).and_then(|()| read_block(&file, 4096))
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "something answers although there is no daemon");
    let client = world.start().await;
    assert_eq!(waiting.join().unwrap().unwrap(), [7; 4096]);
    assert_eq!(read_block(&file, 8192).unwrap(), [8; 4096]);
    assert_eq!(attach(&client, "db").await, devices[0], "the device has changed");
    drop(file);
    detach(&client, "db").await;
    assert_clean(&client).await;
    assert!(world.stop().success(), "{}", world.log());
}

/// Ends the daemon as an upgrade does, under verified load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_load_is_a_pause_and_a_clean_stop() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("files", 96 * MIB), ("idle", 16 * MIB)]).await;
    let mount = world.path("mnt");
    std::fs::create_dir(&mount).unwrap();
    run("mkfs.ext4", &["-q", text(&devices[0])]);
    run("mount", &[text(&devices[0]), text(&mount)]);
    let words =
        "--ioengine=libaio --direct=1 --rw=randwrite --bs=8k --size=24m --iodepth=32 --verify_backlog=256";
    let job = fio(&mount, "upgrade", &format!("{words} --runtime=12"));
    let idle = direct(&devices[1]);
    write_block(&idle, 0, 3).unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        // A client that stays connected is waited for; upgrades are not tested for patience here.
        drop(client);
        let status = world.stop();
        assert!(status.success(), "{status}\n{}", world.log());
        client = world.start().await;
        assert_eq!(read_block(&idle, 0).unwrap(), [3; 4096]);
    }
    finish("upgrade", job);
    run("umount", &[text(&mount)]);
    run("e2fsck", &["-f", "-n", text(&devices[0])]);
    drop(idle);
    for volume in ["files", "idle"] {
        detach(&client, volume).await;
    }
    assert_clean(&client).await;
    assert!(!world.log().contains("requests of a loop device failed"), "{}", world.log());
}

/// A device that nobody uses at the moment of an upgrade belongs to somebody all the same, a pod about to start.
#[tokio::test]
async fn nothing_is_left_behind_when_everything_was_detached() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held(&[("db", 16 * MIB)]).await;
    drop(client);
    assert!(world.stop().success());
    let client = world.start().await;
    assert_eq!(attach(&client, "db").await, devices[0], "an unused device was taken away by an upgrade");
    detach(&client, "db").await;
    drop(client);
    assert!(world.stop().success());
    assert!(!world.log().contains("left to the next daemon\",\"exports\":0"), "{}", world.log());
    let backing = Path::new("/sys/block").join(devices[0].file_name().unwrap()).join("loop/backing_file");
    let name = std::fs::read_to_string(world.path("exports/instance")).unwrap();
    assert!(!std::fs::read_to_string(backing).unwrap_or_default().contains(&name));
}

/// Runs I/O that is expected to fail, and not to hang.
fn fails(file: &File) {
    let start = Instant::now();
    let outcome = write_block(file, 4096, 1).and_then(|()| read_block(file, 4096));
    let error = outcome.expect_err("a dead device answers");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(start.elapsed() < BOUND);
}

#[tokio::test]
async fn users_of_a_daemon_that_never_comes_back_get_errors_in_the_end() {
    if !machine_can() {
        return;
    }
    let mut world = World::new();
    world.start_holder(3);
    let client = world.start().await;
    create(&client, "db", 16 * MIB).await;
    let device = attach(&client, "db").await;
    let file = direct(&device);
    world.kill();
    let start = Instant::now();
    fails(&file);
    let waited = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    // The next daemon begins anew, beside what is still open.
    let client = world.start().await;
    let next = attach(&client, "db").await;
    assert_ne!(next, device);
    let again = direct(&next);
    write_block(&again, 0, 2).unwrap();
    drop((file, again));
    detach(&client, "db").await;
}

#[tokio::test]
async fn an_operator_ends_the_wait() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    assert!(!world.release().status.success(), "a daemon that serves was cut off");
    write_block(&file, 0, 1).unwrap();
    world.kill();
    assert!(world.release().status.success());
    let start = Instant::now();
    fails(&file);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_holder_that_is_killed_is_replaced_and_nobody_notices() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    write_block(&file, 0, 1).unwrap();
    world.kill_holder();
    write_block(&file, 4096, 2).unwrap();
    world.start_holder(PATIENCE);
    let end = Instant::now() + BOUND;
    while !world.log().contains("the block devices are held again") {
        assert!(Instant::now() < end, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.kill();
    let client = world.start().await;
    assert_eq!(read_block(&file, 4096).unwrap(), [2; 4096]);
    drop(file);
    detach(&client, "db").await;
}

#[tokio::test]
async fn with_holder_and_daemon_both_killed_users_get_errors_at_once() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    world.kill_holder();
    world.kill();
    let start = Instant::now();
    fails(&file);
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(file);
    world.start_holder(PATIENCE);
    let client = world.start().await;
    let device = attach(&client, "db").await;
    write_block(&direct(&device), 0, 1).unwrap();
    detach(&client, "db").await;
}

/// Writes that were acknowledged live in the tail until they are flushed. Without it those who wrote them must not go on
/// as if they were there, neither now nor after yet another restart; other volumes are not concerned.
#[tokio::test]
async fn a_volume_whose_tail_is_gone_fails_for_good_and_others_go_on() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held(&[("poor", 16 * MIB), ("rich", 16 * MIB)]).await;
    let poor_id = {
        let request = v1::GetVolumeRequest { volume: named("poor"), ..Default::default() };
        client.manager().get_volume(client.request(request)).await.unwrap().into_inner().id
    };
    let (poor, rich) = (direct(&devices[0]), direct(&devices[1]));
    write_block(&poor, 4096, 1).unwrap();
    write_block(&rich, 4096, 2).unwrap();
    world.kill();
    let of_poor = poor_id.replace('-', "");
    let mut removed = 0;
    for tail in std::fs::read_dir(world.tails()).unwrap() {
        let path = tail.unwrap().path();
        if path.to_str().unwrap().contains(&of_poor) {
            std::fs::remove_file(path).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 1);
    for restart in 0..2 {
        let client = world.start().await;
        fails(&poor);
        assert_eq!(read_block(&rich, 4096).unwrap(), [2; 4096], "restart {restart}");
        let request = v1::GetVolumeRequest { volume: named("poor"), ..Default::default() };
        let volume = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
        assert!(!volume.fault.is_empty(), "restart {restart}: nobody is told");
        drop(client);
        world.kill();
    }
    let client = world.start().await;
    drop(poor);
    detach(&client, "poor").await;
    let device = attach(&client, "poor").await;
    write_block(&direct(&device), 4096, 3).unwrap();
    drop(rich);
    for volume in ["poor", "rich"] {
        detach(&client, volume).await;
    }
}

/// Whoever has a device mounted remembers what was on it. If somebody else wrote to the volume meanwhile, going on
/// would mix two histories.
#[tokio::test]
async fn a_volume_that_somebody_else_opened_meanwhile_is_not_resumed() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB), ("other", 16 * MIB)]).await;
    let (db, other) = (direct(&devices[0]), direct(&devices[1]));
    write_block(&db, 0, 1).unwrap();
    write_block(&other, 0, 2).unwrap();
    world.kill();
    {
        let (_stranger, client) = world.stranger().await;
        write(&client, "db", &[(0, &[9; 4096])]).await.unwrap();
    }
    let client = world.start().await;
    fails(&db);
    assert_eq!(read_block(&other, 0).unwrap(), [2; 4096]);
    drop((db, other));
    for volume in ["db", "other"] {
        detach(&client, volume).await;
    }
}

/// A volume was deleted while no daemon was there. Detaching it was answered with success, as there was no such volume any
/// more, and its block device stayed until the machine was started again.
#[tokio::test]
async fn a_volume_that_was_deleted_meanwhile_can_be_detached() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held(&[("db", 16 * MIB)]).await;
    let list = |client: &Client| {
        let (client, request) = (client.clone(), client.request(v1::ListAttachmentsRequest {}));
        async move { client.node().list_attachments(request).await.unwrap().into_inner().attachments }
    };
    let id = list(&client).await.remove(0).volume_id;
    world.kill();
    {
        let (_stranger, client) = world.stranger().await;
        let request = client.request(v1::DeleteVolumeRequest { volume: named("db") });
        client.manager().delete_volume(request).await.unwrap();
    }
    let client = world.start().await;
    fails(&direct(&devices[0]));
    for _ in 0..2 {
        let target = Some(v1::detach_request::Target::VolumeId(id.clone()));
        client.node().detach(client.request(v1::DetachRequest { target })).await.unwrap();
        assert!(list(&client).await.is_empty());
    }
}

/// The volume was larger and the device was not: the daemon died between the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_while_it_grows_a_volume_shows_its_size_afterwards() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    let mut sizes = std::collections::BTreeSet::new();
    for round in 1..=10u64 {
        let size_bytes = (16 + 4 * round) * MIB;
        let growing = client.clone();
        let request = v1::ResizeVolumeRequest { volume: named("db"), size_bytes };
        let growth =
            tokio::spawn(
                async move { growing.manager().resize_volume(growing.request(request)).await.is_ok() },
            );
        tokio::time::sleep(Duration::from_millis(round * 4 - 3)).await;
        world.kill();
        let told = growth.await.unwrap();
        client = world.start().await;
        let request = v1::GetVolumeRequest { volume: named("db"), ..Default::default() };
        let volume = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
        assert!(!told || volume.size_bytes == size_bytes, "round {round}: a growth was forgotten");
        let shown = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap();
        assert_eq!(shown, volume.size_bytes, "round {round}");
        write_block(&file, shown - 4096, 1).unwrap();
        sizes.insert(shown);
    }
    eprintln!("{} different sizes were seen", sizes.len());
    drop(file);
    detach(&client, "db").await;
    assert_clean(&client).await;
}

/// Whatever the daemon is doing with its devices when it is killed, it dies, the next one serves, nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_in_the_middle_of_changes_is_followed_by_one_that_serves() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("steady", 16 * MIB), ("restless", 16 * MIB)]).await;
    let steady = direct(&devices[0]);
    detach(&client, "restless").await;
    for round in 0..12u8 {
        let changing = client.clone();
        let changes = tokio::spawn(async move {
            loop {
                let target = Some(v1::attach_request::Target::VolumeName("restless".into()));
                let request = changing.request(v1::AttachRequest { target, read_only: false });
                if changing.node().attach(request).await.is_err() {
                    return;
                }
                let target = Some(v1::detach_request::Target::VolumeName("restless".into()));
                let request = changing.request(v1::DetachRequest { target });
                if changing.node().detach(request).await.is_err() {
                    return;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(120 + u64::from(round) * 13)).await;
        world.kill();
        tokio::time::timeout(BOUND, changes).await.unwrap().unwrap();
        client = world.start().await;
        write_block(&steady, 4096, round).unwrap();
        assert_eq!(read_block(&steady, 4096).unwrap(), [round; 4096]);
        let device = attach(&client, "restless").await;
        let file = direct(&device);
        write_block(&file, 0, round).unwrap();
        assert_eq!(read_block(&file, 0).unwrap(), [round; 4096]);
        drop(file);
        detach(&client, "restless").await;
    }
    eprintln!("{} daemons waited for their successors", world.bury());
    drop(steady);
    detach(&client, "steady").await;
    assert_clean(&client).await;
}

/// Children of a process.
fn children(parent: u32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// In a container nobody may restart the daemon for minutes: whoever is above it does it at once.
#[tokio::test]
async fn a_daemon_that_is_killed_is_started_again_by_its_parent() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held_in(World::new().respawning(), &[("db", 16 * MIB)]).await;
    drop(client);
    let file = direct(&devices[0]);
    for round in 1..=5u8 {
        write_block(&file, 4096, round).unwrap();
        let [daemon] = children(world.pid())[..] else { panic!("one child was expected") };
        kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
        let start = Instant::now();
        assert_eq!(read_block(&file, 4096).unwrap(), [round; 4096]);
        eprintln!("read {:?} after the kill", start.elapsed());
    }
    let client = world.reconnect().await;
    drop(file);
    detach(&client, "db").await;
    drop(client);
    // Told to stop, it tells the daemon, and ends as that one ends.
    assert!(world.stop().success(), "{}", world.log());
}

#[tokio::test]
async fn a_daemon_that_ends_by_itself_is_not_started_again() {
    let world = World::new().respawning();
    std::fs::create_dir(world.pool()).unwrap();
    let (status, said) = world.fail_to_start();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.matches("pool lives on a block device or in a file").count(), 1, "{said}");
}

/// The first process of a container ignores what it does not handle. When a machine goes down, whoever waits for a daemon
/// that does not come back must not wait for the holder to be killed.
#[tokio::test]
async fn a_holder_that_is_told_to_end_ends_even_as_the_first_process_of_a_container() {
    if !machine_can() {
        return;
    }
    let mut world = World::new();
    world.start_holder(PATIENCE);
    let end = Instant::now() + Duration::from_secs(20);
    while !world.log().contains("holding block devices") {
        assert!(Instant::now() < end, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (around, _) = world.holder();
    let [holder] = children(around)[..] else { panic!("one child was expected") };
    kill_process(Pid::from_raw(holder).unwrap(), Signal::TERM).unwrap();
    while !world.holder().1 {
        assert!(Instant::now() < end, "the holder ignores SIGTERM");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
