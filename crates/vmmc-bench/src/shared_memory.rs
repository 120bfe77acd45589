//! The best that can be written by hand: a bare shared mapping, plain copies, atomic words, no checks.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::BenchError;
use crate::memory::{INBOX, Memory};

/// A mapping shared by two processes that trust each other.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, all pages present.
    pub(crate) fn of(file: impl AsFd, len: usize) -> Result<Mapping, BenchError> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address the system chooses overlaps nothing.
        let start = unsafe {
            mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0)
        }
        .map_err(|cause| BenchError::os("map shared memory", cause))?;
        Ok(Mapping { start: start.cast(), len })
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// The word at `at`, which must lie in the mapping and be aligned to 8 bytes.
    #[inline(always)]
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: in range and aligned (the caller's promise, checked in debug builds); both
        // processes access words only atomically; the mapping lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.start.add(at).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are a mapping that only this value owns. It can only fail for
        // arguments that mmap would not have given.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

/// Nameless memory of `len` bytes.
pub(crate) fn nameless_memory(len: usize) -> Result<OwnedFd, BenchError> {
    let file = memfd_create("vmmc-bench", MemfdFlags::CLOEXEC)
        .map_err(|cause| BenchError::os("make nameless memory", cause))?;
    ftruncate(&file, len as u64)
        .map_err(|cause| BenchError::os("give nameless memory its length", cause))?;
    Ok(file)
}

/// Both inboxes in bare shared memory.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    ours: Mapping,
    theirs: Mapping,
}

impl SharedMemory {
    pub(crate) fn new(ours: impl AsFd, theirs: impl AsFd) -> Result<SharedMemory, BenchError> {
        Ok(SharedMemory { ours: Mapping::of(ours, INBOX)?, theirs: Mapping::of(theirs, INBOX)? })
    }
}

impl Memory for SharedMemory {
    #[inline(always)]
    fn send(&self, at: usize, bytes: &[u8]) -> Result<(), BenchError> {
        debug_assert!(at + bytes.len() <= INBOX);
        // SAFETY: the range is in the other's inbox; the protocol of the measurement lets nobody
        // else touch it until the next signal word.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.theirs.start.add(at), bytes.len()) };
        Ok(())
    }

    #[inline(always)]
    fn signal(&self, at: usize, word: u64) -> Result<(), BenchError> {
        self.theirs.word(at).store(word, Ordering::Release);
        Ok(())
    }

    #[inline(always)]
    fn send_signal(
        &self,
        at: usize,
        bytes: &[u8],
        word_at: usize,
        word: u64,
    ) -> Result<(), BenchError> {
        self.send(at, bytes)?;
        self.signal(word_at, word)
    }

    #[inline(always)]
    fn fetch(&self, at: usize, into: &mut [u8]) -> Result<(), BenchError> {
        debug_assert!(at + into.len() <= INBOX);
        // SAFETY: the range is in the other's inbox, which its owner does not write until asked to.
        unsafe {
            ptr::copy_nonoverlapping(self.theirs.start.add(at), into.as_mut_ptr(), into.len());
        }
        Ok(())
    }

    #[inline(always)]
    fn load_signal(&self, at: usize) -> u64 {
        self.ours.word(at).load(Ordering::Acquire)
    }

    #[inline(always)]
    fn inbox(&self) -> *mut u8 {
        self.ours.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_sends_the_other_finds() {
        let (left, right) = (nameless_memory(INBOX).unwrap(), nameless_memory(INBOX).unwrap());
        let a = SharedMemory::new(&left, &right).unwrap();
        let b = SharedMemory::new(&right, &left).unwrap();
        a.send_signal(64, b"over", 8, 9).unwrap();
        assert_eq!(b.load_signal(8), 9);
        // SAFETY: the word is there, and nobody writes any more.
        assert_eq!(unsafe { crate::memory::received(b.inbox(), 64, 4) }, b"over");
        let mut fetched = [0; 4];
        a.fetch(64, &mut fetched).unwrap();
        assert_eq!(&fetched, b"over");
    }
}
