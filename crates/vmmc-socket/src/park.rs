//! Parking: an idle lifted connection goes back to TCP, without a byte being moved, and its memory, mappings, bells and place at
//! the node service are given back. Calls with data lift it anew (`anew`).
//!
//! Whether a connection is idle is not noticed where bytes move: a process looks at how far its streams have come before it
//! sleeps, and wakes up for it. Between two looks at a connection that has not moved lies the time after which it is parked, so
//! it has been idle for once to twice that time. A process whose connections are all parked has nothing to wake up for; one that
//! looked in vain does so a few times.
//!
//! The connections that are short of descriptors make room sooner: [`make_room`] parks those that were idle longest.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::descriptor::{self, Kind};
use crate::local::{self, Local};
use crate::slot::{self, Phase};
use crate::thread::{self, MICROSECOND};
use crate::{layer, lower, service};

const SECOND: u64 = 1_000_000 * MICROSECOND;

/// Without a byte for so long a connection is parked; 0: it never is. An idle pair of ends holds some 15 to 25 KiB; to be lifted
/// anew it needs four calls on TCP and 0.1 ms of processor time. So much every ten seconds is not worth talking of, however
/// many connections there are; and pools that probe their connections do so less often.
static PARK_AFTER: AtomicU64 = AtomicU64::new(10 * SECOND);

/// In want of descriptors a connection makes room for another after so long.
const MAKES_ROOM_AFTER: u64 = SECOND;
/// Such are looked for so often at the most.
const LOOKS_FOR_ROOM_AFTER: u64 = SECOND / 4;

/// Looks in vain, one after the other, after which a process does not wake up for more.
const LOOKS: u32 = 4;

/// Lifted connections of this process.
static LIFTED: AtomicU32 = AtomicU32::new(0);
/// When to look next, and how often that was in vain.
static DUE: AtomicU64 = AtomicU64::new(0);
static LOOKED: AtomicU32 = AtomicU32::new(0);
/// So many connections were not lifted because descriptors are short.
static WANT_ROOM: AtomicU32 = AtomicU32::new(0);
/// When it was last looked for connections that could make room.
static LOOKED_FOR_ROOM_AT: AtomicU64 = AtomicU64::new(0);

/// What a process knows of how busy one of its connections is.
#[derive(Debug)]
pub(crate) struct Calm {
    lifted: AtomicBool,
    /// How far its streams had come when it was looked at last, and the first time that they had come so far.
    moved: AtomicU64,
    since: AtomicU64,
}

impl Calm {
    pub(crate) const fn new() -> Self {
        let [moved, since] = [const { AtomicU64::new(0) }; 2];
        Self { lifted: AtomicBool::new(false), moved, since }
    }

    /// It has been lifted.
    pub(crate) fn begin(&self) {
        let now = thread::ticks();
        self.moved.store(0, Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
        if !self.lifted.swap(true, Ordering::Relaxed) && LIFTED.fetch_add(1, Ordering::Relaxed) == 0
        {
            DUE.store(now.wrapping_add(PARK_AFTER.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        LOOKED.store(0, Ordering::Relaxed);
    }

    /// It is lifted no more.
    pub(crate) fn end(&self) {
        if self.lifted.swap(false, Ordering::Relaxed) {
            LIFTED.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// For how long its streams have not moved, which have come so far by `now`.
    fn look(&self, moved: u64, now: u64) -> u64 {
        if self.moved.swap(moved, Ordering::Relaxed) != moved {
            self.since.store(now, Ordering::Relaxed);
        }
        now.wrapping_sub(self.since.load(Ordering::Relaxed))
    }
}

/// How many lifted connections this process has.
pub(crate) fn lifted_here() -> usize {
    LIFTED.load(Ordering::Relaxed) as usize
}

/// Sets after how many seconds a connection is parked; 0: never.
pub(crate) fn set_after(seconds: f64) {
    PARK_AFTER.store((seconds.max(0.0) * SECOND as f64) as u64, Ordering::Relaxed);
}

/// Before this process goes to sleep: for how long it may at the most.
#[inline]
pub(crate) fn rest() -> Option<Duration> {
    if LIFTED.load(Ordering::Relaxed) == 0 { None } else { look_after() }
}

#[cold]
fn look_after() -> Option<Duration> {
    let after = PARK_AFTER.load(Ordering::Relaxed);
    if after == 0 {
        return None;
    }
    let (now, due) = (thread::ticks(), DUE.load(Ordering::Relaxed));
    let mut left = due.wrapping_sub(now) as i64;
    if left <= 0 && layer::at_home() {
        left = after as i64;
        let next = now.wrapping_add(after);
        if DUE.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            look_at_all(now, after);
        }
    }
    let worth_it = LIFTED.load(Ordering::Relaxed) > 0 && LOOKED.load(Ordering::Relaxed) < LOOKS;
    (worth_it && left > 0).then(|| Duration::from_micros(left as u64 / MICROSECOND + 1))
}

fn look_at_all(now: u64, after: u64) {
    let mut any_moved = false;
    for (fd, index) in lifted() {
        match stillness(index, now) {
            0 => any_moved = true,
            // The looks are a little less apart than it takes to make them.
            still if still >= after / 8 * 7 => {
                lower::park(fd, index);
            }
            _ => {}
        }
    }
    let looked = if any_moved { 0 } else { LOOKED.load(Ordering::Relaxed).saturating_add(1) };
    LOOKED.store(looked, Ordering::Relaxed);
}

/// The lifted connections of this process, by a descriptor of each.
fn lifted() -> impl Iterator<Item = (i32, u32)> {
    descriptor::between(0, i32::MAX).filter_map(|(fd, kind)| match kind {
        Kind::Connection(index) if slot::get(index).phase() == Phase::Attached => Some((fd, index)),
        _ => None,
    })
}

fn stillness(index: u32, now: u64) -> u64 {
    let (slot, local) = (slot::get(index), local::get(index));
    let streams = [slot.inward.stream.head(), slot.outward.stream.tail()];
    let calls = u64::from(slot.calls.load(Ordering::Relaxed));
    let moved =
        streams.into_iter().fold(calls, |sum, moved| sum.wrapping_mul(31).wrapping_add(moved));
    local.calm.look(moved, now)
}

/// A connection could not be lifted because descriptors are short.
pub(crate) fn want_room() {
    WANT_ROOM.fetch_add(1, Ordering::Relaxed);
}

/// Parks connections that have been idle for a while, the longest first, as many as others are in want of their descriptors.
pub(crate) fn make_room() {
    if WANT_ROOM.load(Ordering::Relaxed) == 0 || PARK_AFTER.load(Ordering::Relaxed) == 0 {
        return;
    }
    // All connections are looked at, for which those in want may ask at every call.
    let (now, looked_at) = (thread::ticks(), LOOKED_FOR_ROOM_AT.load(Ordering::Relaxed));
    if now.wrapping_sub(looked_at) < LOOKS_FOR_ROOM_AFTER
        || LOOKED_FOR_ROOM_AT
            .compare_exchange(looked_at, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
    {
        return;
    }
    let wanted = WANT_ROOM.swap(0, Ordering::Relaxed);
    let mut idle: Vec<_> = lifted()
        .map(|(fd, index)| (stillness(index, now), fd, index))
        .filter(|&(still, ..)| still >= MAKES_ROOM_AFTER)
        .collect();
    idle.sort_unstable_by_key(|&(still, ..)| std::cmp::Reverse(still));
    let parked = idle.into_iter().filter(|&(_, fd, index)| lower::park(fd, index));
    let _ = parked.take(wanted as usize).count();
}

/// Whether a connection may be parked at all: it could not be lifted anew without the service.
pub(crate) fn is_wise(local: &Local) -> bool {
    layer::process().is_some() && !service::absent() && local.held.load(Ordering::Relaxed)
}
