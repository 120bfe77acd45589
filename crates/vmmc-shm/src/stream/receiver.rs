//! The reading end.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{FIN, FROZEN, OFFSET, Piece, Tier, Words};
use crate::copy::prefetch;

/// What has arrived and was not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Bytes that can be read now from the current ring; at most its window, whatever the peer wrote.
    pub len: usize,
    /// More bytes have arrived in a larger ring; the next look after these were consumed finds them.
    pub more: bool,
    /// The peer ended its stream after what has arrived (which may be more than `len`).
    pub fin: bool,
    /// The stream goes on elsewhere after what has arrived.
    pub frozen: bool,
}

/// A part of the stream that the peer has written to TCP too, so that whoever cannot read the ring finds it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// Stream offset at which it begins.
    pub from: u64,
    /// Stream offset at which it ends, once that is certain; at most that of the freeze.
    pub until: Option<u64>,
    /// Stream offset of the freeze.
    pub tail: u64,
}

impl Repeat {
    /// Everything that was unread is there.
    pub fn complete(&self) -> bool {
        self.until == Some(self.tail)
    }

    /// How many of the repeated bytes lie before the stream offset `head`.
    pub fn before(&self, head: u64) -> u64 {
        head.min(self.until.unwrap_or(self.tail)).saturating_sub(self.from)
    }
}

/// The peer wrote words that no honest peer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// Where a reading end was.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    head: u64,
    position: u32,
    tier: Tier,
}

/// The private indices of a reading end. They are atomics only so that processes that came from one fork can share
/// them in memory of their own; whoever changes them holds the lock of this direction.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Receiver {
    head: AtomicU64,
    pub(super) position: AtomicU32,
    pub(super) tier: AtomicU32,
}

impl Receiver {
    /// Back to the start of a stream.
    pub fn reset(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.position.store(0, Ordering::Relaxed);
        self.tier.store(Tier::Page as u32, Ordering::Relaxed);
    }

    /// Stream offset up to which everything was read.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Relaxed)
    }

    /// Where in the ring the next byte lies.
    pub fn position(&self) -> usize {
        self.position.load(Ordering::Relaxed) as usize
    }

    /// The tier that holds the next byte.
    pub fn tier(&self) -> Tier {
        Tier::nth(self.tier.load(Ordering::Relaxed))
    }

    /// Whether the peer's next byte is the first after it came back to the first ring, at whose start it lies. It comes back
    /// only where everything has been read, so that is where the head is.
    #[inline]
    fn at_return(&self, mine: &Words) -> bool {
        mine.returned.load(Ordering::Relaxed) == self.head().wrapping_add(1)
    }

    /// Looks at `mine`, the words in one's own memory; goes over to another ring where the peer did.
    #[inline]
    pub fn arrived(&self, mine: &Words) -> Result<Arrived, Corrupt> {
        let tail = mine.visible();
        let head = self.head.load(Ordering::Relaxed);
        let (fin, frozen) = (tail & FIN != 0, tail & FROZEN != 0);
        let mut len = (tail & OFFSET).wrapping_sub(head);
        if len == 0 {
            return Ok(Arrived { len: 0, more: false, fin, frozen });
        }
        if self.at_return(mine) {
            self.tier.store(Tier::Page as u32, Ordering::Relaxed);
            self.position.store(0, Ordering::Relaxed);
        }
        let mut more = false;
        let mut tier = self.tier();
        while tier != Tier::Bulk {
            let Some(boundary) = mine.grown[tier as usize].load(Ordering::Relaxed).checked_sub(1)
            else {
                break;
            };
            let ahead = boundary.checked_sub(head).ok_or(Corrupt)?;
            if ahead > 0 {
                more = len > ahead;
                len = len.min(ahead);
                break;
            }
            tier = Tier::nth(tier as u32 + 1);
            self.tier.store(tier as u32, Ordering::Relaxed);
            self.position.store(0, Ordering::Relaxed);
        }
        if len > tier.window() as u64 {
            return Err(Corrupt);
        }
        Ok(Arrived { len: len as usize, more, fin, frozen })
    }

    /// Bytes that have arrived in all rings and were not read; at most what they hold, whatever the peer wrote.
    pub fn unread(&self, mine: &Words) -> usize {
        let tail = mine.visible() & OFFSET;
        let len = tail.wrapping_sub(self.head.load(Ordering::Relaxed));
        if len > Tier::MEMORY as u64 { 0 } else { len as usize }
    }

    /// Where the bytes lie that have arrived and were not read, in stream order: for those who look without consuming.
    /// Ends early where the peer's words make no sense, which [`Receiver::arrived`] finds out.
    pub fn unread_pieces(&self, mine: &Words) -> impl Iterator<Item = Piece> + use<> {
        let (head, unread) = (self.head(), self.unread(mine) as u64);
        let (first, start) = match self.at_return(mine) {
            true => (Tier::Page, 0),
            false => (self.tier(), self.position()),
        };
        let grown = [0, 1].map(|n: usize| mine.grown[n].load(Ordering::Relaxed).checked_sub(1));
        let (mut from, mut position) = (0, start);
        let tiers = [Tier::Page, Tier::Medium, Tier::Bulk].into_iter();
        tiers.filter(move |tier| *tier >= first).map_while(move |tier| {
            let boundary = grown.get(tier as usize).copied().flatten();
            let end = boundary
                .map_or(Some(unread), |at| at.checked_sub(head))
                .map(|at| at.min(unread))?;
            let len = end.checked_sub(from).filter(|len| *len <= tier.window() as u64)? as usize;
            let piece = Piece { tier, position, len };
            (from, position) = (end, 0);
            Some(piece)
        })
    }

    /// Whether the stream goes on elsewhere, perhaps after bytes that are still here.
    #[inline]
    pub fn frozen(&self, mine: &Words) -> bool {
        mine.tail.load(Ordering::Relaxed) & FROZEN != 0
    }

    /// Cheap look that changes nothing: is there anything at all to find out (bytes, end, freeze)?
    ///
    /// Who looks again and again has the first of the bytes on its way to this processor together with the tail, not after it:
    /// 6 % of a round trip of 14 bytes, 7 % of the requests of redis over one connection.
    #[inline]
    pub fn stirred(&self, mine: &Words) -> bool {
        let stirred = mine.visible() != self.head.load(Ordering::Relaxed);
        if !stirred && self.tier() == Tier::Page {
            prefetch(
                std::ptr::from_ref(mine)
                    .cast::<u8>()
                    .wrapping_add(Tier::Page.start() + self.position()),
            );
        }
        stirred
    }

    /// As [`Receiver::stirred`], for who knows of `len` unread bytes already.
    #[inline]
    pub fn stirred_beyond(&self, mine: &Words, len: usize) -> bool {
        let known = self.head.load(Ordering::Relaxed) + len as u64;
        mine.visible() != known
    }

    /// Gives `len` bytes back to the producer, through `theirs`, the words in the peer's memory.
    #[inline]
    pub fn consume(&self, theirs: &Words, len: usize, position: usize) {
        let head = self.head.load(Ordering::Relaxed) + len as u64;
        self.position.store(position as u32, Ordering::Relaxed);
        self.head.store(head, Ordering::Relaxed);
        // SYNC credit: the copy out of the ring is finished before the producer may overwrite it; and (SeqCst
        // read-modify-write) a full barrier before the caller looks at `writer_waiting` (SYNC waiting).
        theirs.credit.swap(head, Ordering::SeqCst);
    }

    /// Finishes what somebody who had these indices before was about and did not come to the end of: that may have been between any two of
    /// them. The producer may wait for what is given back here.
    #[cold]
    pub fn recover(&self, mine: &Words, theirs: &Words) {
        let (tail, head) = (mine.visible(), self.head());
        if self.at_return(mine) {
            self.tier.store(Tier::Page as u32, Ordering::Relaxed);
        }
        let tier = self.tier();
        let begin = match tier {
            Tier::Page => &mine.returned,
            Tier::Medium => &mine.grown[0],
            Tier::Bulk => &mine.grown[1],
        };
        // The peer's word: whatever it says, the position is in the ring.
        let begin = begin.load(Ordering::Relaxed).saturating_sub(1);
        let position = head.wrapping_sub(begin) % tier.capacity() as u64;
        self.position.store(position as u32, Ordering::Relaxed);
        // What was passed over behind a freeze is not given back.
        if tail & FROZEN == 0 {
            theirs.credit.swap(head, Ordering::SeqCst);
        }
    }

    /// Passes over `len` bytes without giving them back to the producer, which may still have to read them again.
    pub fn skip(&self, len: usize, position: usize) {
        self.position.store(position as u32, Ordering::Relaxed);
        self.head.store(self.head() + len as u64, Ordering::Relaxed);
    }

    /// Where this end is, for [`Receiver::go_back`].
    pub fn place(&self) -> Place {
        Place { head: self.head(), position: self.position() as u32, tier: self.tier() }
    }

    /// Back to where this end was before it skipped what the producer has not got back.
    pub fn go_back(&self, place: Place) {
        self.tier.store(place.tier as u32, Ordering::Relaxed);
        self.position.store(place.position, Ordering::Relaxed);
        self.head.store(place.head, Ordering::Relaxed);
    }

    /// Freezes one's own incoming ring: no byte can be published after this. False: the peer had frozen it.
    pub fn freeze(&self, mine: &Words) -> bool {
        mine.tail.fetch_or(FROZEN, Ordering::SeqCst) & FROZEN == 0
    }

    /// As [`Receiver::freeze`], if everything that the peer has published was read, and it has ended nothing; whether it was done.
    pub fn freeze_if_read(&self, mine: &Words) -> bool {
        let head = self.head();
        mine.tail.compare_exchange(head, head | FROZEN, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// What the peer, which has frozen the stream, repeats on TCP. Whatever it wrote, the offsets are in order.
    pub fn repeat(&self, mine: &Words) -> Option<Repeat> {
        let tail = mine.visible();
        let from = mine.repeats_from.load(Ordering::Acquire).checked_sub(1)?;
        if tail & FROZEN == 0 {
            return None;
        }
        let tail = tail & OFFSET;
        let from = from.min(tail);
        // SYNC repeat: acquire pairs with the release in `Transmitter::end_repeat`.
        let until = mine.repeats_until.load(Ordering::Acquire).checked_sub(1);
        Some(Repeat { from, until: until.map(|until| until.clamp(from, tail)), tail })
    }
}
