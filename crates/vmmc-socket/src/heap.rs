//! The memory that the layer takes for itself, apart from the program's.
//!
//! A handler of the program's may use a socket, as `send` and its like are async-signal-safe, whatever it has interrupted; `malloc` is not. Were
//! the layer's memory from there, such a handler would wait for a lock that the thread below it holds.

use std::alloc::{GlobalAlloc, Layout};

use dlmalloc::Dlmalloc;

use crate::guarded::Guarded;

static HEAP: Guarded<Dlmalloc> = Guarded::new(Dlmalloc::new());

/// For a library that is put before the C library: its `#[global_allocator]`. It calls nothing of the C library's but `mmap` and its like.
#[derive(Debug)]
pub struct Heap;

// SAFETY: blocks are as large and aligned as was asked for, and are given back to the heap that they are from; no use of it unwinds, as nobody
// comes in while it is at work: handlers are put off, or all signals blocked.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        HEAP.briefly(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        HEAP.briefly(|heap| unsafe { heap.calloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as promised to this function.
        HEAP.briefly(|heap| unsafe { heap.free(block, layout.size(), layout.align()) });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as promised to this function.
        HEAP.briefly(|heap| unsafe { heap.realloc(block, layout.size(), layout.align(), size) })
    }
}

/// Until [`release_after_fork`] no other thread is at work on it: the child gets it whole.
pub(crate) fn hold_for_fork() {
    HEAP.hold_for_fork(|_| ());
}

/// In the parent or in the child.
pub(crate) fn release_after_fork() {
    HEAP.release_after_fork();
}
