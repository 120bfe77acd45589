//! Waiting without sleeping: short, and never at the expense of the one who is waited for.
//!
//! Waking a sleeper on another processor costs 30 to 50 µs, so that is how long it pays to look; a budget that could
//! shrink below the cost of a wake would stick in sleeping. On the same processor the peer can only run when this thread
//! gives way.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::kernel;
use crate::thread::{self, MICROSECOND};

static BUDGET: AtomicU64 = AtomicU64::new(50 * MICROSECOND);
/// Times to give way to a peer on the same processor before sleeping.
const YIELDS: u32 = 20;

/// Sets how long to spin at the most, in microseconds; 0 never spins.
pub(crate) fn set_budget(microseconds: u64) {
    BUDGET.store(microseconds * MICROSECOND, Ordering::Relaxed);
}

/// Looks with `ready` for a bounded time. `peer` is one more than the peer's processor, 0 if unknown.
#[inline]
pub(crate) fn until(peer: impl Fn() -> u32, mut ready: impl FnMut() -> bool) -> bool {
    if ready() {
        return true;
    }
    let budget = BUDGET.load(Ordering::Relaxed);
    if budget == 0 {
        return false;
    }
    let start = thread::ticks();
    let mut yields = 0;
    loop {
        if peer() == thread::processor().wrapping_add(1) {
            if yields == YIELDS {
                return false;
            }
            yields += 1;
            kernel::give_way();
            if ready() {
                return true;
            }
        } else {
            for _ in 0..24 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if thread::ticks().wrapping_sub(start) > budget {
                return false;
            }
        }
    }
}
