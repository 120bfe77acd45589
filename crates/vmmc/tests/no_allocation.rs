//! The data path allocates nothing: counted by the allocator of this test program.

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use harness::Node;
use vmmc::ImportSource;

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it came; the counter is a plain cell that needs no
// allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(of: impl FnOnce()) -> usize {
    let before = COUNT.get();
    of();
    COUNT.get() - before
}

#[test]
fn small_transfers_allocate_nothing() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(1 << 20).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    let (bytes, mut found) = (vec![7; 4096], vec![0; 4096]);
    let mut owned = vec![1; 256 * 1024];
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0; 8]))), 1, "the counter counts");
    let count = allocations(|| {
        for round in 1..=100 {
            import.send(0, &bytes).unwrap();
            import.send_signal(0, &bytes, 4096, round).unwrap();
            import.send_vectored(&[(0, &bytes), (8000, &bytes)]).unwrap();
            import.fetch(0, &mut found).unwrap();
            import.fetch_vectored(&mut [(0, &mut found)]).unwrap();
            import.send_async(0, [round as u8; 8]).wait().result.unwrap();
            import.signal_async(8, round).wait().result.unwrap();
            owned = import.send_async(16, std::mem::take(&mut owned)).wait().buffer;
            owned = import.fetch_async(16, std::mem::take(&mut owned)).wait().buffer;
            import.flush().unwrap();
            assert_eq!(export.load_signal(8), Ok(round));
        }
    });
    assert_eq!(count, 0);
    // A vector: an array of this size is moved so often without optimization that a thread's stack may not hold it.
    let large = vec![0; 300 * 1024];
    let large = allocations(|| import.send_async(0, large).wait().result.unwrap());
    assert!(large > 0, "what goes to the engine is kept somewhere");
}
