//! What this thread is and where it runs, without a system call.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use vmmc::clock::{MICROSECOND, ticks};

use crate::kernel;

/// Counts forks, so that a child does not go on with its parent's thread id.
static FORKS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static ID: Cell<(u32, u32)> = const { Cell::new((0, u32::MAX)) };
}

/// This thread's kernel id.
#[inline]
pub(crate) fn id() -> u32 {
    let forks = FORKS.load(Ordering::Relaxed);
    let (id, asked) = ID.get();
    if asked == forks {
        return id;
    }
    let id = kernel::thread_id();
    ID.set((id, forks));
    id
}

/// Whether this process has no other thread: nobody else takes the locks that processes do not share. The C library
/// (glibc 2.32 or later) keeps this for its own locks.
#[inline]
pub(crate) fn alone() -> bool {
    unsafe extern "C" {
        static __libc_single_threaded: libc::c_char;
    }
    // SAFETY: the C library writes it only before a second thread runs, so a thread that finds itself alone is.
    unsafe { (&raw const __libc_single_threaded).read_volatile() != 0 }
}

/// Called in a new child of fork.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The processor this thread runs on (read from the kernel's rseq area by the C library, no call).
#[inline]
pub(crate) fn processor() -> u32 {
    // SAFETY: takes no argument and cannot fail on Linux.
    unsafe { libc::sched_getcpu() as u32 }
}
