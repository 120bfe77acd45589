//! The mailbox of an export: who was notified of what, in memory that every notifier may write.
//!
//! Senders push, the exporter takes. Nobody waits for anybody: a sender that dies half-way, or that writes nonsense on
//! purpose, costs at most the slot it had claimed, and that one only for a while.
//!
//! ```text
//! lost        how many notifications found no free slot
//! ticket      order of arrival
//! bell        whether the exporter may sleep: generation << 1 | AWAKE
//! states[64]  of each slot: EMPTY -> ticket<<2|WRITING (claimed by a sender) -> ticket<<2|FULL (published) -> EMPTY (taken);
//!             together, so that a look at all of them is a look at eight cache lines
//! slots[64]   offset, len, last word, and a check of them and the ticket
//! ```
//!
//! **Overflow** is never silent: a notification that finds no slot is counted in `lost`, and the exporter takes the count
//! as one [`Taken::Lost`] after the slots. **Order**: the notifications of one sender are taken in the order in which
//! it pushed them. What is taken was written by a stranger: check it against the export before use.
//!
//! **Death of a sender.** A slot that is claimed and not published belongs to a sender that is dead, or only slow. When slots are short and a
//! claim is older than 1024 tickets, the exporter takes it back and counts it as lost. A sender that was only slow then finds its claim
//! gone and publishes nothing. What it had stored meanwhile may have mixed with what another published there: the check tells, and
//! the exporter counts that as lost too.
//!
//! **Waking.** The exporter sleeps on an event beside the mailbox. It clears the event and announces a new generation of sleep
//! ([`Mailbox::announce_sleep`]), then looks again. A sender that finds a sleep announced signals the event and then notes
//! ([`Mailbox::rung`]) that this sleep is over, so that nobody after it makes the system call. In this order a
//! sender that dies in between costs the others a superfluous signal, never a lost one; and a note that comes late says nothing
//! about the next sleep, which is of another generation. So: *where no sleep is announced, the event is readable, or the exporter looks once
//! more before it sleeps.*

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use core::fmt;

use crate::copy::prefetch_for_writing;

#[cfg(not(loom))]
const SLOTS: usize = 64;
#[cfg(loom)]
const SLOTS: usize = 2;

/// Notifications since a claim, after which its sender is taken for dead if slots are short.
#[cfg(not(loom))]
const STALE: u64 = if cfg!(miri) { 128 } else { 1024 };
#[cfg(loom)]
const STALE: u64 = 1;

const EMPTY: u64 = 0;
const WRITING: u64 = 1;
const FULL: u64 = 2;
const STATE: u64 = 3;

/// Of the bell: nobody needs to ring. An exporter that never announced anything may sleep.
const AWAKE: u64 = 1;

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

impl Note {
    /// Differs for another state of the slot, and for a mixture of two notes. Not against malice, which needs no mixture.
    fn check(&self, state: u64) -> u64 {
        [self.offset, self.len, self.last_word].into_iter().fold(state, |sum, word| {
            (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        })
    }
}

/// What the exporter finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// One notification.
    Note(Note),
    /// So many notifications (not 0) whose details are lost.
    Lost(u64),
}

/// The exporter announced a sleep: signal its event, then say so by [`Mailbox::rung`].
#[derive(Debug)]
#[must_use = "the exporter may sleep until its event is signalled"]
pub struct Sleep(u64);

/// The mailbox as it lies in shared memory; all zero is an empty one.
#[repr(C, align(64))]
pub struct Mailbox {
    lost: AtomicU64,
    ticket: AtomicU64,
    bell: AtomicU64,
    states: [AtomicU64; SLOTS],
    slots: [Slot; SLOTS],
}

#[repr(C, align(32))]
struct Slot {
    offset: AtomicU64,
    len: AtomicU64,
    last_word: AtomicU64,
    check: AtomicU64,
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
            bell: AtomicU64::new(0),
            states: core::array::from_fn(|_| AtomicU64::new(EMPTY)),
            slots: core::array::from_fn(|_| Slot {
                offset: AtomicU64::new(0),
                len: AtomicU64::new(0),
                last_word: AtomicU64::new(0),
                check: AtomicU64::new(0),
            }),
        }
    }

    /// A hint that [`Self::push`] comes soon: the lines that it writes, which were last at the exporter's processor, come all at a time.
    #[inline]
    pub fn expect_push(&self) {
        prefetch_for_writing(&self.ticket);
        let first = Self::first(self.ticket.load(Ordering::Relaxed));
        prefetch_for_writing(&self.states[first]);
        prefetch_for_writing(&self.slots[first]);
    }

    /// Leaves a notification; what was stored to shared memory before is visible to whoever takes it. Afterwards wake the
    /// exporter, if it announced that it sleeps. Bounded work, no waiting, any number of senders.
    pub fn push(&self, note: Note) -> Option<Sleep> {
        self.leave(note);
        // "Left", pairs with the fence in `announce_sleep`: an exporter whose announcement we do not see sees the notification.
        fence(Ordering::SeqCst);
        let bell = self.bell.load(Ordering::Relaxed);
        (bell & AWAKE == 0).then_some(Sleep(bell))
    }

    fn leave(&self, note: Note) {
        let ticket = self.ticket.fetch_add(1, Ordering::Relaxed);
        let first = Self::first(ticket);
        for index in 0..SLOTS {
            let index = (first + index) % SLOTS;
            let (state, slot) = (&self.states[index], &self.slots[index]);
            // Acquire: pairs with "taken" below, so that our stores come after the exporter's loads.
            let (claim, published) = (ticket << 2 | WRITING, ticket << 2 | FULL);
            let claimed =
                state.compare_exchange(EMPTY, claim, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_ok() {
                slot.offset.store(note.offset, Ordering::Relaxed);
                slot.len.store(note.len, Ordering::Relaxed);
                slot.last_word.store(note.last_word, Ordering::Relaxed);
                slot.check.store(note.check(published), Ordering::Relaxed);
                // Release: "published", pairs with the acquire load in `take`. It fails when the exporter took us for dead: then this
                // notification is counted already.
                let _ =
                    state.compare_exchange(claim, published, Ordering::Release, Ordering::Relaxed);
                return;
            }
        }
        // Release: "overflow", pairs with the swap in `take`.
        self.lost.fetch_add(1, Ordering::Release);
    }

    /// The slot that is tried first.
    #[allow(clippy::cast_possible_truncation, reason = "below SLOTS")]
    fn first(ticket: u64) -> usize {
        (ticket % SLOTS as u64) as usize
    }

    /// The exporter's event is signalled: nobody else needs to, until the exporter sleeps again.
    pub fn rung(&self, Sleep(bell): Sleep) {
        // Relaxed: it orders nothing. Fails when another sender was faster, or the exporter sleeps anew.
        let awake = bell | AWAKE;
        let _ = self.bell.compare_exchange(bell, awake, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Exporter: whoever leaves a notification from now on wakes it. It clears its event first, looks once more afterwards, and
    /// signals the event itself if it finds something. Each `generation` is another. Only one thread of the exporter at a time.
    pub fn announce_sleep(&self, generation: u64) {
        // An exchange rather than a store: it takes its place among those of `rung`.
        self.bell.swap(generation << 1, Ordering::Relaxed);
        // "Announced", pairs with the fence in `push`.
        fence(Ordering::SeqCst);
    }

    /// Takes the oldest notification, or the count of lost ones when there is none. Only one thread of the exporter at a
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
        if let Some((state, index)) = oldest {
            let slot = &self.slots[index];
            let note = Note {
                offset: slot.offset.load(Ordering::Relaxed),
                len: slot.len.load(Ordering::Relaxed),
                last_word: slot.last_word.load(Ordering::Relaxed),
            };
            let whole = slot.check.load(Ordering::Relaxed) == note.check(state);
            // Release: "taken".
            self.states[index].store(EMPTY, Ordering::Release);
            return Some(if whole { Taken::Note(note) } else { Taken::Lost(1) });
        }
        // Acquire: pairs with "overflow". The load first: most calls find nothing and need not write.
        if self.lost.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let lost = self.lost.swap(0, Ordering::Acquire).saturating_add(self.take_back_claims());
        (lost != 0).then_some(Taken::Lost(lost))
    }

    /// Frees the slots of senders that are taken for dead. How many there were.
    fn take_back_claims(&self) -> u64 {
        let now = self.ticket.load(Ordering::Relaxed);
        let stale = |state: u64| {
            state & STATE == WRITING && (now << 2).wrapping_sub(state & !STATE) >> 2 > STALE
        };
        let take_back = |slot: &&AtomicU64| {
            let state = slot.load(Ordering::Relaxed);
            // Relaxed: nothing of it was read.
            stale(state)
                && slot.compare_exchange(state, EMPTY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        self.states.iter().filter(take_back).count() as u64
    }

    /// The published slot with the lowest ticket, as far as one look can tell.
    fn oldest(&self) -> Option<(u64, usize)> {
        // Acquire: pairs with "published".
        let states = self.states.iter().map(|state| state.load(Ordering::Acquire)).zip(0..);
        states.filter(|(state, _)| state & STATE == FULL).min_by_key(|(state, _)| *state)
    }

    /// Whether `take` would find nothing.
    pub fn is_empty(&self) -> bool {
        self.lost.load(Ordering::Relaxed) == 0
            && self.states.iter().all(|state| state.load(Ordering::Relaxed) & STATE != FULL)
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
    fn in_order_then_the_count_of_the_lost() {
        let mailbox = Mailbox::new();
        for offset in 0..SLOTS as u64 + 5 {
            let _ = mailbox.push(note(offset));
        }
        for offset in 0..SLOTS as u64 {
            assert_eq!(mailbox.take(), Some(Taken::Note(note(offset))));
        }
        assert_eq!(mailbox.take(), Some(Taken::Lost(5)));
        assert_eq!(mailbox.take(), None);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn only_the_first_after_an_announcement_rings() {
        let mailbox = Mailbox::new();
        let first = mailbox.push(note(1)).expect("an exporter that never looked may sleep");
        let second = mailbox.push(note(2)).expect("the first has not rung yet");
        mailbox.rung(first);
        assert!(mailbox.push(note(3)).is_none());
        mailbox.announce_sleep(1);
        mailbox.rung(second);
        assert!(mailbox.push(note(4)).is_some(), "a ring for the last sleep ended this one");
    }

    /// As a sender leaves it that is killed, or stopped, between claim and publication.
    fn claim_and_stop(mailbox: &Mailbox) {
        let ticket = mailbox.ticket.fetch_add(1, Ordering::Relaxed);
        let slot = mailbox.states.iter().find(|state| state.load(Ordering::Relaxed) == EMPTY);
        slot.expect("a free slot").store(ticket << 2 | WRITING, Ordering::Relaxed);
    }

    #[test]
    fn senders_that_died_cost_their_slots_only_for_a_while() {
        let mailbox = Mailbox::new();
        (0..SLOTS).for_each(|_| claim_and_stop(&mailbox));
        // No slot is left: all come as counts, and none silently.
        for offset in 0..STALE - SLOTS as u64 {
            let _ = mailbox.push(note(offset));
            assert_eq!(mailbox.take(), Some(Taken::Lost(1)));
        }
        // Further ones find the first slots that come back, and the dead are counted, each once.
        let (mut notes, mut lost) = (0, 0);
        let mut take_all = || {
            while let Some(taken) = mailbox.take() {
                match taken {
                    Taken::Note(_) => notes += 1,
                    Taken::Lost(count) => lost += count,
                }
            }
        };
        for offset in 0..STALE {
            let _ = mailbox.push(note(offset));
            take_all();
        }
        // Slots come back when they are wanted.
        (0..=SLOTS as u64).for_each(|offset| _ = mailbox.push(note(offset)));
        take_all();
        assert_eq!(notes + lost, STALE + SLOTS as u64 + 1 + SLOTS as u64);
        let taken = |state: &&AtomicU64| state.load(Ordering::Relaxed) != EMPTY;
        assert_eq!(mailbox.states.iter().filter(taken).count(), 0);
        (0..SLOTS as u64).for_each(|offset| _ = mailbox.push(note(offset)));
        for offset in 0..SLOTS as u64 {
            assert_eq!(mailbox.take(), Some(Taken::Note(note(offset))));
        }
    }

    #[test]
    fn a_claim_is_left_alone_as_long_as_there_are_slots() {
        let mailbox = Mailbox::new();
        claim_and_stop(&mailbox);
        for offset in 0..4 * STALE {
            let _ = mailbox.push(note(offset));
            assert_eq!(mailbox.take(), Some(Taken::Note(note(offset))));
        }
        assert_eq!(mailbox.states.iter().filter(|s| s.load(Ordering::Relaxed) != EMPTY).count(), 1);
    }

    #[test]
    fn what_a_slow_sender_stored_over_another_is_told_as_lost() {
        let mailbox = Mailbox::new();
        let _ = mailbox.push(note(7));
        mailbox.slots[0].len.store(1, Ordering::Relaxed);
        assert_eq!(mailbox.take(), Some(Taken::Lost(1)));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn nonsense_is_taken_in_bounded_time() {
        let mailbox = Mailbox::new();
        for (index, slot) in mailbox.slots.iter().enumerate() {
            mailbox.states[index].store(u64::MAX - index as u64, Ordering::Relaxed);
            slot.offset.store(u64::MAX, Ordering::Relaxed);
        }
        mailbox.lost.store(u64::MAX, Ordering::Relaxed);
        let taken = core::iter::from_fn(|| mailbox.take()).count();
        assert!(taken <= SLOTS + 1, "{taken}");
    }
}
