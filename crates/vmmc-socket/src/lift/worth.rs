//! After how many calls a connection is worth lifting. That costs as much as some ten calls over TCP, so a program whose
//! connections end as soon as they are lifted is better off without it: it learns from each that was lifted in vain.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::slot::{Phase, Slot};
use crate::thread::{self, MICROSECOND};

/// Calls that moved data before a connection is worth lifting: those of one short request and its answer are fewer.
static CALLS: AtomicU32 = AtomicU32::new(4);

/// How often that is doubled: liftings that were in vain, less those that were not.
static IN_VAIN: AtomicU32 = AtomicU32::new(0);
const DOUBLED_AT_MOST: u32 = 6;

/// A connection that lives so much longer than its offer was worth it.
const SHORT: u64 = 20_000 * MICROSECOND;

/// Sets after how many calls that moved data a connection is lifted. 0: when it is made, and the first calls wait for that.
pub(crate) fn set_calls(calls: u32) {
    CALLS.store(calls, Ordering::Relaxed);
}

/// How many calls that moved data make a young connection worth lifting.
#[inline]
pub(super) fn calls() -> u32 {
    CALLS.load(Ordering::Relaxed) << IN_VAIN.load(Ordering::Relaxed)
}

/// The connection is being offered.
pub(super) fn begin(slot: &Slot) {
    slot.offered.store(thread::ticks(), Ordering::Relaxed);
}

/// The connection is closed: was it worth it?
pub(crate) fn learn(slot: &Slot) {
    if !matches!(slot.phase(), Phase::Offered | Phase::Exchanged | Phase::Attached) {
        return;
    }
    let age = thread::ticks().wrapping_sub(slot.offered.load(Ordering::Relaxed));
    let known = IN_VAIN.load(Ordering::Relaxed);
    let learnt = match slot.phase() {
        _ if age < SHORT => (known + 1).min(DOUBLED_AT_MOST),
        Phase::Attached => known.saturating_sub(1),
        _ => known,
    };
    // What another thread learns at the same time may be lost.
    if learnt != known {
        IN_VAIN.store(learnt, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_learns_from_connections_that_were_lifted_in_vain() {
        let close = |phase, age: u64| {
            let slot = Slot::default();
            slot.set_phase(phase);
            slot.offered.store(thread::ticks().wrapping_sub(age), Ordering::Relaxed);
            learn(&slot);
            calls()
        };
        assert_eq!(close(Phase::Tcp, 0), 4);
        assert_eq!(close(Phase::Attached, 0), 8);
        assert_eq!(close(Phase::Offered, 0), 16);
        assert_eq!(close(Phase::Offered, SHORT + 1), 16);
        assert_eq!(close(Phase::Attached, SHORT + 1), 8);
        for _ in 0..20 {
            close(Phase::Exchanged, 0);
        }
        assert_eq!(calls(), 256);
        for _ in 0..20 {
            close(Phase::Attached, SHORT + 1);
        }
        assert_eq!(calls(), 4);
    }
}
