//! The bytes of a client, in order: many requests for one call to the kernel.

use parallax_block::{Buffer, Error, ErrorKind, Result};
use parallax_device::Stream;

/// Bytes taken from the socket at one time.
const WINDOW: usize = 256 << 10;
/// Bytes taken without a turn of the reactor, so that one busy client does not keep others waiting.
const AT_ONCE: usize = 64 << 10;

/// A window over the stream.
pub(super) struct Input {
    stream: Stream,
    buffer: Buffer,
    start: usize,
    end: usize,
    /// Bytes taken since the last turn of the reactor.
    at_once: usize,
}

impl Input {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, buffer: Buffer::zeroed(WINDOW), start: 0, end: 0, at_once: 0 }
    }

    /// What has arrived and was not consumed.
    pub(super) fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Forgets the first bytes of [`Input::available`].
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Waits until `count` bytes are available (at most a window). `false` if the client has closed before the
    /// first of them.
    pub(super) async fn want(&mut self, count: usize) -> Result<bool> {
        while self.end - self.start < count {
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.start + count > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            match self.receive().await? {
                0 if self.start == self.end => return Ok(false),
                0 => return Err(cut_short()),
                received => self.end += received,
            }
        }
        Ok(true)
    }

    /// Appends what has arrived; waits for the first byte of it.
    async fn receive(&mut self) -> Result<usize> {
        // Requests that are taken before the first of them is submitted go to the device together.
        if self.at_once < AT_ONCE
            && let Some(received) = self.stream.receive_now(&mut self.buffer[self.end..])?
        {
            self.at_once += received;
            return Ok(received);
        }
        self.at_once = 0;
        let buffer = std::mem::take(&mut self.buffer);
        let range = self.end..buffer.len();
        let (buffer, received) = self.stream.receive(buffer, range).await;
        self.buffer = buffer;
        received
    }

    /// Fills `target` with the next bytes: those that are here by copy, the rest straight from the socket.
    pub(super) async fn read(&mut self, mut target: Buffer) -> Result<Buffer> {
        let here = self.available().len().min(target.len());
        target[..here].copy_from_slice(&self.available()[..here]);
        self.consume(here);
        let length = target.len();
        if here < length {
            let (back, received) = self.stream.receive_all(target, here..length).await;
            if received? < length - here {
                return Err(cut_short());
            }
            target = back;
        }
        Ok(target)
    }

    /// Passes over the next bytes.
    pub(super) async fn skip(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let piece = count.min(WINDOW);
            if !self.want(piece).await? {
                return Err(cut_short());
            }
            self.consume(piece);
            count -= piece;
        }
        Ok(())
    }
}

fn cut_short() -> Error {
    Error::new(ErrorKind::Io, "the client closed the connection in the middle of a message")
}
