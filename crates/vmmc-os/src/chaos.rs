//! Pauses at random, where the scheduler could make one: only in builds for tests (`--cfg chaos`), so that what processes do at the same
//! moment meets in every order, and not in the usual one. `rr` has such a mode, and the name.

use std::hint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The longest pause, in microseconds.
const LONGEST: u64 = 3000;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// Pauses in so many of a thousand calls, for up to 3 ms. It spins: whoever waits until this process sleeps must not take this for it,
/// and a system call would be one too many for a program under a filter.
pub fn pause(permille: u64) {
    let random = mix(CALLS.fetch_add(1, Ordering::Relaxed) ^ now().rotate_left(32));
    if random % 1000 >= permille {
        return;
    }
    let (start, pause) = (Instant::now(), Duration::from_micros((random >> 32) % LONGEST));
    while start.elapsed() < pause {
        hint::spin_loop();
    }
}

/// Differs between processes, and between calls.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

/// The finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
