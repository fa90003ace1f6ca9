//! Memory that was used once and may be used again, so that requests need no new pages from the kernel.

use parallax_block::{Buffer, MEMORY_ALIGNMENT};

/// Bytes kept, at most.
const BYTES_MAX: usize = 8 << 20;
/// Buffers looked at before a new one is made.
const LOOKS: usize = 32;

#[derive(Default)]
pub(super) struct Pool {
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl Pool {
    /// A buffer of that length; what it holds is undefined.
    pub(super) fn take(&mut self, length: usize) -> Option<Buffer> {
        let found = self.buffers.iter().rev().take(LOOKS).position(|buffer| buffer.len() == length)?;
        let buffer = self.buffers.swap_remove(self.buffers.len() - 1 - found);
        self.bytes -= length;
        Some(buffer)
    }

    /// Gives one back. The oldest make room for it.
    pub(super) fn put(&mut self, buffer: Buffer) {
        let length = buffer.len();
        if length == 0 || length > BYTES_MAX || !buffer.is_aligned(MEMORY_ALIGNMENT) {
            return;
        }
        while self.bytes + length > BYTES_MAX {
            self.bytes -= self.buffers.remove(0).len();
        }
        self.bytes += length;
        self.buffers.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_buffers_of_the_same_length_are_used_again() {
        let mut pool = Pool::default();
        pool.put(Buffer::zeroed(4096));
        pool.put(Buffer::zeroed(8192));
        assert!(pool.take(512).is_none());
        assert_eq!(pool.take(4096).map(|buffer| buffer.len()), Some(4096));
        assert!(pool.take(4096).is_none());
        assert_eq!(pool.take(8192).map(|buffer| buffer.len()), Some(8192));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut pool = Pool::default();
        for _ in 0..20 {
            pool.put(Buffer::zeroed(1 << 20));
            assert!(pool.bytes <= BYTES_MAX);
        }
        pool.put(Buffer::zeroed(BYTES_MAX + 4096));
        assert_eq!((pool.bytes, pool.buffers.len()), (BYTES_MAX, 8));
    }
}
