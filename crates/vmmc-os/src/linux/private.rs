//! Private memory of this process, straight from the system.

use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, ProtFlags};

use crate::OsError;

/// Whole pages that nobody else has mapped, all zero at first; they cost memory when they are touched. Unmapped when dropped.
#[derive(Debug)]
pub struct PrivateMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: memory belongs to the address space, not to a thread; access to its bytes is up to the users of the raw pointer.
unsafe impl Send for PrivateMemory {}
// SAFETY: as above; `&PrivateMemory` gives out only the address and the length.
unsafe impl Sync for PrivateMemory {}

impl PrivateMemory {
    /// At least `len` bytes.
    ///
    /// # Errors
    /// When `len` is 0, or address space is exhausted.
    pub fn new(len: usize) -> Result<Self, OsError> {
        let page = crate::page_size();
        let len = len.checked_next_multiple_of(page).ok_or(OsError::NOMEM)?;
        // Miri knows no other flag.
        let more = if cfg!(miri) { MapFlags::empty() } else { MapFlags::NORESERVE };
        let flags = MapFlags::PRIVATE | more;
        // SAFETY: the kernel chooses an address range that nobody uses.
        let start = unsafe {
            mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or(OsError::NOMEM)
    }

    /// First byte; valid for `len()` bytes as long as `self` lives.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes, a multiple of the page size.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for PrivateMemory {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us; users of the pointer promised not to use it longer than `self` lives.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Tells a forked child from the process that made this, by one load.
#[derive(Debug)]
pub struct ForkMark(PrivateMemory);

impl ForkMark {
    /// A mark of this process.
    ///
    /// # Errors
    /// When address space is exhausted.
    pub fn new() -> Result<Self, OsError> {
        let memory = PrivateMemory::new(1)?;
        // SAFETY: the range is ours, private and anonymous; what the kernel is told takes effect in children only.
        unsafe {
            if !cfg!(miri) {
                mm::madvise(memory.as_ptr().cast(), memory.len(), mm::Advice::LinuxWipeOnFork)?;
            }
            memory.as_ptr().write_volatile(1);
        }
        Ok(Self(memory))
    }

    /// Whether this is a child that was forked since.
    #[inline]
    pub fn is_forked(&self) -> bool {
        // SAFETY: the page is mapped as long as `self`, and nobody writes it any more; in a child it is empty.
        unsafe { self.0.as_ptr().read_volatile() == 0 }
    }
}
