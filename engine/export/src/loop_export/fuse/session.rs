//! The life of a connection, and the threads that read it.

use super::{
    Filesystem, Reply, parse,
    wire::{InHeader, InitExtended, InitIn, InitOut, MAJOR, MINOR, NOTIFY_RESEND, OutHeader, init, opcode},
};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the largest write that a new connection allows.
const WRITE_BYTES_MAX: u32 = 1 << 20;

const PAGE_BYTES: u32 = 4096;

/// Bytes of the largest request beyond its data.
const ARGUMENTS_MAX: usize = 4096;

/// Asynchronous requests that the kernel sends before it waits for answers. Each loop device has its own, much
/// smaller bound; this one is shared by all and must not let one device starve the others.
const BACKGROUND_MAX: u16 = 16384;

/// What both sides agreed on when the connection began; whoever takes it over must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Bytes of the largest write.
    pub(crate) write_bytes_max: u32,
    /// The kernel can send again what was read and not answered.
    pub(crate) resends: bool,
}

impl Agreed {
    fn buffer_bytes(self) -> usize {
        self.write_bytes_max as usize + ARGUMENTS_MAX
    }
}

/// The kernel's side, shared by all replies.
pub(super) struct Channel {
    device: File,
    left: AtomicBool,
}

impl Channel {
    pub(super) fn is_left(&self) -> bool {
        self.left.load(SeqCst)
    }

    /// Sends one message. The kernel takes all of it or none; it refuses answers that nobody waits for any more.
    pub(super) fn send(&self, parts: &mut [IoSlice<'_>]) {
        match (&self.device).write_vectored(parts) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            Err(error) => tracing::warn!(%error, "the kernel refused an answer of the loop export"),
        }
    }
}

/// One connection.
pub(crate) struct Link {
    channel: Arc<Channel>,
    agreed: Agreed,
}

impl Link {
    fn over(device: OwnedFd, agreed: Agreed) -> Self {
        Self {
            channel: Arc::new(Channel { device: File::from(device), left: AtomicBool::new(false) }),
            agreed,
        }
    }

    /// Begins a new connection, whose first request waits in `device`.
    pub(crate) fn begin(device: OwnedFd) -> Result<Self> {
        let agreed = Agreed { write_bytes_max: WRITE_BYTES_MAX, resends: false };
        let mut link = Self::over(device, agreed);
        link.agreed.resends = link.agree().context(|| "beginning the FUSE connection of the loop export")?;
        Ok(link)
    }

    /// Takes over a connection that a process before us left.
    pub(crate) fn take_over(device: OwnedFd, agreed: Agreed) -> Self {
        Self::over(device, agreed)
    }

    /// What was agreed.
    pub(crate) fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// The device.
    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.channel.device.as_fd()
    }

    /// From now on nothing is answered with an error, and new requests are not answered at all.
    pub(crate) fn leave(&self) {
        self.channel.left.store(true, SeqCst);
    }

    fn agree(&self) -> Result<bool> {
        let mut buffer = vec![0; self.agreed.buffer_bytes()];
        let length = self.channel.receive(&mut buffer)?;
        let short = || Error::corrupt("the kernel's first FUSE message is too short");
        let (header, body) = InHeader::read_from_prefix(&buffer[..length]).map_err(|_| short())?;
        if header.opcode != opcode::INIT {
            return Err(Error::corrupt(format!(
                "the kernel's first FUSE message has number {}",
                header.opcode
            )));
        }
        let (asked, rest) = InitIn::read_from_prefix(body).map_err(|_| short())?;
        let reply = Reply::new(Arc::clone(&self.channel), header.unique);
        // Version 7.31 is that of Linux 5.4; fsopen(2) needs 5.9 anyway.
        if asked.major != MAJOR || asked.minor < 31 {
            reply.error(libc::EPROTO);
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the kernel speaks FUSE {}.{}, which is too old", asked.major, asked.minor),
            ));
        }
        let mut offered = u64::from(asked.flags);
        if offered & init::EXTENDED != 0
            && let Ok((extended, _)) = InitExtended::read_from_prefix(rest)
        {
            offered |= u64::from(extended.flags) << 32;
        }
        // Without asynchronous direct I/O the queue of a loop device would be one request deep.
        for (flag, what) in
            [(init::ASYNC_DIO, "asynchronous direct I/O"), (init::MAX_PAGES, "requests of 1 MiB")]
        {
            if offered & flag == 0 {
                reply.error(libc::EPROTO);
                return Err(Error::new(ErrorKind::Unsupported, format!("the kernel's FUSE has no {what}")));
            }
        }
        let wanted = init::ASYNC_READ
            | init::BIG_WRITES
            | init::ASYNC_DIO
            | init::MAX_PAGES
            | init::EXTENDED
            | init::HAS_RESEND;
        let flags = offered & wanted;
        let answer = InitOut {
            major: MAJOR,
            minor: MINOR,
            read_ahead_max: asked.read_ahead_max,
            flags: flags as u32,
            background_max: BACKGROUND_MAX,
            congestion_threshold: BACKGROUND_MAX,
            write_max: self.agreed.write_bytes_max,
            time_granularity: 1,
            pages_max: (self.agreed.write_bytes_max / PAGE_BYTES) as u16,
            map_alignment: 0,
            flags_extended: (flags >> 32) as u32,
            stack_depth_max: 0,
            unused: [0; 6],
        };
        let mut reply = reply;
        reply.send(0, answer.as_bytes());
        Ok(flags & init::HAS_RESEND != 0)
    }

    /// Has the kernel send again whatever was read from this connection and not answered. Nobody may be reading.
    pub(crate) fn resend(&self) -> Result<()> {
        let message = OutHeader { length: size_of::<OutHeader>() as u32, error: NOTIFY_RESEND, unique: 0 };
        (&self.channel.device)
            .write_all(message.as_bytes())
            .context(|| "asking the kernel for the requests that were not answered (needs Linux 6.9)")
    }

    /// Starts threads that hand every request to `filesystem`.
    pub(crate) fn serve(&self, threads: usize, filesystem: Arc<dyn Filesystem>) -> Result<Serving> {
        let mut started = Vec::with_capacity(threads);
        for number in 0..threads {
            let (channel, filesystem) = (Arc::clone(&self.channel), Arc::clone(&filesystem));
            // Every page is written to, so that none has to be found while a request is read.
            let mut buffer = vec![0; self.agreed.buffer_bytes()];
            buffer.fill(1);
            let thread = thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || read_requests(&channel, &*filesystem, &mut buffer))
                .context(|| "starting a thread of the loop export")?;
            started.push(thread);
        }
        Ok(Serving(started))
    }
}

/// Threads that serve a connection.
pub(crate) struct Serving(Vec<JoinHandle<Result<()>>>);

impl Serving {
    /// Waits until the kernel has ended the connection.
    pub(crate) fn join(self) -> Result<()> {
        for thread in self.0 {
            thread
                .join()
                .map_err(|_| Error::new(ErrorKind::Io, "a thread of the loop export panicked"))??;
        }
        Ok(())
    }
}

impl Channel {
    /// The next request; 0 bytes when the connection has ended.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match (&self.device).read(buffer) {
                Ok(length) => return Ok(length),
                Err(error) => match error.raw_os_error() {
                    // Interrupted, or the request was taken back meanwhile.
                    Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => {}
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(0),
                    _ => return Err(io_error(error)),
                },
            }
        }
    }
}

fn io_error(error: io::Error) -> Error {
    Error::from(error).context("reading /dev/fuse")
}

fn read_requests(channel: &Arc<Channel>, filesystem: &dyn Filesystem, buffer: &mut [u8]) -> Result<()> {
    loop {
        let length = channel.receive(buffer)?;
        if length == 0 {
            return Ok(());
        }
        let Ok((header, body)) = InHeader::read_from_prefix(&buffer[..length]) else {
            return Err(Error::corrupt(format!("the kernel sent a FUSE request of {length} bytes")));
        };
        match header.opcode {
            // Nobody waits for an answer.
            opcode::FORGET | opcode::BATCH_FORGET => continue,
            _ if channel.is_left() => continue,
            _ => {}
        }
        let reply = Reply::new(Arc::clone(channel), header.unique);
        match parse(header.opcode, body) {
            Some(question) => filesystem.ask(header.node, question, reply),
            None => reply.error(libc::EINVAL),
        }
    }
}
