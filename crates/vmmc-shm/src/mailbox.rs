//! The mailbox of an export: who was notified of what, in memory that every notifier may write.
//!
//! Senders push, the exporter takes. Nobody waits for anybody: a sender that dies half-way, or that writes nonsense on
//! purpose, costs at most the slot it had claimed.
//!
//! ```text
//! lost        how many notifications found no free slot
//! ticket      order of arrival
//! slots[64]   state: EMPTY -> WRITING (claimed by a sender) -> ticket<<2|FULL (published) -> EMPTY (taken)
//!             offset, len, last word
//! ```
//!
//! **Overflow** is never silent: a notification that finds no slot is counted in `lost`, and the exporter takes it
//! as one [`Taken::Many`] after the slots. **Order**: the notifications of one sender are taken in the order in which
//! it pushed them. What is taken was written by a stranger: check it against the export before use.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use core::fmt;

#[cfg(not(loom))]
const SLOTS: usize = 64;
#[cfg(loom)]
const SLOTS: usize = 2;

const EMPTY: u64 = 0;
const WRITING: u64 = 1;
const FULL: u64 = 2;
const STATE: u64 = 3;

/// A notification as the sender describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// Where the bytes went.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// The last 8 of them.
    pub last_word: u64,
}

/// What the exporter finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// One notification.
    Note(Note),
    /// One or more notifications whose details are lost.
    Many,
}

/// The mailbox as it lies in shared memory; all zero is an empty one.
#[repr(C, align(64))]
pub struct Mailbox {
    lost: AtomicU64,
    ticket: AtomicU64,
    slots: [Slot; SLOTS],
}

#[repr(C, align(32))]
struct Slot {
    state: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    last_word: AtomicU64,
}

impl Mailbox {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// Looks at mapped memory as a mailbox.
    ///
    /// # Safety
    /// `start` is aligned to 64, points to at least [`Self::LEN`] mapped and writable bytes that stay mapped for `'a`.
    #[cfg(not(loom))]
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; all fields are atomics, for which any bytes are
        // valid and which others may change.
        unsafe { &*start.cast::<Self>() }
    }

    /// An empty mailbox in private memory.
    pub fn new() -> Self {
        Self {
            lost: AtomicU64::new(0),
            ticket: AtomicU64::new(0),
            slots: core::array::from_fn(|_| Slot {
                state: AtomicU64::new(EMPTY),
                offset: AtomicU64::new(0),
                len: AtomicU64::new(0),
                last_word: AtomicU64::new(0),
            }),
        }
    }

    /// Leaves a notification; what was stored to shared memory before is visible to whoever takes it. Wake the exporter
    /// afterwards. Bounded work, no waiting, any number of senders.
    pub fn push(&self, note: Note) {
        let ticket = self.ticket.fetch_add(1, Ordering::Relaxed);
        #[allow(clippy::cast_possible_truncation)]
        let first = (ticket % SLOTS as u64) as usize;
        for index in 0..SLOTS {
            let slot = &self.slots[(first + index) % SLOTS];
            // Acquire: pairs with "taken" below, so that our stores come after the exporter's loads.
            let claimed =
                slot.state.compare_exchange(EMPTY, WRITING, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_ok() {
                slot.offset.store(note.offset, Ordering::Relaxed);
                slot.len.store(note.len, Ordering::Relaxed);
                slot.last_word.store(note.last_word, Ordering::Relaxed);
                // Release: "published", pairs with the acquire load in `take`.
                slot.state.store(ticket << 2 | FULL, Ordering::Release);
                return;
            }
        }
        // Release: "overflow", pairs with the swap in `take`.
        self.lost.fetch_add(1, Ordering::Release);
    }

    /// Takes the oldest notification, or `Many` when there is none but some were lost. Only one thread of the exporter at a
    /// time. Bounded work.
    pub fn take(&self) -> Option<Taken> {
        // A sender may fill a slot that was looked at already and then one that was not yet: having seen the second
        // (acquire), look again for the first. Each look finds an older one or is the last; a hostile sender cannot
        // prolong it.
        let mut oldest = None;
        for _ in 0..=SLOTS {
            let found = self.oldest();
            let settled = found.map(|(state, _)| state) == oldest.map(|(state, _)| state);
            oldest = found;
            if settled {
                break;
            }
        }
        if let Some((_, slot)) = oldest {
            let note = Note {
                offset: slot.offset.load(Ordering::Relaxed),
                len: slot.len.load(Ordering::Relaxed),
                last_word: slot.last_word.load(Ordering::Relaxed),
            };
            // Release: "taken".
            slot.state.store(EMPTY, Ordering::Release);
            return Some(Taken::Note(note));
        }
        // Acquire: pairs with "overflow". The load first: most calls find nothing and need not write.
        if self.lost.load(Ordering::Relaxed) != 0 && self.lost.swap(0, Ordering::Acquire) != 0 {
            return Some(Taken::Many);
        }
        None
    }

    /// The published slot with the lowest ticket, as far as one look can tell.
    fn oldest(&self) -> Option<(u64, &Slot)> {
        // Acquire: pairs with "published".
        let states = self.slots.iter().map(|slot| (slot.state.load(Ordering::Acquire), slot));
        states.filter(|(state, _)| state & STATE == FULL).min_by_key(|(state, _)| *state)
    }

    /// Whether `take` would find nothing.
    pub fn is_empty(&self) -> bool {
        self.lost.load(Ordering::Relaxed) == 0
            && self.slots.iter().all(|slot| slot.state.load(Ordering::Relaxed) & STATE != FULL)
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("is_empty", &self.is_empty()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn note(offset: u64) -> Note {
        Note { offset, len: 8, last_word: !offset }
    }

    #[test]
    fn in_order_then_many() {
        let mailbox = Mailbox::new();
        for offset in 0..SLOTS as u64 + 5 {
            mailbox.push(note(offset));
        }
        for offset in 0..SLOTS as u64 {
            assert_eq!(mailbox.take(), Some(Taken::Note(note(offset))));
        }
        assert_eq!(mailbox.take(), Some(Taken::Many));
        assert_eq!(mailbox.take(), None);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn a_sender_that_died_costs_a_slot_and_nothing_is_lost_silently() {
        let mailbox = Mailbox::new();
        for slot in &mailbox.slots {
            slot.state.store(WRITING, Ordering::Relaxed);
        }
        mailbox.push(note(1));
        assert_eq!(mailbox.take(), Some(Taken::Many));
    }

    #[test]
    fn nonsense_is_taken_in_bounded_time() {
        let mailbox = Mailbox::new();
        for (index, slot) in mailbox.slots.iter().enumerate() {
            slot.state.store(u64::MAX - index as u64, Ordering::Relaxed);
            slot.offset.store(u64::MAX, Ordering::Relaxed);
        }
        mailbox.lost.store(u64::MAX, Ordering::Relaxed);
        let taken = core::iter::from_fn(|| mailbox.take()).count();
        assert!(taken <= SLOTS + 1, "{taken}");
    }
}
