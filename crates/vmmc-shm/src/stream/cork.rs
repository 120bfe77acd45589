//! Bytes that the producer holds back although they lie in the ring: the program has said that more follows (`MSG_MORE`), or has
//! corked the stream (`TCP_CORK`), and its peer shall not see them in pieces.
//!
//! They are a part of the stream as all others: the tail counts them, a freeze or an end lets go of them, and
//! nothing is lost with the producer. With [`CORKED`] in it the reader leaves alone what lies behind [`Words::uncorked`], until
//! the producer lets go or [`PATIENCE`] is over. Nobody has to be awake for that but the reader, by whose clock it is: so a reader that
//! sleeps then sleeps no longer ([`Words::corked_for`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{CORKED, FIN, FROZEN, OFFSET, Words};
use crate::clock::{self, MICROSECOND};

/// The kernel's TCP holds bytes back for as long (tcp(7), `TCP_CORK`).
const PATIENCE: u64 = 200_000 * MICROSECOND;

/// So many bytes at once are not held back: what a segment on the loopback interface holds.
const SEGMENT: u64 = 65_483;

impl Words {
    /// The tail as far as the reader may see: what is held back does not count.
    #[inline]
    pub fn visible(&self) -> u64 {
        // SYNC tail: acquire pairs with the release in `Transmitter::publish`; the bytes before it are visible.
        let tail = self.tail.load(Ordering::Acquire);
        if tail & CORKED == 0 { tail } else { self.before_cork(tail) }
    }

    #[cold]
    fn before_cork(&self, mut tail: u64) -> u64 {
        /// So often a producer publishes more while its bytes are looked at, if it is honest.
        const TRIES: u32 = 1000;
        for _ in 0..TRIES {
            let whole = tail & !CORKED;
            if !is_corked(tail) {
                return whole;
            }
            if self.patience() > 0 {
                return self.seen(tail);
            }
            // Once its bytes are taken, nobody may find them held back.
            match self.tail.compare_exchange(tail, whole, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return whole,
                Err(newer) => tail = newer,
            }
        }
        tail & !CORKED
    }

    /// How much of `tail` is not held back, whatever the time.
    pub(super) fn seen(&self, tail: u64) -> u64 {
        let whole = tail & !CORKED;
        match is_corked(tail) {
            true => whole.min(self.uncorked.load(Ordering::Relaxed) & OFFSET),
            false => whole,
        }
    }

    /// For how many ticks bytes are still held back, if they are.
    pub(super) fn patience(&self) -> u64 {
        let age = clock::ticks().wrapping_sub(self.corked_at.load(Ordering::Relaxed)) as i64;
        // The counters of two processors differ a little. What is far from the present is no honest peer's, or of another clock.
        PATIENCE.saturating_sub(age.unsigned_abs())
    }

    /// For how long at the most bytes are still held back; `None`: there are none. A millisecond later they can be read.
    #[inline]
    pub fn corked_for(&self) -> Option<Duration> {
        /// So that who sleeps as long does not wake up for nothing.
        const LATER: u64 = 1000;
        let corked = is_corked(self.tail.load(Ordering::Acquire));
        corked.then(|| Duration::from_micros(self.patience() / MICROSECOND + LATER))
    }

    /// Lets go of what is held back, from either side; whether there was something.
    pub fn uncork(&self) -> bool {
        is_corked(self.tail.load(Ordering::Relaxed))
            && is_corked(self.tail.fetch_and(!CORKED, Ordering::SeqCst))
    }

    /// Says, before `tail` is published with [`CORKED`], up to where it is free; for the producer.
    pub(super) fn cork(&self, uncorked: u64) {
        self.uncorked.store(uncorked, Ordering::Relaxed);
        self.corked_at.store(clock::ticks(), Ordering::Relaxed);
    }
}

/// After an end or a freeze nothing is held back.
fn is_corked(tail: u64) -> bool {
    tail & (CORKED | FIN | FROZEN) == CORKED
}

/// Of bytes from stream offset `from` on up to `until`, that up to which they are not held back.
pub(super) fn free(from: u64, until: u64) -> u64 {
    until - (until - from) % SEGMENT
}
