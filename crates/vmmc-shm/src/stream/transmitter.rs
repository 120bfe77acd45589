//! The writing end.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{CORKED, FIN, FROZEN, OFFSET, Tier, Words, cork};
use crate::copy::prefetch_for_writing;

#[cold]
fn unlikely(what: impl Fn() -> bool) -> bool {
    what()
}

/// What became of bytes that were copied into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// The reader can see them.
    Done,
    /// They are held back, as others before them of which the reader knows.
    Corked,
    /// The reader has frozen the ring before: the bytes do not count as sent.
    Frozen,
}

/// A contiguous part of the stream in one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The ring.
    pub tier: Tier,
    /// Where in it, in bytes.
    pub position: usize,
    /// Bytes; they may run over the seam.
    pub len: usize,
}

/// The private indices of a writing end; as with [`super::Receiver`], their lock is the caller's business.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Transmitter {
    tail: AtomicU64,
    credit: AtomicU64,
    position: AtomicU32,
    tier: AtomicU32,
    /// Stream offset at which each tier begins, as far as it is in use.
    begins: [AtomicU64; 3],
    /// How many bytes may be unread in all while the bulk ring is in use; zero: what fits.
    bound: AtomicU32,
    /// Stream offset up to which nothing is held back, while something is.
    uncorked: AtomicU64,
}

impl Transmitter {
    /// Back to the start of a stream.
    pub fn reset(&self) {
        for word in [&self.tail, &self.credit, &self.begins[0], &self.begins[1], &self.begins[2]] {
            word.store(0, Ordering::Relaxed);
        }
        self.position.store(0, Ordering::Relaxed);
        self.tier.store(Tier::Page as u32, Ordering::Relaxed);
        self.bound.store(0, Ordering::Relaxed);
    }

    /// Stream offset up to which bytes were published.
    pub fn tail(&self) -> u64 {
        self.tail.load(Ordering::Relaxed)
    }

    /// Where in the ring the next byte goes.
    pub fn position(&self) -> usize {
        self.position.load(Ordering::Relaxed) as usize
    }

    /// The tier in use.
    pub fn tier(&self) -> Tier {
        Tier::nth(self.tier.load(Ordering::Relaxed))
    }

    /// How many bytes may be unread in the tier in use.
    #[inline]
    pub fn window(&self) -> usize {
        let window = self.tier().window();
        self.bound().map_or(window, |bound| bound.min(window))
    }

    /// From now on, while the bulk ring is in use, at most `bytes` may be unread, wherever; `None`: what fits.
    pub fn set_bound(&self, bytes: Option<NonZeroU32>) {
        self.bound.store(bytes.map_or(0, NonZeroU32::get), Ordering::Relaxed);
    }

    #[inline]
    fn bound(&self) -> Option<usize> {
        if self.tier() != Tier::Bulk {
            return None;
        }
        NonZeroU32::new(self.bound.load(Ordering::Relaxed)).map(|bound| bound.get() as usize)
    }

    /// Bytes that can be written now, by the credit known; looks again in `mine` only when that is less than `wanted`.
    #[inline]
    pub fn room(&self, mine: &Words, wanted: usize) -> usize {
        let room = self.room_with(self.credit.load(Ordering::Relaxed));
        if room >= wanted { room } else { self.room_with(self.learn_credit(mine)) }
    }

    /// As [`Transmitter::room`] with the newest credit, changing nothing: for those who only want to know.
    #[inline]
    pub fn spare(&self, mine: &Words) -> usize {
        self.room_with(self.newest_credit(mine))
    }

    /// Bytes that were published and not consumed yet.
    pub fn unread(&self, mine: &Words) -> u64 {
        self.tail.load(Ordering::Relaxed) - self.learn_credit(mine)
    }

    fn room_with(&self, credit: u64) -> usize {
        let tier = self.tier.load(Ordering::Relaxed);
        let begin = self.begins[tier as usize % 3].load(Ordering::Relaxed);
        let tail = self.tail.load(Ordering::Relaxed);
        let room = |window: usize, from| window.saturating_sub(tail.saturating_sub(from) as usize);
        let in_ring = room(Tier::nth(tier).window(), begin.max(credit));
        match self.bound() {
            Some(bound) => in_ring.min(room(bound, credit)),
            None => in_ring,
        }
    }

    fn newest_credit(&self, mine: &Words) -> u64 {
        // SYNC credit: acquire pairs with the swap in `Receiver::consume`; the reader has copied those bytes out.
        let claimed = mine.credit.load(Ordering::Acquire);
        let known = self.credit.load(Ordering::Relaxed);
        // The peer's word counts only where it is possible: it can neither go back nor pass what was published.
        if claimed > known && claimed <= self.tail.load(Ordering::Relaxed) {
            claimed
        } else {
            known
        }
    }

    fn learn_credit(&self, mine: &Words) -> u64 {
        let credit = self.newest_credit(mine);
        self.credit.store(credit, Ordering::Relaxed);
        credit
    }

    /// Asks for the lines that the next bytes and their publication will write, at the same time and before they are needed: the
    /// publication waits for both. 5 % of the requests of redis over one connection.
    #[inline]
    pub fn prepare(&self, theirs: &Words) {
        if self.tier() == Tier::Page {
            let next = std::ptr::from_ref(theirs).cast::<u8>();
            let next = next.wrapping_add(Tier::Page.start() + self.position());
            prefetch_for_writing(next);
        }
        prefetch_for_writing(&raw const theirs.tail);
    }

    /// Makes `len` bytes that were copied in at [`Transmitter::position`] visible to the reader.
    #[inline]
    pub fn publish(&self, theirs: &Words, len: usize, position: usize) -> Publish {
        let tail = self.tail.load(Ordering::Relaxed);
        let next = tail + len as u64;
        // SYNC tail: release makes the copied bytes visible first; a read-modify-write because the reader may freeze
        // the ring at any moment, and (SeqCst) a full barrier before the caller looks at `reader_waiting`.
        let published = |known| {
            theirs.tail.compare_exchange(known, next, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        };
        // Else with what was held back, of which the reader may let go just now.
        let otherwise = || published(tail | CORKED) || published(tail);
        if published(tail) || unlikely(otherwise) {
            self.advance(next, position);
            Publish::Done
        } else {
            Publish::Frozen
        }
    }

    /// As [`Transmitter::publish`], but holds the bytes back, and those before them that are; not more than fit a segment.
    #[cold]
    pub fn publish_corked(&self, theirs: &Words, len: usize, position: usize) -> Publish {
        let tail = self.tail.load(Ordering::Relaxed);
        let next = tail + len as u64;
        // The reader may let go of what was held back meanwhile, once. What else it writes is no honest reader's.
        for _ in 0..2 {
            let known = theirs.tail.load(Ordering::Relaxed);
            if known & !CORKED != tail {
                break;
            }
            let holds = known != tail && theirs.patience() > 0;
            let from = if holds { self.uncorked.load(Ordering::Relaxed) } else { tail };
            let uncorked = cork::free(from, next);
            let goes_on = holds && uncorked == from;
            if !goes_on {
                self.uncorked.store(uncorked, Ordering::Relaxed);
                theirs.cork(uncorked);
            }
            let word = if uncorked == next { next } else { next | CORKED };
            let tail = &theirs.tail;
            if tail.compare_exchange(known, word, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                self.advance(next, position);
                return if goes_on { Publish::Corked } else { Publish::Done };
            }
        }
        Publish::Frozen
    }

    #[inline]
    fn advance(&self, tail: u64, position: usize) {
        self.tail.store(tail, Ordering::Relaxed);
        self.position.store(position as u32, Ordering::Relaxed);
    }

    /// Goes on in the next larger ring, if there is one. What is in the smaller ones stays readable.
    pub fn grow(&self, theirs: &Words) -> bool {
        let tier = self.tier();
        let Some(larger) = tier.larger() else { return false };
        let tail = self.tail.load(Ordering::Relaxed);
        // The reader looks at this word only after it has seen a later tail (SYNC tail).
        theirs.grown[tier as usize].store(tail + 1, Ordering::Relaxed);
        self.begin(larger, tail);
        true
    }

    /// Goes back to the first ring, if everything that was published has been read. The larger ones are then nobody's: their
    /// memory may be given back before the next [`Transmitter::grow`].
    pub fn shrink(&self, mine: &Words, theirs: &Words) -> bool {
        if self.tier() == Tier::Page || self.unread(mine) > 0 {
            return false;
        }
        let tail = self.tail();
        // As in `grow`: with all read, the reader looks at these words only after it has seen a later tail (SYNC tail).
        theirs.grown[0].store(0, Ordering::Relaxed);
        theirs.grown[1].store(0, Ordering::Relaxed);
        theirs.returned.store(tail + 1, Ordering::Relaxed);
        self.begin(Tier::Page, tail);
        true
    }

    /// Finishes what somebody who had these indices before was about and did not come to the end of: that may have been between what the
    /// reader sees and the indices.
    #[cold]
    pub fn recover(&self, theirs: &Words) {
        let tail = self.tail();
        let published = theirs.tail.load(Ordering::Acquire) & OFFSET;
        // The word is the reader's too: no more counts than there was room for.
        let room = self.room_with(self.credit.load(Ordering::Relaxed)) as u64;
        if published > tail && published - tail <= room {
            self.tail.store(published, Ordering::Relaxed);
        }
        let (tail, tier) = (self.tail(), self.tier());
        let left = theirs
            .grown
            .get(tier as usize)
            .is_some_and(|left| left.load(Ordering::Relaxed) == tail + 1);
        if left {
            self.grow(theirs);
        } else if tier != Tier::Page && theirs.returned.load(Ordering::Relaxed) == tail + 1 {
            self.begin(Tier::Page, tail);
        }
        let tier = self.tier();
        let begin = self.begins[tier as usize].load(Ordering::Relaxed);
        let position = self.tail().saturating_sub(begin) % tier.capacity() as u64;
        self.position.store(position as u32, Ordering::Relaxed);
    }

    /// The stream goes on in a ring of this tier from the offset `tail` on.
    fn begin(&self, tier: Tier, tail: u64) {
        self.begins[tier as usize].store(tail, Ordering::Relaxed);
        self.position.store(0, Ordering::Relaxed);
        self.tier.store(tier as u32, Ordering::Relaxed);
    }

    /// Ends the stream after what was published.
    pub fn finish(&self, theirs: &Words) {
        theirs.tail.fetch_or(FIN, Ordering::SeqCst);
    }

    /// Says that the stream goes on elsewhere after what was published. False: the reader had frozen it.
    pub fn freeze(&self, theirs: &Words) -> bool {
        theirs.tail.fetch_or(FROZEN, Ordering::SeqCst) & FROZEN == 0
    }

    /// Before a freeze: tells the reader that what is unread now will be repeated on TCP. The stream offset from which on;
    /// none if everything was read.
    pub fn begin_repeat(&self, mine: &Words, theirs: &Words) -> Option<u64> {
        let from = self.learn_credit(mine);
        if from == self.tail() {
            return None;
        }
        theirs.repeats_from.store(from + 1, Ordering::SeqCst);
        Some(from)
    }

    /// The repetition ends at the stream offset `until`; whatever is written to TCP from now on is new.
    pub fn end_repeat(&self, theirs: &Words, until: u64) {
        // SYNC repeat: before anything else is written to TCP.
        theirs.repeats_until.store(until + 1, Ordering::SeqCst);
    }

    /// Whether the reader (or this end) has frozen or finished the ring.
    pub fn closed(&self, theirs: &Words) -> bool {
        theirs.tail.load(Ordering::Acquire) & (FIN | FROZEN) != 0
    }

    /// Where the bytes lie that were published and not consumed, in stream order.
    pub fn unread_pieces(&self, mine: &Words) -> impl Iterator<Item = Piece> + use<> {
        self.pieces_from(self.learn_credit(mine))
    }

    /// Where the bytes lie that were published, from the stream offset `start` on, which the reader had not passed when it
    /// was learnt.
    pub fn pieces_from(&self, start: u64) -> impl Iterator<Item = Piece> + use<> {
        let (tail, last) = (self.tail(), self.tier());
        let begins = [0, 1, 2].map(|n| self.begins[n].load(Ordering::Relaxed));
        [Tier::Page, Tier::Medium, Tier::Bulk].into_iter().filter_map(move |tier| {
            let begin = begins[tier as usize];
            let end = if tier == last { tail } else { *begins.get(tier as usize + 1)? };
            let from = start.max(begin);
            (tier <= last && from < end).then(|| Piece {
                tier,
                position: ((from - begin) % tier.capacity() as u64) as usize,
                len: (end - from) as usize,
            })
        })
    }
}
