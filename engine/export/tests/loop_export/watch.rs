//! Watches every task of the machine for uninterruptible sleep, and limits the memory of a group of processes.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const SAMPLE: Duration = Duration::from_millis(200);

/// One uninterruptible sleep: the task and its count of voluntary context switches, which a new sleep would raise.
type Sleep = (String, u64);

/// A sleep of a task, as long as it was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Longest {
    pub(crate) task: String,
    pub(crate) time: Duration,
}

/// Samples the state of all tasks until it is asked for the longest uninterruptible sleep.
pub(crate) struct SleepWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Longest>,
}

impl SleepWatch {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut since: HashMap<Sleep, Instant> = HashMap::new();
                let mut longest = Longest::default();
                while !stop.load(SeqCst) {
                    let now = Instant::now();
                    let sleeping = sleeping_tasks();
                    since.retain(|sleep, _| sleeping.contains_key(sleep));
                    for (sleep, name) in sleeping {
                        let time = now - *since.entry(sleep.clone()).or_insert(now);
                        if time > longest.time {
                            longest = Longest { task: format!("{name} ({})", sleep.0), time };
                        }
                    }
                    thread::sleep(SAMPLE);
                }
                longest
            }
        });
        Self { stop, thread }
    }

    pub(crate) fn longest(self) -> Longest {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

fn numbered(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn sleeping_tasks() -> HashMap<Sleep, String> {
    let mut found = HashMap::new();
    for process in numbered(Path::new("/proc")) {
        for task in numbered(&process.join("task")) {
            let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
            let field = |name: &str| {
                status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
            };
            if field("State:").starts_with('D') {
                let switches = field("voluntary_ctxt_switches:").parse().unwrap_or(0);
                found.insert((task.display().to_string(), switches), field("Name:").to_owned());
            }
        }
    }
    found
}

/// A control group with a memory limit, of either version.
pub(crate) struct MemoryGroup {
    directory: PathBuf,
}

impl MemoryGroup {
    /// Makes one; `None`, with the reason printed, where that is not permitted.
    pub(crate) fn new(name: &str, bytes_max: u64) -> Option<Self> {
        let name = format!("parallax-{name}-{}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let directory = Path::new(root).join(&name);
            if fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Self { directory };
            if fs::write(group.directory.join(limit), bytes_max.to_string()).is_ok() {
                return Some(group);
            }
        }
        eprintln!("SKIPPED: no memory control group can be made here");
        None
    }

    /// A command whose process is inside from its first instruction on.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        let procs = self.directory.join("cgroup.procs");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\"", procs.to_str().unwrap(), program]);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// How often an allocation ran into the limit, if the group tells.
    pub(crate) fn limit_hits(&self) -> u64 {
        if let Ok(count) = fs::read_to_string(self.directory.join("memory.failcnt")) {
            return count.trim().parse().unwrap();
        }
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        events.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("{} is left behind: {error}", self.directory.display());
        }
    }
}
