//! As much of io_uring as it takes to wait for one file.
//!
//! The crate for it makes its calls by the C library's `syscall`, which this layer hooks, and cannot move its descriptor out of the
//! program's way.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::descriptor::Own;
use crate::kernel::{self, Errno};

/// A queue of one entry, and its answers.
#[derive(Debug)]
pub(super) struct Ring {
    fd: Own,
    queues: Mapping,
    entries: Mapping,
    offsets: Offsets,
}

/// Where in `queues` the words stand, in bytes.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    submitted: u32,
    flags: u32,
    answered: u32,
    taken: u32,
}

const SINGLE_MAPPING: u32 = 1;
const TASKRUN_FLAG: u32 = 1 << 9;
const SINGLE_ISSUER: u32 = 1 << 12;
const DEFER_TASKRUN: u32 = 1 << 13;
const QUEUES: usize = 0;
const ENTRIES: usize = 0x1000_0000;
const POLL_ADD: u8 = 6;
const GET_EVENTS: u32 = 1;
/// In the flags: there is something to be fetched by a call.
const SOMETHING: u32 = 1 << 1 | 1 << 2;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Debug, Default)]
struct Parameters {
    entries: u32,
    answers: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    reserved: [u32; 4],
    /// Head, tail, mask, entries, flags, dropped, array, reserved, address.
    submission: [u32; 10],
    /// Head, tail, mask, entries, overflow, entries, flags, reserved, address.
    completion: [u32; 10],
}

/// `struct io_uring_sqe`, as far as `POLL_ADD` uses it.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    operation: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    unused: [u64; 2],
    length: u32,
    events: u32,
    more: [u64; 4],
}

impl Ring {
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG;
        let mut parameters = Parameters { flags, ..Parameters::default() };
        let fd = Own::raise(kernel::call!(SYS_io_uring_setup, 1, &raw mut parameters)?)?;
        let Parameters { submission, completion, features, .. } = parameters;
        if features & SINGLE_MAPPING == 0 {
            return Err(Errno(libc::ENOSYS));
        }
        let (array, answers) = (submission[6], completion[5]);
        // One entry of four bytes in the array, answers of 16 bytes.
        let size = (array as usize + 4).max(answers as usize + 16 * parameters.answers as usize);
        let queues = Mapping::new(fd.number(), QUEUES, size)?;
        let entries = Mapping::new(fd.number(), ENTRIES, size_of::<Entry>())?;
        let offsets = Offsets {
            submitted: submission[1],
            flags: submission[4],
            answered: completion[1],
            taken: completion[0],
        };
        queues.word(array).store(0, Ordering::Relaxed);
        Ok(Self { fd, queues, entries, offsets })
    }

    /// Whether nothing has come of what it waits for.
    #[inline]
    pub(super) fn is_silent(&self) -> bool {
        let Offsets { flags, answered, taken, .. } = self.offsets;
        let word = |at| self.queues.word(at).load(Ordering::Acquire);
        word(flags) & SOMETHING == 0 && word(answered) == word(taken)
    }

    /// Waits for `fd` to become readable, once.
    pub(super) fn wait_for(&self, fd: i32) -> Result<(), Errno> {
        let entry = Entry {
            operation: POLL_ADD,
            flags: 0,
            priority: 0,
            fd,
            unused: [0; 2],
            length: 0,
            events: libc::POLLIN as u32,
            more: [0; 4],
        };
        // SAFETY: the mapping is page-aligned, has room for one entry, and the kernel reads it only in the call below.
        unsafe { self.entries.start.cast::<Entry>().write_volatile(entry) };
        self.queues.word(self.offsets.submitted).fetch_add(1, Ordering::Release);
        match kernel::call!(SYS_io_uring_enter, self.fd.number(), 1, 0, 0, 0, 0)? {
            1 => Ok(()),
            _ => Err(Errno::AGAIN),
        }
    }

    /// Takes the answer; whether there was one.
    pub(super) fn take(&self) -> Result<bool, Errno> {
        kernel::call!(SYS_io_uring_enter, self.fd.number(), 0, 0, GET_EVENTS, 0, 0)?;
        let answered = self.queues.word(self.offsets.answered).load(Ordering::Acquire);
        Ok(self.queues.word(self.offsets.taken).swap(answered, Ordering::Release) != answered)
    }
}

/// Memory of the kernel's that this process sees.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    size: usize,
}

impl Mapping {
    fn new(fd: i32, offset: usize, size: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let start = kernel::call!(SYS_mmap, 0, size, protection, flags, fd, offset)?;
        Ok(Self { start: start as *mut u8, size })
    }

    /// The word `at` so many bytes.
    #[inline]
    fn word(&self, at: u32) -> &AtomicU32 {
        debug_assert!(at as usize + 4 <= self.size);
        // SAFETY: the kernel says where its words stand: aligned and within the size that follows from them.
        unsafe { AtomicU32::from_ptr(self.start.add(at as usize).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = kernel::call!(SYS_munmap, self.start, self.size);
    }
}
