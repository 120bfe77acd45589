//! After how many calls a connection is worth lifting. Lifting costs time of both programs, so a program whose connections end
//! as soon as they are lifted is better off without it: it learns from each that was lifted in vain.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::slot::{Phase, Slot};
use crate::thread::{self, MICROSECOND};

static WORTH: Worth = Worth { calls: AtomicU32::new(4), in_vain: AtomicU32::new(0) };

/// What a process knows of its connections.
struct Worth {
    /// Calls that moved data before a connection is worth lifting: those of one short request and its answer are fewer.
    calls: AtomicU32,
    /// How often that is doubled: liftings that were in vain, less those that were not.
    in_vain: AtomicU32,
}

const DOUBLED_AT_MOST: u32 = 6;

/// A connection that lives so much longer than its offer was worth it.
const SHORT: u64 = 20_000 * MICROSECOND;

impl Worth {
    #[inline]
    fn calls(&self) -> u32 {
        let doubled = 1 << self.in_vain.load(Ordering::Relaxed);
        self.calls.load(Ordering::Relaxed).saturating_mul(doubled)
    }

    /// A connection in this phase is closed, so many ticks after its offer.
    fn learn(&self, phase: Phase, age: u64) {
        let known = self.in_vain.load(Ordering::Relaxed);
        let learnt = match phase {
            Phase::Offered | Phase::Exchanged | Phase::Attached if age < SHORT => {
                (known + 1).min(DOUBLED_AT_MOST)
            }
            Phase::Attached => known.saturating_sub(1),
            _ => known,
        };
        // What another thread learns at the same time may be lost.
        if learnt != known {
            self.in_vain.store(learnt, Ordering::Relaxed);
        }
    }
}

/// Sets after how many calls that moved data a connection is lifted. 0: when it is made, and the first calls wait for that.
pub(crate) fn set_calls(calls: u32) {
    WORTH.calls.store(calls, Ordering::Relaxed);
}

/// How many calls that moved data make a young connection worth lifting.
#[inline]
pub(super) fn calls() -> u32 {
    WORTH.calls()
}

/// The connection is being offered.
pub(super) fn begin(slot: &Slot) {
    slot.offered.store(thread::ticks(), Ordering::Relaxed);
}

/// The connection is closed: was it worth it?
pub(crate) fn learn(slot: &Slot) {
    let age = thread::ticks().wrapping_sub(slot.offered.load(Ordering::Relaxed));
    WORTH.learn(slot.phase(), age);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn young(calls: u32) -> Worth {
        Worth { calls: AtomicU32::new(calls), in_vain: AtomicU32::new(0) }
    }

    #[test]
    fn a_program_learns_from_connections_that_were_lifted_in_vain() {
        let worth = young(4);
        let close = |phase, age| {
            worth.learn(phase, age);
            worth.calls()
        };
        assert_eq!(close(Phase::Tcp, 0), 4);
        assert_eq!(close(Phase::Attached, 0), 8);
        assert_eq!(close(Phase::Offered, 0), 16);
        assert_eq!(close(Phase::Offered, SHORT), 16);
        assert_eq!(close(Phase::Attached, SHORT), 8);
        (0..20).for_each(|_| worth.learn(Phase::Exchanged, 0));
        assert_eq!(worth.calls(), 256);
        (0..20).for_each(|_| worth.learn(Phase::Attached, SHORT));
        assert_eq!(worth.calls(), 4);
    }

    #[test]
    fn what_is_lifted_at_once_or_never_stays_so() {
        for calls in [0, 1 << 26, u32::MAX] {
            let worth = young(calls);
            (0..20).for_each(|_| worth.learn(Phase::Attached, 0));
            assert!(worth.calls() >= calls && (worth.calls() == 0) == (calls == 0));
        }
    }
}
