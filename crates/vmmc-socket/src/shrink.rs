//! Rings that grew for bulk become small again, and their memory goes back to the system.
//!
//! Only the writer of a stream can do that: it alone knows that nobody writes into the larger rings, and the credit tells it that
//! nobody reads there. It does so before a small send when the stream has carried no bulk for a while. And because it may never
//! send again, a process that has such streams looks after them before it sleeps, and wakes up for it a few times at the most.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use vmmc::stream::Tier;

use crate::descriptor::{self, Kind};
use crate::local::{self, Ends, Local};
use crate::slot::{self, Slot, Way};
use crate::thread::{self, MICROSECOND};

/// Without bulk for so long, a stream goes back to its small ring.
const QUIET: u64 = 1_000_000 * MICROSECOND;
/// Streams whose reader has not read everything are looked at again after twice the time, up to so often.
const LOOKS: u32 = 6;

/// Streams of this process that are in a larger ring.
static SWOLLEN: AtomicU32 = AtomicU32::new(0);
/// When to look at them next, and how often that was in vain since the last one grew.
static DUE: AtomicU64 = AtomicU64::new(0);
static LOOKED: AtomicU32 = AtomicU32::new(0);

/// What a process knows of one sending direction.
#[derive(Debug)]
pub(crate) struct Girth {
    swollen: AtomicBool,
    /// When it last needed a larger ring.
    bulk_at: AtomicU64,
}

impl Girth {
    pub(crate) const fn new() -> Self {
        Self { swollen: AtomicBool::new(false), bulk_at: AtomicU64::new(0) }
    }

    fn quiet(&self, now: u64) -> bool {
        now.wrapping_sub(self.bulk_at.load(Ordering::Relaxed)) > QUIET
    }

    /// It is small, or closed.
    pub(crate) fn slim(&self) {
        if self.swollen.swap(false, Ordering::Relaxed) {
            SWOLLEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A stream has gone over to a larger ring.
#[cold]
pub(crate) fn grown(local: &Local) {
    let now = thread::ticks();
    local.girth.bulk_at.store(now, Ordering::Relaxed);
    if !local.girth.swollen.swap(true, Ordering::Relaxed) {
        SWOLLEN.fetch_add(1, Ordering::Relaxed);
    }
    LOOKED.store(0, Ordering::Relaxed);
    DUE.store(now.wrapping_add(QUIET), Ordering::Relaxed);
}

/// Before `len` bytes are sent on a stream that is in a larger ring. The outward lock is held.
pub(crate) fn before_send(slot: &Slot, local: &Local, ends: Ends, len: usize) {
    if slot.outward.stream.tier() == Tier::Page {
        return;
    }
    let now = thread::ticks();
    let needed = len.saturating_add(slot.outward.stream.unread(ends.mine) as usize);
    if needed > Tier::Page.capacity() {
        local.girth.bulk_at.store(now, Ordering::Relaxed);
    } else if local.girth.quiet(now) {
        shrink(slot, local, ends);
    }
}

/// True if the stream is in its small ring now, or will not be used again. The outward lock is held.
fn shrink(slot: &Slot, local: &Local, ends: Ends) -> bool {
    let stream = &slot.outward.stream;
    if slot.outward.loan.stands() {
        return false;
    }
    if slot.outward.way() != Way::Ring || stream.closed(ends.theirs) {
        local.girth.slim();
        return true;
    }
    if stream.shrink(ends.mine, ends.theirs) {
        local.discard_out(Tier::Medium.start()..Tier::MEMORY);
    }
    let small = stream.tier() == Tier::Page;
    if small {
        local.girth.slim();
    }
    small
}

/// Before this process goes to sleep: for how long it may at the most.
#[inline]
pub(crate) fn rest() -> Option<Duration> {
    if SWOLLEN.load(Ordering::Relaxed) == 0 { None } else { look_after() }
}

#[cold]
fn look_after() -> Option<Duration> {
    let now = thread::ticks();
    let looked = LOOKED.load(Ordering::Relaxed);
    if looked >= LOOKS || !crate::layer::at_home() {
        return None;
    }
    let mut left = DUE.load(Ordering::Relaxed).wrapping_sub(now) as i64;
    if left <= 0 {
        for (_, kind) in descriptor::between(0, i32::MAX) {
            if let Kind::Connection(index) = kind {
                look_at(index, now);
            }
        }
        left = (QUIET << looked) as i64;
        LOOKED.store(looked + 1, Ordering::Relaxed);
        DUE.store(now.wrapping_add(left as u64), Ordering::Relaxed);
    }
    let any = SWOLLEN.load(Ordering::Relaxed) > 0;
    any.then(|| Duration::from_micros(left as u64 / MICROSECOND + 1))
}

fn look_at(index: u32, now: u64) {
    let (slot, local) = (slot::get(index), local::get(index));
    if local.girth.swollen.load(Ordering::Relaxed) && local.girth.quiet(now) {
        let _held = slot.outward.lock.hold();
        if let Some(ends) = local.ends() {
            shrink(slot, local, ends);
        }
    }
}
