//! A link in its steady state takes no memory.

mod pair;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use pair::Pair;
use vmmc_link::{Binding, Buffer, Config};

/// Counts what is allocated.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is done by the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_link_that_works_allocates_nothing() {
    // A prime, so that other packets are lost every time.
    let mut pair = Pair::new(&Config::default(), 97);
    let import = pair.links[0].import(Binding { export: 0, capability: 0 }).unwrap();
    let mut work = |times: usize| {
        for time in 0..times {
            let link = &mut pair.links[0];
            let _ = link.send(import, 0, Buffer(0), 0, 60_000);
            let _ = link.signal(import, 0, 1);
            if time % 7 == 0 {
                let _ = link.fetch(import, 0, Buffer(1), 0, 20_000);
            }
            // Until it is done, so that what waits does not grow.
            while !pair.links[0].is_idle() {
                pair.step();
            }
        }
    };
    // Tables grow to what is needed.
    work(2000);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work(1000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
