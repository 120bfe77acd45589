//! How many processes hold a slot, and for the how manieth time it is in use: one word, so that whoever frees it for others that are gone sees any
//! change meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

/// The holders; above them the number of the use; above that a count of the processes that have joined.
#[derive(Debug, Default)]
pub(crate) struct Tenure(AtomicU64);

/// A tenure at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u64);

const HOLDERS: u64 = 0xffff;
const USE: u64 = 1 << 16;
const JOINED: u64 = 1 << 40;

impl Seen {
    pub(crate) fn holders(self) -> u64 {
        self.0 & HOLDERS
    }

    /// Which use of the slot this is.
    pub(crate) fn serial(self) -> u32 {
        (self.0 / USE % (JOINED / USE)) as u32
    }
}

impl Tenure {
    pub(crate) fn see(&self) -> Seen {
        Seen(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn holders(&self) -> u64 {
        self.see().holders()
    }

    pub(crate) fn serial(&self) -> u32 {
        self.see().serial()
    }

    /// One process holds it from now on, in a new use; false: others do.
    pub(crate) fn begin(&self) -> bool {
        let seen = self.see();
        seen.holders() == 0 && self.exchange(seen, seen.0.wrapping_add(USE + 1))
    }

    /// One process more, by way of one that holds it.
    pub(crate) fn join(&self) {
        self.0.fetch_add(JOINED + 1, Ordering::AcqRel);
    }

    /// One process less, unless it is the last; whether it is. Of several that go at the same time exactly one is.
    pub(crate) fn set_out(&self) -> bool {
        loop {
            let seen = self.see();
            if seen.holders() <= 1 || self.exchange(seen, seen.0 - 1) {
                return seen.holders() <= 1;
            }
        }
    }

    /// One process less; nothing if this use is over.
    pub(crate) fn leave(&self, serial: u32) {
        loop {
            let seen = self.see();
            if seen.serial() != serial || seen.holders() == 0 || self.exchange(seen, seen.0 - 1) {
                return;
            }
        }
    }

    /// So many hold it in truth; false: it has changed since it was `seen`.
    pub(crate) fn correct(&self, seen: Seen, holders: u64) -> bool {
        self.exchange(seen, seen.0 & !HOLDERS | holders)
    }

    /// Ends the use: nobody holds it in truth. False: it has changed since it was `seen`.
    pub(crate) fn end(&self, seen: Seen) -> bool {
        self.exchange(seen, (seen.0 & !HOLDERS).wrapping_add(USE))
    }

    fn exchange(&self, seen: Seen, now: u64) -> bool {
        self.0.compare_exchange(seen.0, now, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_leave_does_not_touch_the_next_use() {
        let tenure = Tenure::default();
        assert!(tenure.begin());
        assert!(!tenure.begin());
        let (first, seen) = (tenure.serial(), tenure.see());
        assert!(tenure.end(seen));
        assert!(tenure.begin());
        tenure.leave(first);
        assert_eq!(tenure.holders(), 1);
        tenure.leave(tenure.serial());
        assert_eq!(tenure.holders(), 0);
        tenure.leave(tenure.serial());
        assert_eq!(tenure.holders(), 0);
    }

    #[test]
    fn who_joins_and_who_leaves_is_seen() {
        let tenure = Tenure::default();
        assert!(tenure.begin());
        let seen = tenure.see();
        tenure.join();
        tenure.leave(tenure.serial());
        assert_eq!(tenure.holders(), 1);
        assert!(!tenure.end(seen), "another may have it now");
        tenure.join();
        assert!(!tenure.set_out());
        assert!(tenure.set_out(), "the last stays until it leaves");
        assert_eq!(tenure.holders(), 1);
        tenure.join();
        assert!(tenure.correct(tenure.see(), 1));
        assert_eq!(tenure.holders(), 1);
    }
}
