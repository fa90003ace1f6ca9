//! A thread with a table of descriptors of its own.
//!
//! A process that serves a filesystem to its own kernel sometimes has to use that filesystem, and then waits for
//! itself. If it is killed at that moment, the waiting thread cannot end before its request does, the request
//! ends only when the last descriptor of the connection closes, and that descriptor is in the table which the
//! waiting thread keeps alive: neither ever happens, and the process is beyond SIGKILL. A thread that does not
//! share the table breaks the circle: the others end, the table closes, the connection ends, the request fails.
//!
//! Rules for jobs:
//! * A descriptor is a number in a table: one that was opened elsewhere means nothing or something else here. A job
//!   uses only the kept descriptors and those that it opens itself, closes the latter before it ends, and
//!   calls nothing that may use another: no log, no device.
//! * Standard input, output and error stay, so that a panic can be printed.

use parallax_block::{Error, ErrorKind, Result, ResultExt};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::mpsc,
    thread::{self, JoinHandle},
};

type Job<const N: usize> = Box<dyn FnOnce(&[OwnedFd; N]) + Send>;

/// Jobs that may wait; callers wait for the answer, so more would not help.
const JOBS_MAX: usize = 1;

const FIRST_AFTER_STANDARD: u32 = 3;

/// A thread that shares no descriptor with the rest of the process but `N` kept ones.
pub struct ApartThread<const N: usize> {
    jobs: mpsc::SyncSender<Job<N>>,
    thread: JoinHandle<()>,
}

impl<const N: usize> ApartThread<N> {
    /// Starts it with its own references to the files behind `keep`; the caller may close its own afterwards.
    pub fn start(name: &str, keep: [BorrowedFd<'_>; N]) -> Result<Self> {
        let numbers = keep.map(|descriptor| descriptor.as_raw_fd());
        let (jobs, queue) = mpsc::sync_channel::<Job<N>>(JOBS_MAX);
        let (started, starting) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let kept = match leave_the_table(numbers) {
                    Ok(kept) => kept,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                if started.send(Ok(())).is_ok() {
                    while let Ok(job) = queue.recv() {
                        job(&kept);
                    }
                }
            })
            .context(|| format!("starting the thread {name}"))?;
        starting
            .recv()
            .map_err(|_| Error::new(ErrorKind::Cancelled, format!("the thread {name} ended at once")))?
            .context(|| "giving a thread descriptors of its own (close_range(2), Linux 5.9 or newer)")?;
        Ok(Self { jobs, thread })
    }

    /// Runs a job and waits for its answer, which must not hold a descriptor. See the module for what a job may do.
    pub fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&[OwnedFd; N]) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        let ended =
            || Error::new(ErrorKind::Cancelled, "a thread ended in the middle of a job; see its panic");
        self.jobs.send(Box::new(move |kept| drop(answer.send(job(kept))))).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())
    }

    /// Closes the kept descriptors and waits for the thread.
    pub fn end(self) {
        drop(self.jobs);
        // A panic of a job was an answer already.
        let _ = self.thread.join();
    }
}

/// Gives this thread a table of its own that has only the standard descriptors and `keep`.
fn leave_the_table<const N: usize>(keep: [RawFd; N]) -> io::Result<[OwnedFd; N]> {
    let mut sorted: Vec<u32> = keep.iter().map(|number| number.cast_unsigned()).collect();
    sorted.sort_unstable();
    let mut next = FIRST_AFTER_STANDARD;
    for number in sorted {
        if next < number {
            close_apart(next, number - 1)?;
        }
        next = next.max(number + 1);
    }
    close_apart(next, u32::MAX)?;
    // SAFETY: the numbers were open when the caller lent them, it waits for this thread, and this table is a copy
    // that nothing else in the process refers to: each is an open descriptor with one owner.
    Ok(keep.map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Closes descriptors `first..=last` in a table that this thread shares with nobody.
fn close_apart(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_UNSHARE makes the thread's table its own before anything is closed, so no descriptor
    // that other code owns is closed; this thread owns none yet. There are no pointers in the call.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
        os::unix::net::UnixStream,
    };

    fn open_here() -> usize {
        std::fs::read_dir("/proc/thread-self/fd").unwrap().count()
    }

    #[test]
    fn a_thread_apart_has_only_what_it_was_given() {
        let stranger = File::open("/dev/null").unwrap();
        let (kept, mut far) = UnixStream::pair().unwrap();
        let thread = ApartThread::start("apart", [kept.as_fd()]).unwrap();
        drop(kept);
        // Three standard ones at most, the kept one, and the directory being read.
        assert!(thread.call(|_| open_here()).unwrap() <= 5);
        thread
            .call(|[kept]| UnixStream::from(kept.try_clone().unwrap()).write_all(b"still here").unwrap())
            .unwrap();
        let mut bytes = [0; 10];
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"still here");
        stranger.metadata().unwrap();
        thread.end();
        assert_eq!(far.read(&mut bytes).unwrap(), 0, "the thread's end left its descriptor open");
    }

    #[test]
    fn a_panic_of_a_job_is_an_error_of_its_caller() {
        let thread = ApartThread::start("apart", []).unwrap();
        let error = thread.call(|_| panic!("on purpose")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        thread.end();
    }
}
