//! The kernel's loop driver: configure, resize and clear loop devices.
//!
//! Invariants:
//! * A loop device is opened for one call and closed again. Nobody who serves the file underneath may keep its
//!   loop device open: the last close writes back dirty pages, which waits for the one who is closing.
//! * Whoever serves the file underneath makes these calls on an [`ApartThread`](crate::ApartThread): configuring, asking
//!   for the status and resizing wait for answers about the file, and limits of the queue wait for its I/O. So
//!   nothing here uses a descriptor that it did not open itself, and nothing here logs.
//!
//! This is the one place that knows the driver's calls and structures; everything else stays safe code.

use parallax_block::{Error, ErrorKind, Result, ResultExt};
use rustix::ioctl::{Getter, IntegerSetter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};
use std::{
    ffi::c_void,
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
};

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_ADD: Opcode = 0x4C80;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// Attempts to get hold of a free number while others take them too.
const ATTEMPTS_MAX: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    represented_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: u32,
    encryption_key_length: u32,
    flags: u32,
    file_name: [u8; 64],
    encryption_name: [u8; 64],
    encryption_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Configuration {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Configuration>() == 304);

impl Info {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        represented_device: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encryption: 0,
        encryption_key_length: 0,
        flags: 0,
        file_name: [0; 64],
        encryption_name: [0; 64],
        encryption_key: [0; 32],
        init: [0; 2],
    };
}

/// A call of the control device: an integer goes in, the number of a loop device comes back.
struct NumberCall {
    opcode: Opcode,
    argument: usize,
}

// SAFETY: LOOP_CTL_ADD takes a plain integer and LOOP_CTL_GET_FREE takes nothing; neither follows the argument
// as a pointer, and the answer is the return value.
unsafe impl Ioctl for NumberCall {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::RANGE)
    }
}

/// What a loop device is to be.
#[derive(Debug, Clone)]
pub struct LoopOptions {
    /// Bytes of a logical block: a power of two from 512 to 4096.
    pub logical_block: u32,
    /// Refuses writing.
    pub read_only: bool,
    /// Goes around the file's page cache.
    pub direct: bool,
    /// Shown by `losetup`; cut at 63 bytes.
    pub label: String,
    /// Number to use if it is free.
    pub preferred: Option<u32>,
}

/// What the driver knows of a configured loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopStatus {
    /// The driver goes around the file's page cache.
    pub direct: bool,
    /// The driver clears the device when the last one closes it.
    pub autoclear: bool,
    /// Writing is refused.
    pub read_only: bool,
}

/// A loop device by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoopDevice {
    number: u32,
}

impl LoopDevice {
    /// The device of that number, whether or not it exists.
    pub fn from_number(number: u32) -> Self {
        Self { number }
    }

    /// Puts a free loop device over `file`.
    pub fn configure(file: BorrowedFd<'_>, options: &LoopOptions) -> Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").context(
            || "opening /dev/loop-control (the container needs the host's /dev, the kernel the loop driver)",
        )?;
        if let Some(number) = options.preferred {
            let call = NumberCall { opcode: LOOP_CTL_ADD, argument: number as usize };
            // SAFETY: see `NumberCall`.
            let _ = unsafe { ioctl(&control, call) };
            let device = Self { number };
            // Whatever was wrong with that one, another may do.
            if device.try_configure(file, options).is_ok() {
                return Ok(device);
            }
        }
        for _ in 0..ATTEMPTS_MAX {
            let call = NumberCall { opcode: LOOP_CTL_GET_FREE, argument: 0 };
            // SAFETY: see `NumberCall`.
            let number = unsafe { ioctl(&control, call) }
                .map_err(std::io::Error::from)
                .context(|| "asking /dev/loop-control for a free loop device")?;
            let device = Self { number };
            match device.try_configure(file, options) {
                Ok(()) => return Ok(device),
                Err(error) if error.kind() == ErrorKind::Busy => {}
                Err(error) => return Err(error.context(format!("configuring {}", device.path().display()))),
            }
        }
        Err(Error::new(ErrorKind::Busy, "other programs keep taking every free loop device; try again"))
    }

    fn try_configure(self, file: BorrowedFd<'_>, options: &LoopOptions) -> Result<()> {
        let device = self.open(!options.read_only)?;
        let mut info = Info::EMPTY;
        if options.read_only {
            info.flags |= READ_ONLY;
        }
        if options.direct {
            info.flags |= DIRECT_IO;
        }
        let label = options.label.as_bytes();
        let length = label.len().min(info.file_name.len() - 1);
        info.file_name[..length].copy_from_slice(&label[..length]);
        let configuration = Configuration {
            file: u32::try_from(file.as_raw_fd()).map_err(|_| Error::invalid("the file is not open"))?,
            block_size: options.logical_block,
            info,
            reserved: [0; 8],
        };
        // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout is asserted above, and keeps no
        // pointer; the file descriptor inside is borrowed for the call and the kernel takes its own reference.
        let done = unsafe { ioctl(&device, Setter::<LOOP_CONFIGURE, Configuration>::new(configuration)) };
        done.map_err(std::io::Error::from).map_err(Error::from)
    }

    /// Reads the size of the file underneath again.
    pub fn reread_capacity(self) -> Result<()> {
        let device = self.open(false)?;
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        let done = unsafe { ioctl(&device, IntegerSetter::<LOOP_SET_CAPACITY>::new_usize(0)) };
        done.map_err(std::io::Error::from).context(|| format!("resizing {}", self.path().display()))
    }

    /// Takes the device off its file if nobody else has it open, and answers whether that was so. Otherwise the
    /// device stays as it was; to make sure of that the driver waits for I/O in flight, so do not call this while
    /// there is any.
    ///
    /// `file` is what [`LoopDevice::backing_file`] says while the device is the caller's: a number that became free is
    /// taken by the next one who asks, and his device is none of ours.
    pub fn clear(self, file: &str) -> Result<bool> {
        let device = match self.request_clear(file)? {
            Some(device) => device,
            None => return Ok(true),
        };
        drop(device);
        let device = self.open(false)?;
        if !self.is_over(file) {
            return Ok(true);
        }
        // Someone has it open, so the driver has only promised to clear it later. Take that back.
        match self.read_info(&device) {
            Ok(mut info) => {
                info.flags &= !AUTOCLEAR;
                // SAFETY: LOOP_SET_STATUS64 reads one `struct loop_info64`, whose layout is asserted above.
                let done = unsafe { ioctl(&device, Setter::<LOOP_SET_STATUS64, Info>::new(info)) };
                match done {
                    Ok(()) => Ok(false),
                    Err(rustix::io::Errno::NXIO) => Ok(true),
                    Err(error) => Err(Error::from(std::io::Error::from(error))
                        .context(format!("keeping {} while it is open", self.path().display()))),
                }
            }
            Err(rustix::io::Errno::NXIO) => Ok(true),
            Err(error) => Err(Error::from(std::io::Error::from(error))
                .context(format!("asking {} for its status", self.path().display()))),
        }
    }

    /// Whether someone has it mounted, stacked or otherwise for himself. Plain openers are not seen.
    pub fn is_claimed(self) -> Result<bool> {
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(self.path()) {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
            Err(error) => Err(error).context(|| format!("opening {}", self.path().display())),
        }
    }

    /// Takes the device off this file now, or when the last one who has it open closes it.
    pub fn clear_when_closed(self, file: &str) -> Result<()> {
        self.request_clear(file).map(drop)
    }

    fn request_clear(self, file: &str) -> Result<Option<File>> {
        let device = self.open(false)?;
        // While we have it open nobody else can put it over another file.
        if !self.is_over(file) {
            return Ok(None);
        }
        // SAFETY: LOOP_CLR_FD takes no argument.
        match unsafe { ioctl(&device, NoArg::<LOOP_CLR_FD>::new()) } {
            Ok(()) => Ok(Some(device)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(Error::from(std::io::Error::from(error))
                .context(format!("taking {} off its file", self.path().display()))),
        }
    }

    /// What the driver knows. Asks whoever serves the file for its attributes.
    pub fn status(self) -> Result<LoopStatus> {
        let device = self.open(false)?;
        let info = self
            .read_info(&device)
            .map_err(std::io::Error::from)
            .context(|| format!("asking {} for its status", self.path().display()))?;
        Ok(LoopStatus {
            direct: info.flags & DIRECT_IO != 0,
            autoclear: info.flags & AUTOCLEAR != 0,
            read_only: info.flags & READ_ONLY != 0,
        })
    }

    fn read_info(self, device: &File) -> rustix::io::Result<Info> {
        // SAFETY: LOOP_GET_STATUS64 fills one `struct loop_info64`, whose layout is asserted above.
        unsafe { ioctl(device.as_fd(), Getter::<LOOP_GET_STATUS64, Info>::new()) }
    }

    fn open(self, writable: bool) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(writable)
            .open(self.path())
            .context(|| format!("opening {} (a container needs the host's /dev)", self.path().display()))
    }

    /// Whether a file is behind it, as sysfs says.
    pub fn is_configured(self) -> bool {
        self.sysfs().join("loop/backing_file").exists()
    }

    /// Path of the file behind it, as sysfs says. Asks nobody's server.
    pub fn backing_file(self) -> Option<String> {
        let file = std::fs::read_to_string(self.sysfs().join("loop/backing_file")).ok()?;
        Some(file.trim_end_matches('\n').to_owned())
    }

    /// Whether this file is behind it.
    pub fn is_over(self, file: &str) -> bool {
        self.backing_file().as_deref() == Some(file)
    }

    /// Bytes that the device offers, as sysfs says.
    pub fn capacity(self) -> Result<u64> {
        let path = self.sysfs().join("size");
        let text = std::fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
        let sectors: u64 = text
            .trim()
            .parse()
            .map_err(|_| Error::corrupt(format!("{} says {text:?}, not a number", path.display())))?;
        Ok(sectors * 512)
    }

    /// Every configured loop device with the path of the file behind it, as sysfs says. Asks nobody's server.
    pub fn configured() -> Result<Vec<(Self, String)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/block").context(|| "reading /sys/block")? {
            let name = entry?.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else {
                continue;
            };
            let device = Self { number };
            if let Some(file) = device.backing_file() {
                found.push((device, file));
            }
        }
        Ok(found)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.number
    }

    /// Its node.
    pub fn path(self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// Its directory in sysfs.
    pub fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.number))
    }
}
