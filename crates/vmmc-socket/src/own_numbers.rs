//! Where the layer keeps descriptors of its own, out of the program's way.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::layer::{self, STRUCTURE, Structure};
use crate::{descriptor, heap, kernel, park, thread};

/// From this number on.
static FLOOR: AtomicI32 = AtomicI32::new(0);
/// The lowest that there was: a program that has lowered its limits has them below.
static LOWEST: AtomicI32 = AtomicI32::new(i32::MAX);

/// When the layer is switched on.
pub(crate) fn begin() {
    FLOOR.store(choose_floor(), Ordering::Relaxed);
}

/// One of the layer's own has this number.
pub(crate) fn note(fd: i32) {
    LOWEST.fetch_min(fd, Ordering::Relaxed);
}

/// Below this number none is, nor will be unless the program lowers its limits.
#[inline]
pub(crate) fn lowest() -> i32 {
    floor().min(LOWEST.load(Ordering::Relaxed))
}

/// Descriptors of the layer's own get numbers from here on, so that the program's own numbers stay as they would be.
pub(crate) fn floor() -> i32 {
    FLOOR.load(Ordering::Relaxed)
}

/// Whether one more pair has room for two bells, one of its own and the peer's: they may share both with others, but that is known
/// later.
pub(crate) fn has_room(structure: &Structure) -> bool {
    /// For what comes along with messages of the service.
    const OTHERS: u64 = 4;
    /// A limit of which the program needs all.
    const FEW: u64 = 256;
    let (limit, highest) = descriptor_limits();
    let floor = u64::from(floor().unsigned_abs());
    let beyond = floor >= limit && highest > floor;
    if !beyond && limit < FEW || heap::is_short() {
        return false;
    }
    let limit = if beyond { highest } else { limit };
    let floor = if floor < limit { floor } else { limit / 4 * 3 };
    let unfinished = structure.pairs.len().saturating_sub(park::lifted_here());
    descriptor::owned() as u64 + 2 * (unfinished as u64 + 1) + OTHERS <= limit - floor
}

/// Calls `act`, which changes the limits of this process, while the layer makes no descriptor of its own, for which it may change them too.
pub fn while_limits_stand<R>(act: impl Fn() -> R) -> R {
    // Under a filter it makes none, and the lock takes calls that the program may not make.
    if thread::alone() || layer::confined() || !layer::at_home() {
        return act();
    }
    STRUCTURE.with_unless_borrowed(|_| act()).unwrap_or_else(act)
}

/// Whether the program may give a file the number `fd`. It may have one that is higher, from when it was allowed to.
pub fn is_within_limit(fd: i32) -> bool {
    u64::try_from(fd).is_ok_and(|fd| fd < descriptor_limit())
}

fn descriptor_limit() -> u64 {
    descriptor_limits().0
}

/// How many descriptors the program may have, and to how many it may raise that.
fn descriptor_limits() -> (u64, u64) {
    kernel::limits(libc::RLIMIT_NOFILE).unwrap_or((1024, 1024))
}

/// Where the layer's own descriptors begin: beyond the program's limit, if there is room, or in the last quarter of it; not too high, as the kernel's table
/// has room for all below.
fn choose_floor() -> i32 {
    const HIGHEST: u64 = 16 * 1024;
    let (limit, highest) = descriptor_limits();
    let beyond = limit <= HIGHEST && highest.saturating_sub(limit) >= limit / 4;
    let floor = if beyond { limit } else { (limit / 4 * 3).min(HIGHEST) };
    floor as i32
}
