//! The configuration file.
//!
//! Invariants:
//! * Unknown keys, wrong units and impossible values are refused with the place: file, line and key.
//! * [`Config::load`] looks at the text alone; [`Config::check_machine`] looks at what the text names.
//! * It holds paths of keys, never keys, so that printing it gives nothing away.

mod value;

pub use value::{Size, Span};

use serde::Deserialize;
use std::{
    fmt,
    fs::File,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the daemon looks when no file is named.
pub const DEFAULT_PATH: &str = "/etc/parallax/parallaxd.yaml";

/// Where tails are when nothing else is said: memory that outlives the daemon, not the machine's boot.
pub const DEFAULT_TAILS: &str = "/dev/shm/parallax/tails";

/// A file that is larger is something else.
const BYTES_MAX: u64 = 1 << 20;

/// Where the daemon listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/parallax/parallaxd.sock";

/// A configuration that cannot be used; says what and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this node in the pool; the host's name when absent.
    #[serde(default)]
    pub node: Option<String>,
    /// The pool.
    pub pool: PoolConfig,
    /// Socket of the control plane, mode 0600.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Serves the manager by mutual TLS too.
    #[serde(default)]
    pub manager: Option<ManagerConfig>,
    /// What the kernel sees.
    #[serde(default)]
    pub exports: ExportsConfig,
    /// Threads that move data; each has its own ring.
    #[serde(default)]
    pub data_threads: Option<usize>,
    /// Directory in shared memory for what must outlive the process.
    #[serde(default = "default_tails")]
    pub tails: PathBuf,
    /// Metrics and health over HTTP, on loopback unless others are allowed.
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,
    /// What is logged, and how.
    #[serde(default)]
    pub log: LogConfig,
    /// Garbage collection after deletes.
    #[serde(default)]
    pub gc: GcConfig,
    /// Longest time from SIGTERM to exit.
    #[serde(default = "default_shutdown")]
    pub shutdown_within: Span,
}

/// The pool and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Block device or file.
    pub path: PathBuf,
    /// Formats it at the first start, if it is blank.
    #[serde(default)]
    pub create: Option<CreateConfig>,
    /// How I/O reaches the kernel.
    #[serde(default)]
    pub io: Io,
}

/// Formatting at the first start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateConfig {
    /// Creates the file with this many bytes if it does not exist.
    #[serde(default)]
    pub size: Option<Size>,
    /// Bytes of an extent; chosen by capacity when absent.
    #[serde(default)]
    pub extent: Option<Size>,
}

/// How I/O reaches the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// io_uring where it may be used, else threads.
    #[default]
    Auto,
    /// io_uring, or do not start.
    Uring,
    /// Threads.
    Threads,
}

/// The manager on the network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagerConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificates; without them nothing listens.
    pub tls: TlsConfig,
}

/// Files of the server's side of mutual TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who may have signed the certificates of clients.
    pub client_ca: PathBuf,
}

/// What the kernel sees.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportsConfig {
    /// Where the exports keep their files and sockets.
    pub directory: PathBuf,
    /// Volumes that may be attached at once.
    pub attachments_max: u32,
    /// Memory that requests in flight may hold together.
    pub memory: Size,
    /// Socket of the holder (`parallaxd supervise`) that keeps block devices alive while the daemon restarts. Without
    /// one they fail when the daemon ends.
    pub holder: Option<PathBuf>,
}

impl Default for ExportsConfig {
    fn default() -> Self {
        Self {
            directory: "/run/parallax/exports".into(),
            attachments_max: 128,
            memory: Size(64 << 20),
            holder: None,
        }
    }
}

/// Metrics and health.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address on loopback, or any with `allow_remote`.
    pub listen: SocketAddr,
    /// Lets others than this machine read: nobody is asked who they are.
    #[serde(default)]
    pub allow_remote: bool,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// A level, or levels by module: `info,parallax_store=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Garbage collection after deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcConfig {
    /// Whether the daemon starts it by itself.
    pub automatic: bool,
    /// Pause after the last delete before it starts, so that a wave of deletes costs one collection.
    pub quiet: Span,
    /// Shortest time between two collections while the pool has room.
    pub every: Span,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self { automatic: true, quiet: Span(Duration::from_secs(5)), every: Span(Duration::from_secs(60)) }
    }
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn default_tails() -> PathBuf {
    DEFAULT_TAILS.into()
}

fn default_shutdown() -> Span {
    Span(Duration::from_secs(25))
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
        read.map_err(|error| {
            ConfigError(format!("cannot read the configuration {}: {error}", path.display()))
        })?;
        if text.len() as u64 > BYTES_MAX {
            return Err(ConfigError(format!("{} is larger than any configuration can be", path.display())));
        }
        Self::parse(&text).map_err(|error| ConfigError(format!("{}: {error}", path.display())))
    }

    /// Checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_yaml::from_str(text).map_err(|error| ConfigError(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Rules that the types do not express.
    fn check(&self) -> Result<(), ConfigError> {
        let fail = |key: &str, why: &str| Err(ConfigError(format!("{key}: {why}")));
        for (key, path) in [
            ("pool.path", &self.pool.path),
            ("socket", &self.socket),
            ("tails", &self.tails),
            ("exports.directory", &self.exports.directory),
        ] {
            if !path.is_absolute() {
                return fail(key, &format!("'{}' must be an absolute path", path.display()));
            }
        }
        if let Some(holder) = self.exports.holder.as_ref().filter(|path| !path.is_absolute()) {
            return fail("exports.holder", &format!("'{}' must be an absolute path", holder.display()));
        }
        if let Some(threads) = self.data_threads
            && !(1..=64).contains(&threads)
        {
            return fail("data_threads", &format!("{threads} is not between 1 and 64"));
        }
        if !(1..=4096).contains(&self.exports.attachments_max) {
            return fail(
                "exports.attachments_max",
                &format!("{} is not between 1 and 4096", self.exports.attachments_max),
            );
        }
        if self.exports.memory.0 < 1 << 20 {
            return fail("exports.memory", "less than 1M cannot hold a request");
        }
        if let Some(metrics) = &self.metrics
            && !(metrics.allow_remote || metrics.listen.ip().is_loopback())
        {
            return fail(
                "metrics.listen",
                &format!(
                    "{} is not a loopback address, and anybody could read there; metrics.allow_remote: true allows it",
                    metrics.listen
                ),
            );
        }
        if let Some(extent) = self.pool.create.as_ref().and_then(|create| create.extent)
            && !(extent.0.is_power_of_two() && (256 << 10..=2 << 30).contains(&extent.0))
        {
            return fail("pool.create.extent", "must be a power of two from 256K to 2G");
        }
        if self.shutdown_within.0 < Duration::from_secs(1) {
            return fail("shutdown_within", "less than 1s leaves no time for a checkpoint");
        }
        Ok(())
    }

    /// Looks for what the configuration names: the pool's device and the files of TLS.
    pub fn check_machine(&self) -> Result<(), ConfigError> {
        let pool = &self.pool;
        let may_create_file = pool.create.as_ref().is_some_and(|create| create.size.is_some());
        match std::fs::metadata(&pool.path) {
            Ok(found) => check_kind(&pool.path, &found)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && may_create_file => {
                let parent = pool.path.parent().unwrap_or(Path::new("/"));
                if !parent.is_dir() {
                    return Err(ConfigError(format!(
                        "pool.path: the directory {} does not exist",
                        parent.display()
                    )));
                }
            }
            Err(error) => {
                return Err(ConfigError(format!(
                    "pool.path: the device {} cannot be used: {error}; check that it is attached to this node{}",
                    pool.path.display(),
                    if pool.create.is_some() { "; for a new file set pool.create.size" } else { "" }
                )));
            }
        }
        if let Some(manager) = &self.manager {
            for (key, path) in [
                ("certificate", &manager.tls.certificate),
                ("key", &manager.tls.key),
                ("client_ca", &manager.tls.client_ca),
            ] {
                if let Err(error) = File::open(path) {
                    return Err(ConfigError(format!(
                        "manager.tls.{key}: cannot read {}: {error}",
                        path.display()
                    )));
                }
            }
        }
        Ok(())
    }
}

fn check_kind(path: &Path, found: &std::fs::Metadata) -> Result<(), ConfigError> {
    use std::os::unix::fs::FileTypeExt;
    let kind = found.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "something else"
    };
    Err(ConfigError(format!(
        "pool.path: {} is {what}; a pool lives on a block device or in a file",
        path.display()
    )))
}

#[cfg(test)]
mod tests;
