//! Serves a memory device of some GiB, or a file, as a loop device until its input ends:
//!
//! ```text
//! loop_server DIRECTORY ram:4
//! loop_server DIRECTORY /path/to/file-or-device
//! ```
//!
//! It prints the device. Good for measuring the export itself, and for killing it under load by hand.
#![forbid(unsafe_code)]

use parallax_block::{BlockDevice, Result, Runtime};
use parallax_device::{OpenOptions, RamDevice, Reactor, ReactorOptions, open_device};
use parallax_export::loop_export::{ExportKey, Limits, LoopExports, protect_process};
use std::{env, io::Read, path::Path, process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [directory, source] = arguments.as_slice() else {
        eprintln!("usage: loop_server DIRECTORY ram:GIB|PATH");
        return ExitCode::from(2);
    };
    match serve(Path::new(directory), source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loop_server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(directory: &Path, source: &str) -> Result<()> {
    let protection = protect_process();
    let reactor =
        Reactor::start("device", ReactorOptions { io_flusher: protection.io_flusher, ..Default::default() })?;
    let device: Arc<dyn BlockDevice> =
        match source.strip_prefix("ram:").and_then(|size| size.parse::<u64>().ok()) {
            Some(gibibytes) => Arc::new(RamDevice::new(gibibytes << 30, 4096)?),
            None => open_device(Path::new(source), &reactor, OpenOptions::default())?,
        };
    let runtime: Arc<dyn Runtime> = Arc::new(reactor.clone());
    let exports = LoopExports::start(directory, runtime, Limits::default())?;
    let attachment = exports.attach(ExportKey::new("loop-server")?, device, false)?;
    println!("{}", attachment.path.display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for key in exports.shutdown()? {
        eprintln!("loop_server: {key} was still in use; its I/O fails from now on");
    }
    reactor.shutdown();
    Ok(())
}
