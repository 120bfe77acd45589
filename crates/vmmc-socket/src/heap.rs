//! The memory that the layer takes for itself, apart from the program's.
//!
//! A handler of the program's may use a socket, as `send` and its like are async-signal-safe, whatever it has interrupted; `malloc` is not. Were
//! the layer's memory from there, such a handler would wait for a lock that the thread below it holds.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use dlmalloc::Dlmalloc;

use crate::guarded::Guarded;
use crate::layer;

static HEAP: Guarded<Dlmalloc> = Guarded::new(Dlmalloc::new());

/// For a library that is put before the C library: its `#[global_allocator]`. It calls nothing of the C library's but `mmap` and its like.
#[derive(Debug)]
pub struct Heap;

/// `None`: the program is under a system call filter, so that no handler is put off, and this is one that came in here.
fn with<R>(use_it: impl FnOnce(&mut Dlmalloc) -> R) -> Option<R> {
    if layer::confined() { HEAP.borrow_once(use_it) } else { Some(HEAP.briefly(use_it)) }
}

// SAFETY: blocks are as large and aligned as was asked for, and are given back to the heap that they are from. Nothing here unwinds: outside of a
// filter nobody comes in while `HEAP` is borrowed, as handlers are put off, or all signals blocked.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let block = with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) });
        block.unwrap_or(ptr::null_mut())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let block = with(|heap| unsafe { heap.calloc(layout.size(), layout.align()) });
        block.unwrap_or(ptr::null_mut())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as promised to this function. Where the heap is not to be had the block stays.
        let _ = with(|heap| unsafe { heap.free(block, layout.size(), layout.align()) });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as promised to this function.
        let block =
            with(|heap| unsafe { heap.realloc(block, layout.size(), layout.align(), size) });
        block.unwrap_or(ptr::null_mut())
    }
}

/// Until [`release_after_fork`] no other thread is at work on it: the child gets it whole.
pub(crate) fn hold_for_fork() {
    HEAP.hold_for_fork(|_| ());
    HEAP.lend();
}

/// In the parent or in the child.
pub(crate) fn release_after_fork() {
    HEAP.release_after_fork();
}
