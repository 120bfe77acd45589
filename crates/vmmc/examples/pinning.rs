//! The translation table: pages are pinned when they are first looked up, and go by policy when the limit is reached.

use vmmc::Process;
use vmmc::utlb::{Access, Located, Options, Policy};

const PAGES: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limit = Options::default().limit((PAGES / 2 * 4096) as u64).policy(Policy::Lru).bounce(0);
    let process = Process::options().utlb(limit).open()?;
    let utlb = process.utlb();
    let buffer = utlb.allocate(PAGES * 4096)?;
    let page = |number: usize| buffer.as_ptr().wrapping_add(number * 4096);

    // Twice round the first four pages: four misses, then hits.
    for number in (0..4).chain(0..4) {
        match utlb.lookup(page(number), 64, Access::Read)? {
            Located::Pinned(hold) => assert_eq!(hold.len(), 64), // pinned until the hold is dropped
            Located::Bounce(_) => unreachable!("there is room"),
        }
    }
    let counters = utlb.counters();
    println!(
        "{} lookups, {} hits, {} pages pinned",
        counters.lookups,
        counters.hits(),
        counters.pins
    );

    // Half of the buffer is all that may be pinned: the oldest pages go.
    for number in 0..PAGES {
        drop(utlb.lookup(page(number), 64, Access::Read)?);
    }
    let counters = utlb.counters();
    println!("{} bytes pinned, {} pages unpinned", counters.pinned_bytes, counters.unpins);
    assert!(counters.pinned_bytes <= (PAGES / 2 * 4096) as u64);
    Ok(())
}
