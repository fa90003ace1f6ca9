//! Owned, aligned memory for direct I/O.
//!
//! A [`Buffer`] is a view of an allocation that is aligned to [`MEMORY_ALIGNMENT`]. Views of one allocation
//! never overlap, so each is exclusively owned and may be lent to the kernel while its siblings are in use:
//! a request that touches three places on disk splits its buffer in three and joins it again afterwards.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

/// Every allocation starts at a multiple of this many bytes.
pub const MEMORY_ALIGNMENT: usize = 4096;

struct Allocation {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation is plain memory; access goes through `Buffer`, whose views never overlap.
unsafe impl Send for Allocation {}
// SAFETY: as above; `Allocation` itself offers no access to the bytes.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from `alloc_zeroed` with this layout and is freed once, by the last view.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) }
    }
}

/// Exclusive view of part of an aligned allocation.
pub struct Buffer {
    allocation: Option<Arc<Allocation>>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// A zeroed buffer of `length` bytes.
    pub fn zeroed(length: usize) -> Self {
        if length == 0 {
            return Self { allocation: None, start: 0, length: 0 };
        }
        let layout = Layout::from_size_align(length, MEMORY_ALIGNMENT).expect("length fits isize");
        // SAFETY: the layout has a non-zero size.
        let Some(pointer) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { allocation: Some(Arc::new(Allocation { pointer, layout })), start: 0, length }
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Splits at `at`: `self` keeps the head, the tail is returned. No bytes are copied.
    ///
    /// Panics if `at` lies past the end, which is a bug in the caller.
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.length, "split at {at} of {} bytes", self.length);
        let tail =
            Self { allocation: self.allocation.clone(), start: self.start + at, length: self.length - at };
        self.length = at;
        tail
    }

    /// Joins `tail` behind `self`: without copying if the two are neighbours of one allocation, else by copy.
    pub fn unsplit(&mut self, tail: Self) {
        if tail.is_empty() {
            return;
        }
        if self.is_empty() {
            *self = tail;
            return;
        }
        let neighbours = match (&self.allocation, &tail.allocation) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) && self.start + self.length == tail.start,
            _ => false,
        };
        if neighbours {
            self.length += tail.length;
        } else {
            let mut joined = Self::zeroed(self.length + tail.length);
            joined[..self.length].copy_from_slice(self);
            joined[self.length..].copy_from_slice(&tail);
            *self = joined;
        }
    }

    /// Start of the bytes, for handing to the kernel. The buffer must outlive that use.
    pub fn as_mut_pointer(&mut self) -> *mut u8 {
        self.deref_mut().as_mut_ptr()
    }

    /// Whether the bytes start at a multiple of `alignment`, as direct I/O wants.
    pub fn is_aligned(&self, alignment: usize) -> bool {
        self.start.is_multiple_of(alignment)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.allocation {
            None => &[],
            // SAFETY: `start + length` lies inside the allocation (kept by `zeroed`, `split_off`, `unsplit`),
            // it was zeroed when made, and no other view covers these bytes.
            Some(allocation) => unsafe {
                std::slice::from_raw_parts(allocation.pointer.as_ptr().add(self.start), self.length)
            },
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &self.allocation {
            None => &mut [],
            // SAFETY: as in `deref`; `&mut self` makes this view's bytes ours alone.
            Some(allocation) => unsafe {
                std::slice::from_raw_parts_mut(allocation.pointer.as_ptr().add(self.start), self.length)
            },
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_and_unsplit_keep_bytes_in_place() {
        let mut head = Buffer::copy_of(&(0..=255u8).cycle().take(8192).collect::<Vec<_>>());
        let before = head.as_mut_pointer();
        let mut tail = head.split_off(4096);
        tail[0] = 99;
        assert_eq!((head.len(), tail.len()), (4096, 4096));
        head.unsplit(tail);
        assert_eq!(head.len(), 8192);
        assert_eq!(head[4096], 99);
        assert_eq!(head.as_mut_pointer(), before);
    }

    #[test]
    fn strangers_are_joined_by_copy() {
        let mut head = Buffer::copy_of(&[1; 512]);
        head.unsplit(Buffer::copy_of(&[2; 512]));
        assert_eq!(&head[511..513], &[1, 2]);
    }

    #[test]
    fn memory_is_aligned_and_zero() {
        let mut buffer = Buffer::zeroed(5 * 512);
        assert!((buffer.as_mut_pointer() as usize).is_multiple_of(MEMORY_ALIGNMENT));
        assert!(buffer.iter().all(|byte| *byte == 0));
    }
}
