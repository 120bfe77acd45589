//! Mappings of shared memory into this address space.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, MremapFlags, ProtFlags};

use crate::OsError;

/// What a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Loads only; a store faults.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

/// A range of shared memory mapped here; unmapped when dropped.
///
/// Another process may change the bytes at any time: never make a reference to them, copy first and check the copy.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the address space, not to a thread; access to its bytes is up to the users of the
// raw pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out only the address and the length, and `duplicate`, which the kernel serialises.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `memory` from `offset` on (whole pages).
    ///
    /// # Errors
    /// When address space or map entries are exhausted, or the descriptor does not allow the access.
    pub fn new(
        memory: impl AsFd,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<Self, OsError> {
        let protection = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: the kernel chooses an address range that nobody uses.
        let start = unsafe {
            mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, memory, offset)
        }?;
        Self::adopt(start.cast(), len)
    }

    /// Maps fresh memory, all zero, that nobody shares: it stands for shared memory where there is none to be had, under Miri.
    ///
    /// # Errors
    /// When memory or address space are exhausted.
    pub fn unshared(len: usize) -> Result<Self, OsError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address range that nobody uses.
        let start =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
        Self::adopt(start.cast(), len)
    }

    /// Maps the first `len` bytes of the *same* memory once more, without a descriptor of it. `len` may be larger than
    /// this mapping (but not than the memory: touching what lies beyond its end raises SIGBUS).
    ///
    /// # Errors
    /// When address space or map entries are exhausted.
    pub fn duplicate(&self, len: usize) -> Result<Self, OsError> {
        if len == 0 {
            return Err(OsError::INVAL);
        }
        // SAFETY: with old size 0 the kernel leaves the old mapping alone and makes a second one of the same shared
        // file at an address of its choice; `self` keeps the old one mapped during the call.
        let start =
            unsafe { mm::mremap(self.start.as_ptr().cast(), 0, len, MremapFlags::MAYMOVE) }?;
        Self::adopt(start.cast(), len)
    }

    /// Gives the pages of `range` (in bytes, page-aligned, inside the mapping) back to the system, for all who have the memory
    /// mapped: they read as zero until they are written again. The mapping must be writable.
    ///
    /// # Errors
    /// When the range is not as it must be, or the memory is sealed against writing.
    pub fn discard(&self, range: std::ops::Range<usize>) -> Result<(), OsError> {
        if range.start > range.end || range.end > self.len {
            return Err(OsError::INVAL);
        }
        // SAFETY: the range lies in this mapping, of a shared file; users of the pointer are told what becomes of the bytes, and
        // by `Mapping`'s contract nobody has references to them.
        unsafe {
            let start = self.start.as_ptr().add(range.start);
            mm::madvise(start.cast(), range.len(), mm::Advice::LinuxRemove)
        }
    }

    /// First byte; valid for `len()` bytes as long as `self` lives.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    fn adopt(start: *mut u8, len: usize) -> Result<Self, OsError> {
        NonNull::new(start).map(|start| Self { start, len }).ok_or(OsError::NOMEM)
    }
}

impl Mapping {
    /// Copies the first bytes to `bytes` by the kernel: where the memory behind them cannot be had (another process has given it back,
    /// and there is none) that is an error, not a signal that ends this process.
    ///
    /// # Errors
    /// When the memory cannot be had, or `bytes` is longer than the mapping.
    pub fn copy_out(&self, bytes: &mut [u8]) -> Result<(), OsError> {
        if bytes.len() > self.len {
            return Err(OsError::INVAL);
        }
        let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let from = libc::iovec { iov_base: self.start.as_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel writes to `bytes` alone, as many as there are; what it reads it checks itself.
        let copied = unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const to, 1, &raw const from, 1, 0)
        };
        if copied == bytes.len() as isize { Ok(()) } else { Err(OsError::FAULT) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us and nobody else unmaps it; users of the pointer promised not to use it
        // longer than `self` lives. An error would mean that the range is not page-aligned, which it is.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Replaces the pages at `start` by those of `memory`, at the same address.
///
/// # Errors
/// When map entries are exhausted; the old pages are still there then.
///
/// # Safety
/// `start` and `len` are page-aligned and name memory of the caller's that nobody else unmaps or relies on being
/// private, and nobody writes it while the call runs.
pub unsafe fn share_in_place(memory: impl AsFd, start: *mut u8, len: usize) -> Result<(), OsError> {
    // SAFETY: the caller owns the range, so replacing its pages hurts nobody.
    unsafe {
        mm::mmap(
            start.cast(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::FIXED,
            memory,
            0,
        )
    }
    .map(drop)
}

/// Replaces the shared pages at `start` by fresh private ones with the same contents, at the same address: whoever
/// still has the shared memory mapped then writes to pages that nobody here looks at.
///
/// # Errors
/// When memory or map entries are exhausted; the shared pages are still there then.
///
/// # Safety
/// As [`share_in_place`], for a range that was shared by it.
pub unsafe fn detach_in_place(start: *mut u8, len: usize) -> Result<(), OsError> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses an unused range for the fresh pages.
    let fresh = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
    // SAFETY: both ranges are mapped for `len` bytes and do not overlap; a peer may change the source meanwhile, which
    // a byte copy tolerates.
    unsafe { ptr::copy_nonoverlapping(start, fresh.cast::<u8>(), len) };
    // SAFETY: moves the fresh pages, which only we know, over the caller's range in one step.
    let moved = unsafe { mm::mremap_fixed(fresh, len, len, MremapFlags::MAYMOVE, start.cast()) };
    if let Err(error) = moved {
        // SAFETY: the fresh range is still ours alone.
        let _ = unsafe { mm::munmap(fresh, len) };
        return Err(error);
    }
    Ok(())
}
