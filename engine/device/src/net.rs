//! Unix sockets on a reactor.
//!
//! These futures must be polled on a reactor's thread; elsewhere they fail. Memory travels with the request and
//! comes back with its answer. Dropping a future gives up the request.

use crate::operation::{Failure, Operation, Outcome, Route, SendPart, Work};
use parallax_block::{Buffer, Error, ErrorKind, Result, ResultExt};
use parking_lot::Mutex;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags},
};
use std::{
    future::{Future, poll_fn},
    io::IoSlice,
    ops::Range,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

/// Pieces of one message, at most (`UIO_MAXIOV`).
pub(crate) const PIECES_MAX: usize = 1024;

/// A listening socket; cheap to clone.
#[derive(Debug, Clone)]
pub struct Listener {
    socket: Arc<OwnedFd>,
    closing: Arc<Closing>,
}

/// How [`Listener::close`] reaches those who accept: the kernel would not wake them.
#[derive(Debug, Default)]
struct Closing {
    closed: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self { socket: Arc::new(listener.into()), closing: Arc::default() }
    }
}

impl Listener {
    /// The next connection. Fails with `Cancelled` after [`Listener::close`].
    pub async fn accept(&self) -> Result<Stream> {
        let work = Work::Accept { socket: Arc::clone(&self.socket), accepted: None };
        let mut accepting = pin!(Operation::new(Route::Here, work));
        let answer = poll_fn(|cx| {
            {
                let mut waiting = self.closing.waiting.lock();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
            }
            // Read after the waker is in place, so that a close in between is not missed.
            if self.closing.closed.load(Ordering::SeqCst) {
                return Poll::Ready(None);
            }
            accepting.as_mut().poll(cx).map(Some)
        })
        .await;
        match answer {
            Some((Work::Accept { accepted: Some(socket), .. }, Ok(_))) => Ok(Stream(Arc::new(socket))),
            Some((_, outcome)) => Err(explain(outcome).context("accepting a connection")),
            None => Err(Error::new(ErrorKind::Cancelled, "the socket was closed")),
        }
    }

    /// Ends accepting, on every thread. The socket itself goes with the last clone.
    pub fn close(&self) {
        self.closing.closed.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.closing.waiting.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A connected socket; cheap to clone.
#[derive(Debug, Clone)]
pub struct Stream(Arc<OwnedFd>);

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self(Arc::new(stream.into()))
    }
}

impl Stream {
    /// Receives what is here already, into `target`. `None` if there is nothing yet; no bytes if the peer has closed.
    pub fn receive_now(&self, target: &mut [u8]) -> Result<Option<usize>> {
        match rustix::net::recv(&*self.0, target, RecvFlags::DONTWAIT) {
            Ok((received, _)) => Ok(Some(received)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(Error::from(std::io::Error::from(errno)).context("receiving")),
        }
    }

    /// Receives what there is into `range` of `buffer`; waits for the first byte. Answers how many bytes there
    /// were: none if the peer has closed.
    pub async fn receive(&self, buffer: Buffer, range: Range<usize>) -> (Buffer, Result<usize>) {
        self.receive_into(buffer, range, false).await
    }

    /// Receives until `range` of `buffer` is full. Fewer bytes mean that the peer has closed.
    pub async fn receive_all(&self, buffer: Buffer, range: Range<usize>) -> (Buffer, Result<usize>) {
        self.receive_into(buffer, range, true).await
    }

    async fn receive_into(&self, buffer: Buffer, range: Range<usize>, all: bool) -> (Buffer, Result<usize>) {
        let Range { start, end } = range;
        if start >= end || end > buffer.len() {
            let error = Error::invalid(format!("cannot receive into {start}..{end} of {buffer:?}"));
            return (buffer, Err(error));
        }
        let work = Work::Receive { socket: Arc::clone(&self.0), buffer, start, end, all };
        let (work, outcome) = Operation::new(Route::Here, work).await;
        let received = match outcome {
            Ok(next) => Ok(next - start),
            failed => Err(explain(failed).context("receiving")),
        };
        (work.into_buffer(), received)
    }

    /// Sends all parts, in order, in as few calls as the kernel allows. The parts come back.
    pub async fn send(&self, parts: Vec<SendPart>) -> (Vec<SendPart>, Result<()>) {
        let total = parts.iter().map(|part| part.bytes().len()).sum();
        if total == 0 {
            return (parts, Ok(()));
        }
        // Most of the time there is room, and what is sent at once needs no turn of the reactor.
        let sent = match send_now(&self.0, &parts, 0) {
            Ok(sent) if sent >= total => return (parts, Ok(())),
            Ok(sent) => sent,
            // What goes wrong is said by the reactor's attempt, too.
            Err(_) => 0,
        };
        let work = Work::Send { socket: Arc::clone(&self.0), parts, sent, total };
        let (work, outcome) = Operation::new(Route::Here, work).await;
        let parts = if let Work::Send { parts, .. } = work { parts } else { Vec::new() };
        let result = if outcome.is_ok() { Ok(()) } else { Err(explain(outcome).context("sending")) };
        (parts, result)
    }

    /// Ends receiving, on every thread: the peer's bytes end here. What is being sent still goes out.
    pub fn shutdown_receive(&self) {
        // Fails only if the peer has gone.
        let _ = rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Read);
    }

    /// Ends both directions, on every thread.
    pub fn shutdown(&self) {
        // Fails only if the peer has gone.
        let _ = rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Both);
    }

    /// Asks for a send buffer of this size; beyond the system's limit where the process may. The kernel may give
    /// less.
    pub fn set_send_buffer(&self, bytes: usize) -> Result<()> {
        use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
        set_socket_send_buffer_size_force(&*self.0, bytes)
            .or_else(|_| set_socket_send_buffer_size(&*self.0, bytes))
            .map_err(std::io::Error::from)
            .context(|| "sizing a send buffer")
    }
}

/// Sends what there is room for, beginning `sent` bytes into the parts.
pub(crate) fn send_now(socket: &OwnedFd, parts: &[SendPart], sent: usize) -> rustix::io::Result<usize> {
    let pieces: Vec<_> = Work::unsent(parts, sent, PIECES_MAX).map(IoSlice::new).collect();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &pieces, &mut SendAncillaryBuffer::default(), flags)
}

fn explain(outcome: Outcome) -> Error {
    match outcome {
        Err(Failure::Os(errno)) => Error::from(std::io::Error::from_raw_os_error(errno)),
        Err(Failure::EndOfFile) => Error::new(ErrorKind::Io, "the peer has closed"),
        Ok(_) | Err(Failure::Cancelled) => {
            Error::new(ErrorKind::Cancelled, "there is no I/O thread here, or it has ended")
        }
    }
}
