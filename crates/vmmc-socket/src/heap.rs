//! The memory that the layer takes for itself, apart from the program's.
//!
//! A handler of the program's may use a socket, as `send` and its like are async-signal-safe, whatever it has interrupted; `malloc` is not. Were
//! the layer's memory from there, such a handler would wait for a lock that the thread below it holds.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dlmalloc::Allocator;

use crate::guarded::Guarded;
use crate::{kernel, layer};

type Dlmalloc = dlmalloc::Dlmalloc<Pages>;

static HEAP: Guarded<Dlmalloc> = Guarded::new(Dlmalloc::new_with_allocator(Pages));

/// Where the heap's memory is from: the kernel, by calls of its own, which leave no trace in `errno`.
struct Pages;

/// For a process that may have no more memory (`RLIMIT_AS`, say): to be out of memory in the midst of a call would be its end. Pages of it that are not
/// used cost nothing.
#[repr(align(4096))]
struct Reserve(UnsafeCell<[u8; RESERVE]>);

const RESERVE: usize = 512 << 10;

// SAFETY: each part is given away once, to the heap.
unsafe impl Sync for Reserve {}

static LAST: Reserve = Reserve(UnsafeCell::new([0; RESERVE]));
static GIVEN: AtomicUsize = AtomicUsize::new(0);
static SHORT: AtomicBool = AtomicBool::new(false);

/// Whether the kernel has refused memory once: from then on no more connections are followed.
#[inline]
pub(crate) fn is_short() -> bool {
    SHORT.load(Ordering::Relaxed)
}

/// A part of the reserve, which the heap does not give back.
#[cold]
fn from_reserve(size: usize) -> (*mut u8, usize, u32) {
    const NOT_OURS_TO_FREE: u32 = 1;
    SHORT.store(true, Ordering::Relaxed);
    let take = |given: usize| given.checked_add(size).filter(|given| *given <= RESERVE);
    match GIVEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        Ok(given) => (LAST.0.get().cast::<u8>().wrapping_add(given), size, NOT_OURS_TO_FREE),
        Err(_) => (ptr::null_mut(), 0, 0),
    }
}

fn is_reserve(block: *mut u8) -> bool {
    let begin = LAST.0.get().addr();
    (begin..begin + RESERVE).contains(&block.addr())
}

// SAFETY: what is told to be there is there, zeroed, until it is told to be given back.
unsafe impl Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        match kernel::call!(SYS_mmap, 0, size, access, flags, -1isize, 0) {
            Ok(address) => (address as *mut u8, size, 0),
            Err(_) => from_reserve(size),
        }
    }

    fn remap(&self, block: *mut u8, old: usize, new: usize, can_move: bool) -> *mut u8 {
        if is_reserve(block) {
            return ptr::null_mut();
        }
        let flags = if can_move { libc::MREMAP_MAYMOVE } else { 0 };
        let moved = kernel::call!(SYS_mremap, block, old, new, flags);
        moved.map_or(ptr::null_mut(), |address| address as *mut u8)
    }

    fn free_part(&self, block: *mut u8, old: usize, new: usize) -> bool {
        !is_reserve(block) && kernel::call!(SYS_munmap, block.wrapping_add(new), old - new).is_ok()
    }

    fn free(&self, block: *mut u8, size: usize) -> bool {
        !is_reserve(block) && kernel::call!(SYS_munmap, block, size).is_ok()
    }

    fn can_release_part(&self, flags: u32) -> bool {
        flags == 0
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

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
