//! The command line, as clap has it. Help texts here become the man pages.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use parallax_api::units::ByteSize;
use parallaxd::config::{DEFAULT_SOCKET, DEFAULT_TAILS};
use std::path::PathBuf;
use std::time::Duration;

/// Instant snapshots and clones of block volumes on one shared device.
///
/// Commands go to the daemon of this node, or, with --pool, work on a pool that no daemon holds.
/// Sizes are written as 512M, 10G or 1.5TiB; K, M, G, T are powers of 1024.
/// A snapshot is written as VOLUME@NUMBER, such as db@3, or by its full id.
#[derive(Debug, Parser)]
#[command(name = "parallax", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) place: Place,

    /// Prints JSON instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the pool is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Socket of the daemon.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = DEFAULT_SOCKET,
        env = "PARALLAX_SOCKET",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) socket: PathBuf,

    /// Device or file of a pool that nobody holds; works without a daemon.
    #[arg(long, global = true, value_name = "PATH", env = "PARALLAX_POOL", value_hint = ValueHint::AnyPath)]
    pub(crate) pool: Option<PathBuf>,

    /// Where the daemon keeps tails, the writes that a killed daemon had acknowledged; with --pool.
    ///
    /// Without the right directory they are not found, and a volume that was in use would lose them.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = DEFAULT_TAILS,
        env = "PARALLAX_TAILS",
        value_hint = ValueHint::DirPath
    )]
    pub(crate) tails: PathBuf,

    /// Name of this machine in the pool, with --pool; its host name when left out.
    #[arg(long, global = true, value_name = "NAME", env = "PARALLAX_HOST")]
    pub(crate) host: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a pool, or shows its shape and fill.
    #[command(subcommand)]
    Pool(PoolCommand),

    /// Creates a volume, empty or as a clone.
    Create {
        /// Name of the new volume.
        name: String,
        /// Its size; a clone has its source's when this is left out.
        #[arg(long, required_unless_present = "from")]
        size: Option<ByteSize>,
        /// Snapshot (db@3) or volume to clone.
        #[arg(long, value_name = "SNAPSHOT|VOLUME")]
        from: Option<String>,
        /// Bytes of the smallest request: 512 or 4096.
        #[arg(long, value_name = "BYTES")]
        block: Option<u32>,
    },

    /// Deletes a volume; its snapshots stay until they are deleted themselves.
    Delete {
        /// Name or id.
        volume: String,
    },

    /// Lists volumes.
    List {
        /// Deleted volumes too, of which snapshots are left.
        #[arg(long)]
        all: bool,
        /// Counts the space of each, which reads its map.
        #[arg(long)]
        usage: bool,
    },

    /// Gives a volume another name.
    Rename {
        /// Name or id.
        volume: String,
        /// The new name.
        name: String,
    },

    /// Takes a snapshot; of several volumes, at one instant.
    Snapshot {
        /// Names or ids.
        #[arg(required = true)]
        volumes: Vec<String>,
        /// Text for people, up to 64 bytes.
        #[arg(long, default_value = "")]
        label: String,
        /// Name that makes asking again harmless.
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
    },

    /// Lists the snapshots of a volume, or of all.
    SnapList {
        /// Name or id.
        volume: Option<String>,
        /// Counts the bytes that only this snapshot holds.
        #[arg(long)]
        usage: bool,
    },

    /// Replaces the label of a snapshot.
    SnapLabel {
        /// Such as db@3.
        snapshot: String,
        /// Up to 64 bytes.
        text: String,
    },

    /// Deletes a snapshot.
    SnapDelete {
        /// Such as db@3.
        snapshot: String,
    },

    /// Draws volumes, snapshots and clones as a forest.
    Tree {
        /// Only what this volume is part of.
        volume: Option<String>,
        /// Draws into this file instead.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        svg: Option<PathBuf>,
    },

    /// Lists what differs between two snapshots of one lineage.
    Diff {
        /// The older one; 'empty' lists all that the second maps.
        base: String,
        /// The newer one.
        target: String,
    },

    /// Grows a volume, in use or not.
    Resize {
        /// Name or id.
        volume: String,
        /// The new size.
        #[arg(long)]
        size: ByteSize,
    },

    /// Takes a volume back to one of its snapshots; it must not be attached.
    Revert {
        /// Name or id.
        volume: String,
        /// Such as db@3.
        snapshot: String,
    },

    /// Makes a volume out of a disk image.
    Import {
        /// Raw or qcow2.
        #[arg(value_hint = ValueHint::FilePath)]
        image: PathBuf,
        /// Name of the new volume.
        name: String,
        /// What the image is; looks for itself when left out.
        #[arg(long, value_enum, default_value_t = ImageFormat::Auto)]
        format: ImageFormat,
        /// A size larger than the image's.
        #[arg(long)]
        size: Option<ByteSize>,
    },

    /// Writes a volume or snapshot into a sparse raw file. A volume in use is exported as it is at this moment.
    Export {
        /// Volume, or snapshot such as db@3.
        source: String,
        /// The file.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Replaces a file that exists.
        #[arg(long)]
        force: bool,
    },

    /// Serves a volume or snapshot by NBD until interrupted.
    Serve {
        /// Volume, or snapshot such as db@3.
        source: String,
        /// Unix socket to listen on.
        #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
        nbd: PathBuf,
        /// Refuses writing.
        #[arg(long)]
        read_only: bool,
    },

    /// Gives a volume or snapshot a block device on this machine and prints its path.
    Attach {
        /// Volume, or snapshot such as db@3.
        source: String,
        /// Refuses writing.
        #[arg(long)]
        read_only: bool,
    },

    /// Takes the block device away.
    Detach {
        /// Volume, or snapshot such as db@3.
        source: String,
    },

    /// Lists block devices on this machine.
    Attachments,

    /// Brings back the space that nothing uses any more.
    Gc,

    /// Verifies the whole pool. Exit code: 0 clean, 1 damage found, 2 could not run. Never writes without --repair.
    Check {
        /// Mends what can be proved to be safe, and verifies again. Wants --pool: nobody else may hold the pool.
        ///
        /// A lost superblock, header or root slot is written from its twin, blocks in use are marked, space that
        /// nothing reaches is freed. Lost nodes, journals and data are reported and left as they are.
        #[arg(long)]
        repair: bool,
    },

    /// Reads everything that is in use, also while volumes are busy, and names the volumes and bytes that cannot be
    /// read. Never writes. Exit code: 0 clean, 1 damage found, 2 could not run.
    Scrub {
        /// Reads at most so much a second, such as 64M; `max` reads as fast as the device does.
        #[arg(long, default_value = "64M", value_parser = rate)]
        rate: Rate,
    },

    /// Shows what is on a device, byte by byte where needed; never writes. Wants --pool.
    #[command(subcommand)]
    Inspect(InspectCommand),

    /// Measures the store against the bare file it lies on, in a scratch file of its own.
    Bench(BenchArguments),

    /// Prints completions for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },

    /// Writes a man page for every command.
    Man {
        /// Where to.
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

/// Pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Formats a device or a file as a pool.
    Create {
        /// Block device or file.
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// Creates the file with this size.
        #[arg(long)]
        size: Option<ByteSize>,
        /// Size of an extent, a power of two; fits the capacity when left out.
        #[arg(long)]
        extent: Option<ByteSize>,
        /// Formats over whatever is there. It is gone then.
        #[arg(long)]
        force: bool,
    },
    /// Shows shape and fill.
    Info,
    /// Declares that a host will not come back, so that this machine may open the pool.
    ///
    /// While a host has joined a pool and not left it, no other machine opens it: two would destroy it. A machine that
    /// died cannot leave. Evict it only if it is switched off, or cut off from the device, and stays so.
    Evict {
        /// Block device or file.
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// Name of the host; `parallax --pool PATH inspect hosts` shows them.
        name: String,
        /// Says that the host cannot reach the device any more.
        #[arg(long)]
        yes: bool,
    },
}

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum InspectCommand {
    /// Both superblocks.
    Superblock,
    /// Hosts that are, or were, in the pool.
    Hosts,
    /// One extent: what owns it and what it holds.
    Extent {
        /// Its number.
        number: u32,
    },
    /// Root slots of a volume.
    Root {
        /// Name or id.
        volume: String,
    },
    /// Nodes of a volume's tree.
    Radix {
        /// Name or id.
        volume: String,
        /// Levels to go down from the root.
        #[arg(long, default_value_t = 1)]
        depth: u8,
    },
    /// The journal of a volume.
    Journal {
        /// Name or id.
        volume: String,
    },
    /// A block as hexadecimal bytes.
    Block {
        /// Byte offset on the device.
        offset: u64,
    },
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// Looks at the first bytes.
    Auto,
    /// The bytes themselves; holes of a sparse file stay holes.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// Measuring.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    pub(crate) part: Option<BenchPart>,
    /// Directory for the scratch files; on the disk that is to be measured.
    #[arg(long, default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    /// Bytes that the workloads work on.
    #[arg(long, default_value = "1G")]
    pub(crate) size: ByteSize,
    /// Seconds of each workload.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// How often each is run; the median is shown.
    #[arg(long, default_value_t = 3)]
    pub(crate) repeats: u32,
    /// Snapshots in the largest pool whose opening is timed.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) snapshots: u32,
}

/// Bytes a second; 0 is as fast as it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate(pub(crate) u64);

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate(0));
    }
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("more than nothing, or max".to_owned()),
        Ok(ByteSize(bytes)) => Ok(Rate(bytes)),
        Err(error) => Err(error.to_string()),
    }
}

/// A time as a number of seconds, fractions too.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("more than zero seconds".to_owned()),
    }
}

/// Measuring what exists.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BenchPart {
    /// Takes many snapshots of a volume, one after the other, and tells how long each took. They stay.
    Snapshots {
        /// Name or id.
        volume: String,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        count: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_manual_parses() {
        for line in [
            "parallax pool create /dev/sdb --size 64G --force",
            "parallax pool info --json",
            "parallax create db --size 10G",
            "parallax create copy --from db@3",
            "parallax delete db",
            "parallax list --all --usage",
            "parallax rename db db2",
            "parallax snapshot db --label before",
            "parallax snapshot db wal --name nightly",
            "parallax snap-list db",
            "parallax snap-list",
            "parallax snap-label db@1 text",
            "parallax snap-delete db@1",
            "parallax tree db --svg out.svg",
            "parallax diff db@1 db@2",
            "parallax resize db --size 20G",
            "parallax revert db db@1",
            "parallax import a.qcow2 db --format qcow2",
            "parallax export db@1 out.img --force",
            "parallax serve db --nbd /run/x.sock --read-only",
            "parallax attach db",
            "parallax detach db",
            "parallax attachments",
            "parallax gc",
            "parallax check --json --pool /dev/sdb",
            "parallax scrub",
            "parallax scrub --rate max",
            "parallax scrub --rate 100M --json",
            "parallax --pool /dev/sdb inspect superblock",
            "parallax --pool p inspect radix db --depth 2",
            "parallax bench --size 64M --seconds 1",
            "parallax bench snapshots db --count 10",
            "parallax completions bash",
            "parallax man /tmp/man",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn an_empty_volume_needs_a_size_and_a_size_needs_a_unit_that_exists() {
        assert!(parse("parallax create db").unwrap_err().contains("--size"));
        let error = parse("parallax create db --size 10GB").unwrap_err();
        assert!(error.contains("write GiB for 1024"), "{error}");
    }
}
