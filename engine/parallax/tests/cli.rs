//! The real program, on pools in temporary files, without a daemon and with one.

use parallax_block::BLOCK_SIZE;
use parallax_format::{
    host::{self, HostSlot, Standing},
    superblock::Superblock,
};
use parallaxd::{config::Config, daemon};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A directory with a pool, and how to reach it.
struct World {
    directory: TempDir,
    by_daemon: Option<Daemon>,
}

/// A daemon on a thread of this process; it stops when this is dropped.
struct Daemon {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the daemon did not stop in order");
        }
    }
}

impl World {
    /// A pool that nobody holds.
    fn direct() -> Self {
        let world = Self { directory: TempDir::new().unwrap(), by_daemon: None };
        let made = world.program(&["pool", "create", &world.text("pool.img"), "--size", "256M"]);
        assert!(made.status.success(), "{}", said(&made));
        world
    }

    /// A pool that a daemon holds.
    fn by_daemon() -> Self {
        let directory = TempDir::new().unwrap();
        let text = format!(
            "node: test\npool: {{path: {0}/pool.img, create: {{size: 256M}}}}\nsocket: {0}/d.sock\n\
             exports: {{directory: {0}/exports}}\ntails: {0}/tails\ngc: {{automatic: false}}\n",
            directory.path().display()
        );
        let config = Config::parse(&text).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let run = daemon::run(config, false, async {
                let _ = stopped.await;
            });
            runtime.unwrap().block_on(run).unwrap();
        });
        let world = Self { directory, by_daemon: Some(Daemon { stop: Some(stop), thread: Some(thread) }) };
        let end = Instant::now() + Duration::from_secs(60);
        while !world.run(&["pool", "info"]).status.success() {
            assert!(Instant::now() < end, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The program, as it is.
    fn program(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
        command.args(arguments).current_dir(self.directory.path()).env_remove("PARALLAX_POOL");
        command
    }

    /// With the way to this world's pool.
    fn reaching<'a>(&self, arguments: &[&'a str]) -> Vec<&'a str> {
        let way = if self.by_daemon.is_some() { ["--socket", "d.sock"] } else { ["--pool", "pool.img"] };
        way.into_iter().chain(arguments.iter().copied()).collect()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.program(&self.reaching(arguments))
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.good(&arguments)).unwrap()
    }

    fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        said(&output)
    }

    /// A sparse image with something in it.
    fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut bytes = vec![0u8; 3 << 20];
        for (number, byte) in bytes[1 << 20..(1 << 20) + 100_000].iter_mut().enumerate() {
            *byte = (number % 253) as u8 + 1;
        }
        *bytes.last_mut().unwrap() = 9;
        fs::write(&path, &bytes).unwrap();
        path
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The life of a volume, told by the program; the same whichever way the pool is reached.
fn story(world: &World) {
    let image = world.image("a.img");
    world.good(&["import", "a.img", "db"]);
    assert!(world.bad(&["import", "a.img", "db"]).contains("there is a volume 'db' already"));
    assert_eq!(world.good(&["snapshot", "db", "--label", "first"]).trim(), "db@1");
    world.good(&["create", "copy", "--from", "db@1", "--size", "8M"]);
    world.good(&["create", "twin", "--from", "db"]);
    world.good(&["create", "blank", "--size", "4MiB"]);
    world.good(&["rename", "blank", "empty"]);

    let list = world.json(&["list", "--usage"]);
    let volumes = list["volumes"].as_array().unwrap();
    let named = |name: &str| volumes.iter().find(|volume| volume["name"] == name).unwrap();
    assert_eq!(volumes.len(), 4);
    assert_eq!(named("db")["size_bytes"], 3 << 20);
    assert_eq!(named("db")["filesystem"], "formatted");
    assert_eq!(named("copy")["size_bytes"], 8 << 20);
    assert_eq!(named("empty")["usage"]["mapped_bytes"], 0);
    let mapped = named("db")["usage"]["mapped_bytes"].as_u64().unwrap();
    assert!((100_000..200_000).contains(&mapped), "{mapped}");

    world.good(&["export", "db@1", "out.img"]);
    assert!(fs::read(world.path("out.img")).unwrap() == fs::read(&image).unwrap());
    assert!(world.bad(&["export", "db", "out.img"]).contains("--force"));
    world.good(&["export", "twin", "out.img", "--force"]);
    assert!(fs::read(world.path("out.img")).unwrap() == fs::read(&image).unwrap());

    world.good(&["snap-label", "db@1", "renamed"]);
    let snapshots = world.json(&["snap-list", "db"]);
    assert_eq!(snapshots["snapshots"][0]["label"], "renamed");
    assert_eq!(snapshots["snapshots"][0]["number"], 1);
    assert_eq!(world.json(&["diff", "db@1", "db@1"])["changed_bytes"], 0);
    assert_eq!(world.json(&["diff", "empty", "db@1"])["changed_bytes"], mapped);

    world.good(&["resize", "empty", "--size", "16M"]);
    assert!(world.bad(&["resize", "empty", "--size", "8M"]).contains("never shrink"));
    world.good(&["revert", "db", "db@1"]);
    let tree = world.good(&["tree"]);
    assert!(tree.contains("db  3 MiB\n") && tree.contains("● @1") && tree.contains("copy  8 MiB"), "{tree}");
    world.good(&["tree", "copy", "--svg", "tree.svg"]);
    let svg = fs::read_to_string(world.path("tree.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains(">copy<") && !svg.contains(">empty<"));

    assert!(world.bad(&["delete", "nobody"]).contains("parallax list"));
    assert!(world.bad(&["snap-delete", "db@7"]).contains("snap-list"));
    for volume in ["copy", "twin", "empty", "db"] {
        world.good(&["delete", volume]);
    }
    let left = world.json(&["list", "--all"]);
    let id = left["volumes"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        (left["volumes"].as_array().unwrap().len(), &left["volumes"][0]["deleted"]),
        (1, &Value::Bool(true))
    );
    world.good(&["snap-delete", &format!("{id}@1")]);
    let freed = world.json(&["gc"]);
    assert!(freed["freed_data_bytes"].as_u64().unwrap() >= mapped, "{freed}");
    let info = world.json(&["pool", "info"]);
    assert_eq!((&info["volumes"], &info["data_bytes"]), (&Value::from(0), &Value::from(0)));
    assert_eq!(world.json(&["check"])["clean"], true);
}

#[test]
fn the_life_of_a_volume_without_a_daemon() {
    story(&World::direct());
}

#[test]
fn the_life_of_a_volume_by_the_daemon() {
    story(&World::by_daemon());
}

#[test]
fn a_pool_is_never_made_over_something() {
    let world = World::direct();
    let again = world.program(&["pool", "create", "pool.img"]);
    assert!(!again.status.success());
    assert!(
        said(&again).contains("holds a Parallax pool") && said(&again).contains("--force"),
        "{}",
        said(&again)
    );
    let mut bytes = vec![0u8; 64 << 20];
    bytes[0..4].copy_from_slice(b"XFSB");
    fs::write(world.path("xfs.img"), &bytes).unwrap();
    let refused = world.program(&["pool", "create", "xfs.img"]);
    assert!(said(&refused).contains("XFS"), "{}", said(&refused));
    assert!(fs::read(world.path("xfs.img")).unwrap() == bytes);
    let forced = world.program(&["pool", "create", "xfs.img", "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
}

#[test]
fn a_pool_that_a_daemon_holds_is_not_opened_beside_it() {
    let world = World::by_daemon();
    let refused = world.program(&["--pool", "pool.img", "list"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("held by another process"), "{}", said(&refused));
}

#[test]
fn a_pool_that_another_machine_has_not_left_is_refused_until_that_one_is_evicted() {
    let world = World::direct();
    world.good(&["create", "db", "--size", "4M"]);
    other_machine_joins(&world.path("pool.img"));
    let refused = world.bad(&["list"]);
    assert!(refused.contains("host 'elsewhere' has joined this pool"), "{refused}");
    let hosts = world.json(&["inspect", "hosts"]);
    assert_eq!(hosts["hosts"][1]["name"], "elsewhere");
    assert_eq!(hosts["hosts"][1]["standing"], "joined");
    let unsure = world.program(&["pool", "evict", "pool.img", "elsewhere"]);
    assert!(said(&unsure).contains("--yes"), "{}", said(&unsure));
    world.bad(&["list"]);
    let unknown = world.program(&["pool", "evict", "pool.img", "nobody", "--yes"]);
    assert!(said(&unknown).contains("no host 'nobody'"), "{}", said(&unknown));
    let evicted = world.program(&["pool", "evict", "pool.img", "elsewhere", "--yes"]);
    assert!(evicted.status.success(), "{}", said(&evicted));
    assert!(world.good(&["list"]).contains("db"));
    // Under that machine's name, as after a reboot of this one.
    other_machine_joins(&world.path("pool.img"));
    world.bad(&["list"]);
    assert!(world.good(&["--host", "elsewhere", "list"]).contains("db"));
    world.good(&["check"]);
}

/// Writes the slot that a machine of another boot would.
fn other_machine_joins(pool: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(pool).unwrap();
    let mut block = vec![0; BLOCK_SIZE];
    file.read_exact_at(&mut block, 0).unwrap();
    let (superblock, _) = Superblock::decode(&block, 0).unwrap();
    let state = HostSlot {
        name: "elsewhere".into(),
        incarnation: 1000,
        boot_id: 1,
        renewed_ms: 0,
        standing: Standing::Joined,
    };
    let at = superblock.host_group(1) + host::SLOT;
    file.write_all_at(&state.encode(at, 1, superblock.salt), at * BLOCK_SIZE as u64).unwrap();
}

#[test]
fn without_a_daemon_the_error_says_how_to_go_on() {
    let world = World { directory: TempDir::new().unwrap(), by_daemon: None };
    let refused = world.program(&["--socket", "/nonexistent/d.sock", "list"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("name a pool with --pool"), "{}", said(&refused));
    let refused = world.program(&["--socket", "/nonexistent/d.sock", "list", "--json"]);
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().contains("no daemon"));
}

#[test]
fn a_scrub_reads_everything_and_names_what_rotted_under_a_daemon() {
    let world = World::by_daemon();
    let image = world.path("data.img");
    fs::write(&image, vec![7u8; 8 << 20]).unwrap();
    world.good(&["import", &world.text("data.img"), "db"]);
    world.good(&["snapshot", "db"]);
    world.good(&["create", "other", "--size", "64M"]);
    let report = world.json(&["scrub", "--rate", "max"]);
    assert_eq!(report["clean"], true, "{report}");
    assert!(report["bytes_read"].as_u64().unwrap() >= 8 << 20, "{report}");
    assert!(report["nodes_verified"].as_u64().unwrap() >= 4, "{report}");
    assert!(world.good(&["scrub"]).contains("clean: "));
    let refused = world.run(&["scrub", "--rate", "0"]);
    assert!(said(&refused).contains("more than nothing"), "{}", said(&refused));

    // A node is the only block without a name that is neither zero nor the image's.
    let bytes = fs::read(world.path("pool.img")).unwrap();
    let plain = |block: &[u8]| block.iter().all(|byte| *byte == block[0]) || block[..4] == *b"PLX1";
    let file = fs::OpenOptions::new().write(true).open(world.path("pool.img")).unwrap();
    for (number, block) in bytes.chunks(BLOCK_SIZE).enumerate().filter(|(_, block)| !plain(block)) {
        file.write_all_at(&[block[9] ^ 4], (number * BLOCK_SIZE + 9) as u64).unwrap();
    }
    let scrubbed = world.run(&["scrub", "--json"]);
    assert_eq!(scrubbed.status.code(), Some(1), "{}", said(&scrubbed));
    let report: Value = serde_json::from_slice(&scrubbed.stdout).unwrap();
    let found = &report["findings"][0];
    assert_eq!((&found["kind"], &found["volumes"][0]), (&"node".into(), &"db".into()), "{report}");
    assert!(found["detail"].as_str().unwrap().contains("bytes "), "{report}");
}

#[test]
fn a_check_that_cannot_run_is_not_damage() {
    let world = World { directory: TempDir::new().unwrap(), by_daemon: None };
    let missing = world.program(&["--pool", "missing.img", "check"]);
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
    for command in ["check", "scrub"] {
        let nobody = world.program(&["--socket", "/nonexistent/d.sock", command]);
        assert_eq!(nobody.status.code(), Some(2), "{}", said(&nobody));
    }
}

#[test]
fn inspect_decodes_what_verifies_and_names_what_does_not() {
    let world = World::direct();
    world.image("a.img");
    world.good(&["import", "a.img", "db"]);
    world.good(&["snapshot", "db"]);
    let superblock = world.json(&["inspect", "superblock"]);
    let uuid = world.json(&["pool", "info"])["uuid"].clone();
    for copy in 0..2 {
        assert_eq!(superblock["superblocks"][copy]["uuid"], uuid);
    }
    let root = world.json(&["inspect", "root", "db"]);
    let slots = root["grants"][0]["slots"].as_array().unwrap();
    assert!(slots.iter().any(|slot| slot["snapshots"] == 1 && slot["released"] == true), "{root}");
    let radix = world.json(&["inspect", "radix", "db", "--depth", "4"]);
    let nodes = radix["nodes"].as_array().unwrap();
    let blocks: u64 =
        nodes.iter().filter(|node| node["level"] == 0).map(|node| node["entries"].as_u64().unwrap()).sum();
    let mapped = world.json(&["list", "--usage"])["volumes"][0]["usage"]["mapped_bytes"].as_u64().unwrap();
    assert_eq!(blocks * 4096, mapped, "{radix}");
    assert!(world.json(&["inspect", "journal", "db"])["blocks"].is_array());
    assert_eq!(world.json(&["inspect", "extent", "1"])["claimed"], true);
    assert!(world.good(&["inspect", "block", "0"]).contains("0x0000"));

    // One superblock is lost; the pool still tells the rest.
    let path = world.path("pool.img");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let superblock = world.json(&["inspect", "superblock"]);
    assert!(superblock["superblocks"][0]["error"].as_str().unwrap().contains("checksum"));
    assert_eq!(superblock["superblocks"][1]["uuid"], uuid);
    assert_eq!(world.json(&["inspect", "root", "db"]), root);
}

#[test]
fn damage_is_found_named_and_has_its_exit_code() {
    let world = World::direct();
    world.image("a.img");
    world.good(&["import", "a.img", "db"]);
    let radix = world.json(&["inspect", "radix", "db", "--depth", "4"]);
    let leaf = radix["nodes"].as_array().unwrap().iter().find(|node| node["level"] == 0).unwrap();
    let address = leaf["link"]["address"].as_str().unwrap();
    let (extent, block) = address.split_once(':').unwrap();
    let first = world.json(&["inspect", "extent", extent])["first_block"].as_u64().unwrap();
    let offset = usize::try_from((first + block.parse::<u64>().unwrap()) * 4096).unwrap();
    let path = world.path("pool.img");
    let mut bytes = fs::read(&path).unwrap();
    bytes[offset + 9] ^= 4;
    fs::write(&path, &bytes).unwrap();

    let checked = world.run(&["check", "--json"]);
    assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(report["clean"], false);
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["severity"] == "damage").unwrap();
    assert!(found["volumes"].as_array().unwrap().contains(&Value::from("db")), "{report}");
    // A lost node is beyond repair, a lost superblock is not.
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let repaired = world.run(&["check", "--repair", "--json"]);
    assert_eq!(repaired.status.code(), Some(1), "{}", said(&repaired));
    let report: Value = serde_json::from_slice(&repaired.stdout).unwrap();
    assert!(report["mended"][0].as_str().unwrap().contains("superblock at block #0"), "{report}");
    assert!(
        report["findings"].as_array().unwrap().iter().all(|left| left["kind"] != "superblock-copy"),
        "{report}"
    );
    let radix = world.json(&["inspect", "radix", "db", "--depth", "4"]);
    assert!(radix["nodes"].as_array().unwrap().iter().any(|node| node["error"].is_string()), "{radix}");
}

#[test]
fn serving_lasts_until_it_is_interrupted() {
    let world = World::direct();
    world.good(&["create", "db", "--size", "16M"]);
    let mut child = world
        .command(&world.reaching(&["serve", "db", "--nbd", "nbd.sock"]))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), format!("nbd+unix:///?socket={}", real(&world.path("nbd.sock")).display()));
    if let Ok(info) = Command::new("nbdinfo").arg("--size").arg(line.trim()).output() {
        assert_eq!(String::from_utf8_lossy(&info.stdout).trim(), (16 << 20).to_string());
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!world.path("nbd.sock").exists());
    world.good(&["delete", "db"]);
}

/// The path as the program sees it from its working directory.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path.parent().unwrap()).unwrap().join(path.file_name().unwrap())
}

#[test]
fn completions_are_shell() {
    let world = World { directory: TempDir::new().unwrap(), by_daemon: None };
    let script = world.program(&["completions", "bash"]).stdout;
    fs::write(world.path("parallax.bash"), &script).unwrap();
    let parsed = Command::new("bash").arg("-n").arg(world.path("parallax.bash")).status().unwrap();
    assert!(parsed.success());
    assert!(String::from_utf8(script).unwrap().contains("snap-delete"));
}

#[test]
fn a_short_bench_measures_every_row() {
    let world = World { directory: TempDir::new().unwrap(), by_daemon: None };
    let output = world.program(&[
        "bench",
        "--json",
        "--size",
        "16M",
        "--seconds",
        "0.1",
        "--repeats",
        "1",
        "--snapshots",
        "1200",
        "--directory",
        ".",
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() >= 10 && rows.iter().all(|row| row["ratio"].as_f64().unwrap() > 0.0), "{report}");
    assert_eq!(fs::read_dir(world.directory.path()).unwrap().count(), 0, "scratch files stay behind");
}

/// A volume's first mkfs had been interrupted, so its owner attached it by hand and made a filesystem. The record still said
/// that formatting was under way: the next pod that used the volume had it formatted again.
#[test]
fn a_half_formatted_volume_that_is_attached_for_writing_counts_as_formatted() {
    use parallax_api::{
        client::{Client, Endpoint},
        v1::{FilesystemState, GetVolumeRequest, SetFilesystemStateRequest, VolumeRef, volume_ref::By},
    };
    let world = World::by_daemon();
    world.good(&["create", "db", "--size", "16M"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(&Endpoint::Unix(world.path("d.sock")))).unwrap();
    let volume = || Some(VolumeRef { by: Some(By::Name("db".into())) });
    let request = client.request(SetFilesystemStateRequest {
        volume: volume(),
        expected: FilesystemState::Blank.into(),
        next: FilesystemState::Formatting.into(),
    });
    runtime.block_on(client.manager().set_filesystem_state(request)).unwrap();
    for (arguments, state) in [
        (&["attach", "db", "--read-only"][..], FilesystemState::Formatting),
        (&["attach", "db"], FilesystemState::Formatted),
    ] {
        // Where there are no block devices it fails, and has said what it was about to do all the same.
        let _ = world.run(arguments);
        world.good(&["detach", "db"]);
        let request = client.request(GetVolumeRequest { volume: volume(), with_usage: false });
        let found = runtime.block_on(client.manager().get_volume(request)).unwrap().into_inner();
        assert_eq!(found.filesystem_state(), state, "{arguments:?}");
    }
}
