//! Private memory that payloads are copied from and to, aligned to pages.
//!
//! The alignment is part of the measurement: `memcpy` of glibc 2.36 uses `rep movsb` for 2 KB to some
//! hundred KB on AMD Zen 3, which falls from 40 GB/s to 2 GB/s when the destination lies 1 to 63 bytes above the
//! source modulo 4096, as two blocks of the heap often do. Slots begin at a line, so a source that
//! begins at a page is never there, and all paths copy from the same place.

use std::ops::{Deref, DerefMut};

/// A page of [`Buffer`].
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Bytes that begin at a page.
#[derive(Debug)]
pub(crate) struct Buffer {
    pages: Vec<Page>,
    len: usize,
}

impl Buffer {
    /// `len` bytes of `value`.
    pub(crate) fn filled(value: u8, len: usize) -> Buffer {
        Buffer { pages: vec![Page([value; 4096]); len.div_ceil(4096)], len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are contiguous bytes without padding, and at least `len` of them.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_at_a_page_and_has_its_length() {
        for len in [0, 1, 4096, 5000] {
            let mut buffer = Buffer::filled(7, len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 4096), (len, 0));
            assert!(buffer.iter().all(|byte| *byte == 7));
            buffer.fill(8);
            assert!(buffer.iter().all(|byte| *byte == 8));
        }
    }
}
