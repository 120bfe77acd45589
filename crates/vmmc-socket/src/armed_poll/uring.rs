//! As much of io_uring as it takes to wait for one file.
//!
//! The crate for it makes its calls by the C library's `syscall`, which this layer hooks, and cannot move its descriptor out of the
//! program's way.

use std::sync::atomic::Ordering;

use crate::descriptor::Own;
use crate::kernel::{self, Errno};
use crate::uring::memory::{
    ANSWERS, ARRAY, ENTRIES, Entry, FLAGS, HEAD, Mapping, Parameters, QUEUES, TAIL,
};

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
const POLL_ADD: u8 = 6;
const GET_EVENTS: u32 = 1;
/// In the flags: there is something to be fetched by a call.
const SOMETHING: u32 = 1 << 1 | 1 << 2;

impl Ring {
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG;
        let mut parameters = Parameters { flags, ..Parameters::default() };
        let fd = Own::raise(kernel::call!(SYS_io_uring_setup, 1, &raw mut parameters)?)?;
        let Parameters { submission, completion, features, .. } = parameters;
        if features & SINGLE_MAPPING == 0 {
            return Err(Errno(libc::ENOSYS));
        }
        let (array, answers) = (submission[ARRAY], completion[ANSWERS]);
        // One entry of four bytes in the array, answers of 16 bytes.
        let size = (array as usize + 4).max(answers as usize + 16 * parameters.answers as usize);
        let queues = Mapping::new(fd.number(), QUEUES, size)?;
        let entries = Mapping::new(fd.number(), ENTRIES, size_of::<Entry>())?;
        let offsets = Offsets {
            submitted: submission[TAIL],
            flags: submission[FLAGS],
            answered: completion[TAIL],
            taken: completion[HEAD],
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
        let events = libc::POLLIN as u32;
        let entry = Entry { operation: POLL_ADD, fd, events, ..Entry::default() };
        // SAFETY: the mapping is page-aligned, has room for one entry, and the kernel reads it only in the call below.
        unsafe { self.entries.entry(0).write_volatile(entry) };
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
