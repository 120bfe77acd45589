//! A word of shared memory that the kernel marks when a thread ends, however it ends.
//!
//! The kernel keeps, for each thread, a list of locks it holds (`set_robust_list`); when the thread dies, SIGKILL
//! included, the kernel sets [`LIFE_LOST`] in each. With one such "lock" in the status table, every process that
//! maps the table sees the service's death by one load, without a system call.

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::OsError;

/// Set in the word when the thread that announced it is gone.
pub const LIFE_LOST: u32 = 0x4000_0000;

/// As `struct robust_list` and `struct robust_list_head` of `linux/futex.h`, with one entry.
#[repr(C)]
struct RobustList {
    /// Head: the first entry.
    first: *mut *mut RobustList,
    /// Head: from an entry to its word, bytes.
    word_offset: libc::c_long,
    /// Head: a lock that is being taken; none.
    pending: *mut RobustList,
    /// The entry: points back to the head, as the end of the list.
    entry: *mut RobustList,
}

/// Ties `word` to the life of the calling thread: it holds the thread's number now, and [`LIFE_LOST`] besides after its
/// end. Replaces the list that libc registered, so the thread must not use robust mutexes of libc.
///
/// # Errors
/// When the kernel has no robust futexes.
///
/// # Safety
/// `word` stays mapped, writable and at its place until the thread has ended.
pub unsafe fn announce_life(word: *const AtomicU32) -> Result<(), OsError> {
    let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    // SAFETY: the caller promises that the word is mapped.
    unsafe { &*word }.store(thread, Ordering::Release);
    let list = Box::leak(Box::new(RobustList {
        first: ptr::null_mut(),
        word_offset: 0,
        pending: ptr::null_mut(),
        entry: ptr::null_mut(),
    }));
    let head: *mut RobustList = list;
    list.entry = head;
    list.first = &raw mut list.entry;
    let distance = word.addr().wrapping_sub((&raw const list.entry).addr());
    list.word_offset = distance.cast_signed() as libc::c_long;
    // The kernel's head is the first three fields.
    let head_len = 3 * size_of::<usize>();
    // SAFETY: the list is leaked, hence valid until the thread's end; its length is what the kernel demands.
    let result = unsafe { libc::syscall(libc::SYS_set_robust_list, head, head_len) };
    if result == 0 { Ok(()) } else { Err(OsError::NOSYS) }
}
