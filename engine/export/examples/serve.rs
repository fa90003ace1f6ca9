//! Serves a file, a block device or memory over NBD until interrupted. For measuring and for trying out.
//!
//! ```text
//! serve SOCKET PATH [--threads] [--read-only] [--reactors N]
//! serve SOCKET ram:SIZE
//! ```

#![forbid(unsafe_code)]

use parallax_block::{BlockDevice, Error, Result};
use parallax_device::{IoMode, OpenOptions, RamDevice, Reactor, ReactorOptions, open_device};
use parallax_export::nbd::{Limits, NbdExport, NbdServer};
use std::{path::Path, sync::Arc};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, source, options @ ..] = &arguments[..] else {
        return Err(Error::invalid(
            "usage: serve SOCKET PATH|ram:SIZE [--threads] [--read-only] [--reactors N]",
        ));
    };
    let mut io = IoMode::Auto;
    let mut read_only = false;
    let mut count = 1;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--threads" => io = IoMode::Threads,
            "--read-only" => read_only = true,
            "--reactors" => count = options.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            other => return Err(Error::invalid(format!("unknown option {other}"))),
        }
    }
    let reactors = (0..count)
        .map(|index| {
            Reactor::start(&format!("io-{index}"), ReactorOptions { io, ..ReactorOptions::default() })
        })
        .collect::<Result<Vec<_>>>()?;
    let device: Arc<dyn BlockDevice> = match source.strip_prefix("ram:") {
        Some(size) => {
            let size = size.parse().map_err(|_| Error::invalid("the size is a number of bytes"))?;
            Arc::new(RamDevice::new(size, 512)?)
        }
        None => {
            let options = OpenOptions { io, read_only, ..OpenOptions::default() };
            open_device(Path::new(source), &reactors[0], options)?
        }
    };
    let export = NbdExport { name: String::new(), device, read_only, description: source.clone() };
    let server = NbdServer::start(&reactors, Path::new(socket), vec![export], Limits::default())?;
    println!("serving {source} on nbd+unix:///?socket={}", server.socket().display());
    loop {
        std::thread::park();
    }
}
