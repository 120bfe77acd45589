//! Where in a stream memory the bytes lie.

use crate::copy;

/// Start of the smallest ring, after the [`super::Words`].
const SMALL_AT: usize = 512;
/// First byte after the page that every connection has.
const MEDIUM_AT: usize = 4096;
const BULK_AT: usize = MEDIUM_AT + (64 << 10);

/// Sizes of ring. They lie apart, so that a stream can go on in a larger one while bytes in the smaller are still
/// unread: what a kernel connection would buffer for a reader that does not read, the three together do too.
///
/// A connection begins with what is left of its first page, so that an idle one costs one page a
/// direction and many small ones stay inside the cache; bulk wants a ring larger than the second-level cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    /// 3.5 KiB in the first page.
    Page = 0,
    /// 64 KiB.
    Medium = 1,
    /// 4 MiB, of which 2 MiB may be unread.
    Bulk = 2,
}

impl Tier {
    /// Bytes of stream memory that the largest tier needs.
    pub const MEMORY: usize = Self::Bulk.end();
    /// Bytes of stream memory that the smallest tier needs.
    pub const FIRST: usize = MEDIUM_AT;

    /// Where the ring of this tier starts in the memory, in bytes.
    pub const fn start(self) -> usize {
        match self {
            Self::Page => SMALL_AT,
            Self::Medium => MEDIUM_AT,
            Self::Bulk => BULK_AT,
        }
    }

    /// Bytes in the ring of this tier.
    pub const fn capacity(self) -> usize {
        match self {
            Self::Page => MEDIUM_AT - SMALL_AT,
            Self::Medium => BULK_AT - MEDIUM_AT,
            Self::Bulk => 4 << 20,
        }
    }

    /// How many bytes of the ring may be unread at a time.
    ///
    /// The rest of the bulk ring is distance: what is written next was read so long ago that it has left the reader's
    /// second-level cache (1 MiB on Zen 4 and 5, 2 MiB on current Intel), where each line would have to be fetched from first.
    /// Without it, a writer that waits for room writes over what the reader has just read ("What bounds a large message"
    /// in `docs/hot-path.md`).
    pub const fn window(self) -> usize {
        match self {
            Self::Page | Self::Medium => self.capacity(),
            Self::Bulk => 2 << 20,
        }
    }

    /// How much of the memory must be mapped to use this tier, in bytes.
    pub const fn end(self) -> usize {
        self.start() + self.capacity()
    }

    /// The next larger tier.
    pub const fn larger(self) -> Option<Self> {
        match self {
            Self::Page => Some(Self::Medium),
            Self::Medium => Some(Self::Bulk),
            Self::Bulk => None,
        }
    }

    pub(crate) fn nth(number: u32) -> Self {
        match number {
            0 => Self::Page,
            1 => Self::Medium,
            _ => Self::Bulk,
        }
    }
}

/// The bytes of a ring in mapped memory. Copying in and out handles the seam.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    base: *mut u8,
    capacity: usize,
}

impl Ring {
    /// The ring of `tier` in the stream memory that begins at `memory`.
    ///
    /// # Safety
    /// At least [`Tier::end`] bytes from `memory` on are mapped readable and writable for as long as the ring is used.
    pub unsafe fn new(memory: *mut u8, tier: Tier) -> Self {
        // SAFETY: the caller promises that the range up to `tier.end()` is mapped.
        Self { base: unsafe { memory.add(tier.start()) }, capacity: tier.capacity() }
    }

    /// Bytes in the ring.
    pub fn capacity(self) -> usize {
        self.capacity
    }

    /// The contiguous part of `[position, position + len)` that starts at `position`: its address and length.
    pub fn span(self, position: usize, len: usize) -> (*mut u8, usize) {
        debug_assert!(position < self.capacity);
        let contiguous = len.min(self.capacity - position);
        // SAFETY: `position < capacity`, and the whole ring is mapped (`Ring::new`).
        (unsafe { self.base.add(position) }, contiguous)
    }

    /// `position` moved on by `len`, which is at most the capacity.
    pub fn advance(self, position: usize, len: usize) -> usize {
        let next = position + len;
        if next >= self.capacity { next - self.capacity } else { next }
    }

    /// Copies `len` bytes out of the ring from `position` on.
    ///
    /// # Safety
    /// `to` is valid for writing `len` bytes and is no part of the ring; `position < capacity`, `len <= capacity`.
    #[inline]
    pub unsafe fn copy_out(self, position: usize, to: *mut u8, len: usize) {
        let (from, first) = self.span(position, len);
        // SAFETY: both parts lie inside the ring; the caller vouches for `to`. The peer may write the ring meanwhile:
        // the copy then holds bytes of either age, which spoils only that peer's own stream.
        unsafe {
            copy(from, to, first);
            if first < len {
                copy(self.base, to.add(first), len - first);
            }
        }
    }

    /// Copies `len` bytes into the ring at `position`.
    ///
    /// # Safety
    /// `from` is valid for reading `len` bytes and is no part of the ring; `position < capacity`, `len <= capacity`.
    #[inline]
    pub unsafe fn copy_in(self, position: usize, from: *const u8, len: usize) {
        let (to, first) = self.span(position, len);
        // SAFETY: both parts lie inside the ring; the caller vouches for `from`.
        unsafe {
            copy(from, to, first);
            if first < len {
                copy(from.add(first), self.base, len - first);
            }
        }
    }
}
