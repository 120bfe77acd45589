//! Where the layer keeps descriptors of its own, out of the program's way.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

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

/// Whether the kernel's table of descriptors may be larger than the program's own numbers make it.
pub fn is_table_enlarged() -> bool {
    descriptor::owned() > 0 || descriptor::is_reached()
}

/// How many of `count` numbers the kernel's table of descriptors would have room for, if it were not for the layer's own.
pub fn size_of_table(count: i32) -> i32 {
    /// What it begins with, and what it grows to at least.
    const FIRST: u32 = 64;
    const SECOND: u32 = 256;
    let size = match highest_open(count).map_or(0, |highest| highest.unsigned_abs() + 1) {
        ..=FIRST => FIRST,
        open => open.next_power_of_two().max(SECOND),
    };
    count.min(i32::try_from(size).unwrap_or(i32::MAX))
}

/// The highest number below `end` that the program has open.
fn highest_open(end: i32) -> Option<i32> {
    const AT_ONCE: i32 = 512;
    if kernel::descriptor_flags(end - 1).is_some() {
        return Some(end - 1);
    }
    let end = end.min(i32::try_from(descriptor_limits().1).unwrap_or(i32::MAX));
    let mut asked = [libc::pollfd { fd: -1, events: 0, revents: 0 }; AT_ONCE as usize];
    let mut end = end;
    while end > 0 {
        let start = end.saturating_sub(AT_ONCE).max(0);
        let asked = &mut asked[..(end - start) as usize];
        for (fd, one) in (start..end).zip(&mut *asked) {
            (one.fd, one.revents) = (fd, 0);
        }
        if kernel::poll(asked, Some(Duration::ZERO), std::ptr::null()).is_err() {
            // It may have fewer: then any may be.
            return Some(end - 1);
        }
        let is_open = |one: &&libc::pollfd| {
            one.revents & libc::POLLNVAL == 0 && (one.fd < lowest() || layer::is_known(one.fd))
        };
        if let Some(found) = asked.iter().rev().find(is_open) {
            return Some(found.fd);
        }
        end = start;
    }
    None
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
