//! One lane a thread: what its transfers hold, its clock and its counts. A hit writes its own lane and the page's entry,
//! by plain stores: no atomic read-modify-write, no line that another thread writes.
//!
//! **Holds.** A lookup first stores which pages it wants in a free place of its lane, and looks *afterwards* whether they are pinned.
//! Whoever unpins first takes the pages from the lookups, and looks *afterwards* which pages are held. Between the two steps
//! both sides need a full barrier. Where the system can make one for all threads at once, only the one who unpins pays it.
//!
//! **Clock.** Each lookup gets a later stamp than all earlier lookups of its thread, and than all of any thread that came before the
//! last miss that this thread knows of. For one thread the order is exact; between threads it is as good as eviction can use.

use std::ops::Range;

use super::sync::{AtomicU64, Ordering, compiler_fence, fence};

/// Threads that have a lane of their own; others share the last, under the lock.
#[cfg(not(loom))]
const OWNED: usize = 128;
#[cfg(loom)]
const OWNED: usize = 2;

/// Holds of one lane at once; more are kept under the lock.
#[cfg(not(loom))]
const HOLDS: usize = 32;
#[cfg(loom)]
const HOLDS: usize = 1;

/// A lane that no thread has used yet with this table: whoever unpins does not look there.
const CLOSED: u64 = 0;
const FREE: u64 = 1;
/// Pages in the lower bits of a hold, the first page plus one above.
const PAGES_BITS: u32 = 20;
/// The most pages of one hold.
pub(super) const MOST_PAGES: usize = (1 << PAGES_BITS) - 1;

/// Where a hold is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

impl Place {
    /// Under the lock.
    pub(super) const ELSEWHERE: Self = Self(u32::MAX);
}

/// The lanes of a table.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Box<[Lane]>,
    /// The system makes barriers for all threads.
    asymmetric: bool,
}

#[derive(Debug)]
#[repr(align(64))]
struct Lane {
    now: AtomicU64,
    lookups: AtomicU64,
    /// Pages looked up beyond one for each lookup.
    more_pages: AtomicU64,
    /// Places that were ever used: the others are not looked at.
    used: AtomicU64,
    holds: [AtomicU64; HOLDS],
}

impl Lanes {
    pub(super) fn new() -> Self {
        let lane = || Lane {
            now: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            more_pages: AtomicU64::new(0),
            used: AtomicU64::new(1),
            holds: std::array::from_fn(|_| AtomicU64::new(CLOSED)),
        };
        let asymmetric = !cfg!(loom) && vmmc_os::enable_process_barrier();
        Self { lanes: (0..=OWNED).map(|_| lane()).collect(), asymmetric }
    }

    /// The lane of this thread, or the shared one.
    #[inline]
    pub(super) fn own(&self) -> usize {
        own_lane()
    }

    /// Notes a hold of pages in this thread's lane, before the caller looks whether they are pinned; `None` when there is no free
    /// place, or the lane is not open.
    #[inline]
    pub(super) fn take(&self, lane: usize, first: usize, pages: usize) -> Option<Place> {
        let Lane { holds, used, .. } = &self.lanes[lane];
        let is_free = |hold: &AtomicU64| hold.load(Ordering::Relaxed) == FREE;
        // A program that waits for each transfer uses the first place only.
        let free = if is_free(&holds[0]) { 0 } else { holds.iter().position(is_free)? };
        if free > 0 {
            used.store(used.load(Ordering::Relaxed).max(free as u64 + 1), Ordering::Relaxed);
        }
        // Only this thread takes places in this lane, so it is still free.
        holds[free].store(packed(first, pages), Ordering::Relaxed);
        // Pairs with `barrier`.
        if self.asymmetric {
            compiler_fence()
        } else {
            fence(Ordering::SeqCst)
        }
        #[allow(clippy::cast_possible_truncation)]
        Some(Place((lane * HOLDS + free) as u32))
    }

    /// Changes which pages a place holds. Under the lock, by the thread that took it.
    pub(super) fn change(&self, place: Place, first: usize, pages: usize) {
        if let Some(hold) = self.hold(place) {
            hold.store(packed(first, pages), Ordering::Release);
        }
    }

    /// Gives a hold back; from any thread.
    #[inline]
    pub(super) fn release(&self, place: Place) {
        if let Some(hold) = self.hold(place) {
            // Release: what was done with the pages comes before their unpinning.
            hold.store(FREE, Ordering::Release);
        }
    }

    #[inline]
    fn hold(&self, place: Place) -> Option<&AtomicU64> {
        let place = place.0 as usize;
        self.lanes.get(place / HOLDS)?.holds.get(place % HOLDS)
    }

    /// Opens this thread's lane, if it has one and it is not open: its number. Under the lock.
    pub(super) fn open(&self, lane: usize) -> bool {
        let holds = &self.lanes[lane].holds;
        if lane == OWNED || holds[0].load(Ordering::Relaxed) != CLOSED {
            return false;
        }
        holds.iter().for_each(|hold| hold.store(FREE, Ordering::Relaxed));
        true
    }

    /// Appends what a lane holds to `held`.
    pub(super) fn held(&self, lane: usize, held: &mut Vec<Range<usize>>) {
        let Lane { holds, used, .. } = &self.lanes[lane];
        #[allow(clippy::cast_possible_truncation)]
        for hold in holds.iter().take(used.load(Ordering::Relaxed) as usize) {
            // Acquire: pairs with `release`.
            held.extend(unpacked(hold.load(Ordering::Acquire)));
        }
    }

    /// What the caller has stored is seen by all lookups that it does not see; pairs with [`Self::take`].
    pub(super) fn barrier(&self) {
        if self.asymmetric { vmmc_os::process_barrier() } else { fence(Ordering::SeqCst) }
    }

    /// Counts a lookup of `pages` and returns its stamp, later than `base`. In the shared lane: under the lock.
    #[inline]
    pub(super) fn tick(&self, lane: usize, base: u64, pages: u64) -> u64 {
        let lane = &self.lanes[lane];
        let add = |count: &AtomicU64, more: u64| {
            count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        };
        let stamp = lane.now.load(Ordering::Relaxed).max(base) + 1;
        lane.now.store(stamp, Ordering::Relaxed);
        add(&lane.lookups, 1);
        if pages > 1 {
            add(&lane.more_pages, pages - 1);
        }
        stamp
    }

    /// Lookups so far, and the pages that they asked for.
    pub(super) fn counts(&self) -> (u64, u64) {
        let sum = |field: fn(&Lane) -> &AtomicU64| {
            self.lanes.iter().map(|lane| field(lane).load(Ordering::Relaxed)).sum::<u64>()
        };
        let lookups = sum(|lane| &lane.lookups);
        (lookups, lookups + sum(|lane| &lane.more_pages))
    }
}

fn packed(first: usize, pages: usize) -> u64 {
    (first as u64 + 1) << PAGES_BITS | pages as u64
}

fn unpacked(hold: u64) -> Option<Range<usize>> {
    #[allow(clippy::cast_possible_truncation)]
    let (first, pages) = ((hold >> PAGES_BITS) as usize, hold as usize & MOST_PAGES);
    let first = first.checked_sub(1)?;
    (pages > 0).then_some(first..first + pages)
}

#[cfg(loom)]
use model::own_lane;
#[cfg(loom)]
pub use model::set_lane;

/// Threads of a model say which lane is theirs.
#[cfg(loom)]
mod model {
    use std::cell::Cell;

    loom::thread_local! {
        static LANE: Cell<usize> = Cell::new(0);
    }

    pub(in crate::utlb) fn own_lane() -> usize {
        LANE.with(Cell::get)
    }

    /// The lane of this thread of a model, 0 or 1; 2 is the shared one.
    pub fn set_lane(lane: usize) {
        LANE.with(|own| own.set(lane));
    }
}

#[cfg(not(loom))]
use numbers::own_lane;

#[cfg(not(loom))]
mod numbers {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::OWNED;

    const UNKNOWN: usize = usize::MAX;

    thread_local! {
        /// Read at each lookup, so without a destructor.
        static LANE: Cell<usize> = const { Cell::new(UNKNOWN) };
        static CLAIM: Claim = const { Claim };
    }

    /// One bit a lane.
    static CLAIMED: [AtomicU64; OWNED / 64] = [const { AtomicU64::new(0) }; OWNED / 64];

    /// The lane of this thread, the same in all tables.
    #[inline]
    pub(super) fn own_lane() -> usize {
        let lane = LANE.get();
        if lane == UNKNOWN { claim() } else { lane }
    }

    #[cold]
    fn claim() -> usize {
        let free = (0..OWNED).find(|lane| {
            let bit = 1 << (lane % 64);
            // Acquire: pairs with the release below: the last owner's stores come before ours.
            CLAIMED[lane / 64].fetch_or(bit, Ordering::Acquire) & bit == 0
        });
        LANE.set(free.unwrap_or(OWNED));
        // A thread that is ending gets none of its own, as nobody would give it back.
        if CLAIM.try_with(|_| ()).is_err() {
            give_back();
        }
        LANE.get()
    }

    fn give_back() {
        let lane = LANE.replace(OWNED);
        if lane < OWNED {
            CLAIMED[lane / 64].fetch_and(!(1 << (lane % 64)), Ordering::Release);
        }
    }

    /// Gives the lane back when its thread ends.
    struct Claim;

    impl Drop for Claim {
        fn drop(&mut self) {
            give_back();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_and_nothing_is_miscounted() {
        let lanes = Lanes::new();
        let tick = |base, pages| lanes.tick(0, base, pages);
        assert_eq!((tick(0, 1), tick(0, 3), tick(10, 1)), (1, 2, 11));
        assert_eq!(lanes.counts(), (3, 5));
    }

    #[test]
    fn lanes_are_owned_by_one_thread_at_a_time_and_returned() {
        use std::sync::{Barrier, Mutex};
        for _ in 0..3 {
            let (all, seen) = (Barrier::new(40), Mutex::new(Vec::new()));
            std::thread::scope(|scope| {
                for _ in 0..40 {
                    scope.spawn(|| {
                        let lane = own_lane();
                        seen.lock().unwrap().push(lane);
                        all.wait();
                        assert_eq!(own_lane(), lane);
                    });
                }
            });
            let mut seen = seen.into_inner().unwrap();
            seen.retain(|lane| *lane < OWNED);
            let count = seen.len();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), count, "one lane, two threads");
        }
    }

    #[test]
    fn a_hold_is_seen_until_it_is_released() {
        let lanes = Lanes::new();
        let held = || {
            let mut held = Vec::new();
            lanes.held(3, &mut held);
            held.into_iter().map(|held| (held.start, held.end)).collect::<Vec<_>>()
        };
        assert_eq!(lanes.take(3, 7, 1), None, "closed");
        assert!(lanes.open(3));
        assert!(!lanes.open(3));
        assert!(!lanes.open(OWNED), "the shared lane holds nothing");
        let place = lanes.take(3, 0, 5).unwrap();
        assert_eq!(held(), [(0, 5)]);
        lanes.change(place, 0, 0);
        assert!(held().is_empty());
        assert_ne!(lanes.take(3, 1, 1).unwrap(), place, "empty, but taken");
        lanes.release(place);
        assert_eq!(held(), [(1, 2)]);
        for _ in 1..HOLDS {
            assert!(lanes.take(3, (1 << 36) - 1, MOST_PAGES).is_some());
        }
        assert_eq!(lanes.take(3, 7, 1), None, "full");
        lanes.release(Place::ELSEWHERE);
    }
}
