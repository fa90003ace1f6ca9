//! PostgreSQL as a load: clients commit numbered transactions, and each one that was acknowledged must be there.
//!
//! Client `c` commits 1, 2, 3, ... Each transaction writes a row with its number and adds it to the client's sum, so that
//! half a transaction shows. Pages have checksums, indexes are compared with their tables by amcheck.

use crate::load::{Kept, Plan};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest time of a start with recovery, or of an end.
const START_MAX: Duration = Duration::from_secs(60);
/// Small, so that a checkpoint comes soon and often.
const SETTINGS: [&str; 8] = [
    "listen_addresses=",
    "shared_buffers=16MB",
    "max_wal_size=8MB",
    "min_wal_size=2MB",
    "checkpoint_timeout=30s",
    "max_connections=24",
    "autovacuum_naptime=5s",
    "log_min_messages=panic",
];
const SCHEMA: &str =
    "create table ledger (client int, number int, padding text, primary key (client, number));
create table total (client int primary key, sum bigint not null);
create extension amcheck;
";

/// A server's files, and how to run programs on them.
struct Place {
    data: PathBuf,
    /// For its socket; not on the filesystem that is tried.
    run: tempfile::TempDir,
    programs: PathBuf,
    user: (u32, u32),
}

impl Place {
    fn new(mount: &Path) -> Result<Self> {
        let user = user("postgres")?;
        let run = tempfile::Builder::new().prefix("powercut-run-").tempdir()?;
        std::os::unix::fs::chown(run.path(), Some(user.0), Some(user.1))?;
        Ok(Self { data: mount.join("pg"), run, programs: programs()?, user })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.uid(self.user.0).gid(self.user.1).current_dir("/").stdin(Stdio::null());
        command.env_clear().env("PATH", &self.programs).env("LC_ALL", "C");
        command.env("PGHOST", self.run.path()).env("PGDATABASE", "postgres").env("PGUSER", "postgres");
        command
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{:?} ended with {}: {text}{words}", command.get_program(), output.status);
        }
        Ok(text)
    }

    fn query(&self, sql: &str) -> Result<String> {
        let mut command = self.command("psql");
        Ok(self.run(command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]))?.trim().to_owned())
    }

    /// Starts the server, which recovers if it has to.
    fn start(&self) -> Result<Server> {
        let log = fs::File::create(self.run.path().join("log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(self.run.path());
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("starting postgres")?;
        let mut server = Server(child);
        let end = Instant::now() + START_MAX;
        while self.query("select 1").is_err() {
            if let Some(status) = server.0.try_wait()? {
                let log = fs::read_to_string(self.run.path().join("log")).unwrap_or_default();
                bail!("postgres ended with {status}: {log}");
            }
            ensure!(Instant::now() < end, "postgres is not ready after {} s", START_MAX.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }
}

/// A running server; killed when it is dropped.
struct Server(Child);

impl Server {
    /// Ends it in order.
    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        let end = Instant::now() + START_MAX;
        loop {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "postgres ended with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < end, "postgres does not end within {} s", START_MAX.as_secs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Usually it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where Debian has the programs of the newest server.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let newest = folders.filter(|folder| folder.join("postgres").is_file()).max();
    newest.context("PostgreSQL is not installed")
}

/// Numbers of a user and its group.
fn user(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let fields: Vec<&str> = line.with_context(|| format!("there is no user {name}"))?.split(':').collect();
    Ok((fields[2].parse()?, fields[3].parse()?))
}

/// Makes an empty database on a mounted filesystem.
pub(crate) fn make(mount: &Path) -> Result<()> {
    let place = Place::new(mount)?;
    fs::create_dir(&place.data)?;
    fs::set_permissions(&place.data, fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(&place.data, Some(place.user.0), Some(place.user.1))?;
    let mut command = place.command("initdb");
    command.args(["--data-checksums", "--no-sync", "--wal-segsize=1", "--auth=trust", "-D"]).arg(&place.data);
    place.run(&mut command)?;
    let server = place.start()?;
    place.query(SCHEMA)?;
    server.stop()
}

/// Starts the server, lets a client for each worker commit its transactions, and ends the server. `promise` is told of
/// each that was acknowledged, and answers whether to go on.
pub(crate) fn run(
    plan: Plan,
    workers: u32,
    mount: &Path,
    promise: impl Fn(u32, u64) -> Result<bool> + Sync,
    done: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let place = Place::new(mount)?;
    let server = place.start()?;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..workers)
            .map(|client| {
                let (place, promise) = (&place, &promise);
                scope.spawn(move || {
                    commit(place, client, plan.operations, |number| promise(client, number))
                        .with_context(|| format!("client {client}"))
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a thread has panicked")))
    })?;
    done()?;
    server.stop()
}

/// One client: goes on where it was, until it has done so many or `promise` says that it is enough.
fn commit(place: &Place, client: u32, count: u64, promise: impl Fn(u64) -> Result<bool>) -> Result<()> {
    let last = format!("select coalesce(max(number), 0) from ledger where client = {client}");
    let last: u64 = place.query(&last)?.parse().context("reading the last number")?;
    let mut child = place
        .command("psql")
        .args(["-XqAt", "-v", "ON_ERROR_STOP=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // That it has lost its server, its caller learns from the answer that is missing.
        .stderr(Stdio::null())
        .spawn()
        .context("starting psql")?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("a process without pipes");
    };
    let mut output = BufReader::new(output);
    for number in last + 1..=last + count {
        let padding = number * 37 % 900;
        writeln!(
            input,
            "begin;\ninsert into ledger values ({client}, {number}, repeat('x', {padding}));\n\
             insert into total values ({client}, {number}) on conflict (client) do update set sum = total.sum + {number};\n\
             commit;\n\\echo {number}"
        )?;
        input.flush()?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line.trim() == number.to_string(), "transaction {number} was not acknowledged");
        if !promise(number)? {
            break;
        }
    }
    drop(input);
    ensure!(child.wait()?.success(), "psql has failed");
    Ok(())
}

/// What is wrong with a database after its machine or its disk was lost, when each client was told of so many commits.
pub(crate) fn verify(workers: u32, kept: &BTreeMap<u32, Kept>, mount: &Path) -> Result<Vec<String>> {
    let place = Place::new(mount)?;
    // A dead server's note names a process that may be anybody by now.
    match fs::remove_file(place.data.join("postmaster.pid")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let server = place.start()?;
    let mut wrong = Vec::new();
    for client in 0..workers {
        let Kept { surely, perhaps } = kept.get(&client).copied().unwrap_or_default();
        let found = place.query(&format!(
            "select count(*), coalesce(max(number), 0), coalesce(sum(number), 0), \
             coalesce((select sum from total where client = {client}), 0) from ledger where client = {client}"
        ))?;
        let numbers: Vec<u64> =
            found.split('|').map(str::parse).collect::<Result<_, _>>().with_context(|| found.clone())?;
        let [count, last, sum, total] = numbers[..] else { bail!("unexpected: {found}") };
        if last < surely || last > perhaps + 1 {
            wrong.push(format!(
                "client {client}: {surely} commits were acknowledged, the last one there is {last}"
            ));
        }
        if count != last || sum != last * (last + 1) / 2 || total != sum {
            wrong.push(format!(
                "client {client}: {count} rows up to {last}, their sum is {sum}, noted is {total}"
            ));
        }
    }
    let mut amcheck = place.command("pg_amcheck");
    if let Err(error) = place.run(amcheck.args(["--heapallindexed", "--rootdescend", "postgres"])) {
        wrong.push(format!("{error:#}"));
    }
    server.stop()?;
    let mut checksums = place.command("pg_checksums");
    if let Err(error) = place.run(checksums.args(["--check", "-D"]).arg(&place.data)) {
        wrong.push(format!("{error:#}"));
    }
    Ok(wrong)
}
