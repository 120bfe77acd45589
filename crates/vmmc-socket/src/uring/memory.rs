//! What the kernel's rings look like to a process.

use std::sync::atomic::AtomicU32;

use crate::kernel::{self, Errno};

/// Where the queues begin in what is mapped, and where the entries do.
pub(crate) const QUEUES: usize = 0;
pub(crate) const ENTRIES: usize = 0x1000_0000;

/// In [`Parameters::submission`].
pub(crate) const HEAD: usize = 0;
pub(crate) const TAIL: usize = 1;
pub(crate) const FLAGS: usize = 4;
pub(crate) const ARRAY: usize = 6;
/// In [`Parameters::completion`].
pub(crate) const ANSWERS: usize = 5;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters {
    pub(crate) entries: u32,
    pub(crate) answers: u32,
    pub(crate) flags: u32,
    pub(crate) thread: [u32; 2],
    pub(crate) features: u32,
    pub(crate) reserved: [u32; 4],
    /// Head, tail, mask, entries, flags, dropped, array, reserved, address.
    pub(crate) submission: [u32; 10],
    /// Head, tail, mask, entries, overflow, entries, flags, reserved, address.
    pub(crate) completion: [u32; 10],
}

/// `struct io_uring_sqe`, as far as it is used here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) operation: u8,
    pub(crate) flags: u8,
    pub(crate) priority: u16,
    pub(crate) fd: i32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) events: u32,
    pub(crate) name: u64,
    pub(crate) more: [u64; 3],
}

/// Memory of the kernel's that this process sees.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    size: usize,
}

impl Mapping {
    pub(crate) fn new(fd: i32, offset: usize, size: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let start = kernel::call!(SYS_mmap, 0, size, protection, flags, fd, offset)?;
        Ok(Self { start: start as *mut u8, size })
    }

    /// The word `at` so many bytes.
    #[inline]
    pub(crate) fn word(&self, at: u32) -> &AtomicU32 {
        debug_assert!(at as usize + 4 <= self.size);
        // SAFETY: the kernel says where its words stand: aligned and within the size that follows from them.
        unsafe { AtomicU32::from_ptr(self.start.add(at as usize).cast()) }
    }

    /// The entry `at` this place among the entries.
    #[inline]
    pub(crate) fn entry(&self, at: u32) -> *mut Entry {
        debug_assert!((at as usize + 1) * size_of::<Entry>() <= self.size);
        // SAFETY: within the mapping.
        unsafe { self.start.cast::<Entry>().add(at as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = kernel::call!(SYS_munmap, self.start, self.size);
    }
}
