//! Redirection: where an arrival's bytes go, in memory that every sender may write.
//!
//! The receiver *posts* an address for a range of its export; what arrives there goes to the posted memory instead of the
//! export's own, the default buffer. Senders and engines ask [`Table::place`] for every piece; the receiver's
//! [`Table::withdraw`] ends a posting and tells exactly which bytes were redirected. Nobody waits for a sender longer
//! than the receiver has patience, and a sender waits for nobody.
//!
//! ```text
//! open             bit i: posting i is open; the one word that a send looks at while nothing is posted
//! postings[7]      state: generation << 1 | OPEN, then start, len, destination
//!                  crowd: generation << 16 | arrivals that found no record
//!                  records[59], one word each: len << 33 | start << 2 | EMPTY, BUSY, DONE, REVOKED
//! ```
//!
//! A record is a range of the posting that was redirected. An arrival owns a record while it copies:
//!
//! ```text
//!          claim                     commit
//! EMPTY ----------> BUSY(start, 0) ----------> DONE(start, len)      bytes of the posted memory
//!                   BUSY(range)  <-- claim --  DONE(range)           an arrival that touches it makes it longer
//!                     |  withdraw has no patience left
//!                     v
//!                  REVOKED ----------> EMPTY                         the arrival comes back, and copies to the default buffer
//! ```
//!
//! **Who wins a race** is one compare-and-swap on that word. *Post against arrival*: every piece of an arrival looks again,
//! so those before the post lie in the default buffer and those after it in the posted memory. *Withdraw against arrival*: either the commit comes
//! first, and the bytes count as redirected, or the withdrawal does, and the arrival puts them into the default
//! buffer before the send returns. Either way nothing is lost, and a signal or notification after the send finds
//! the bytes where the receiver was told. *Two posts*: only the receiver posts; it refuses ranges that overlap.
//!
//! **A sender that dies** or stops with a record in its hands makes `withdraw` say so: it may still write there, so the
//! receiver has to replace those pages. The record stays lost. **An arrival that finds no record** (more than 59 at a time, or
//! that many died) joins the crowd and is written to both places, which is right whatever the receiver finds.
//! **A hostile sender** can spoil what is redirected, as it can spoil the export; what is found here is checked before it is
//! used, on both sides.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use core::fmt;
use core::ops::Range;

/// Most postings of an export at a time.
#[cfg(not(loom))]
pub const POSTINGS: usize = 7;
/// Most postings of an export at a time.
#[cfg(loom)]
pub const POSTINGS: usize = 2;

#[cfg(not(loom))]
const RECORDS: usize = 59;
#[cfg(loom)]
const RECORDS: usize = 1;

/// Longest posting, bytes.
pub const MAX_POSTED: u64 = (1 << 31) - 1;

/// Longest piece that is placed at once, bytes. A post in the middle of an arrival takes effect at the next piece.
#[cfg(not(loom))]
pub const PIECE: u64 = 128 * 1024;
/// Longest piece that is placed at once, bytes.
#[cfg(loom)]
pub const PIECE: u64 = 1;

const OPEN: u64 = 1;

/// The table as it lies in shared memory; all zero is one without postings.
#[repr(C, align(64))]
pub struct Table {
    open: AtomicU64,
    postings: [Posting; POSTINGS],
}

#[repr(C, align(64))]
#[derive(Debug)]
struct Posting {
    state: AtomicU64,
    start: AtomicU64,
    len: AtomicU64,
    destination: AtomicU64,
    crowd: AtomicU64,
    records: [AtomicU64; RECORDS],
}

/// Where the next bytes of an arrival go.
#[derive(Debug)]
pub enum Place<'t> {
    /// So many bytes into the default buffer; then ask again.
    Default(u64),
    /// Into posted memory.
    Posted(Claim<'t>),
}

/// A part of posted memory that an arrival may write. Dropping it without [`Claim::commit`] means that the bytes did not come.
#[derive(Debug)]
pub struct Claim<'t> {
    posting: &'t Posting,
    /// State word of the posting.
    state: u64,
    /// Range within the posting.
    range: Range<u64>,
    destination: u64,
    hold: Hold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// The record that is ours while it is BUSY, and what it was.
    Record(usize, u64),
    Crowd,
    Nothing,
}

/// How a posting ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// The ranges within the posting whose bytes are in the posted memory: in order, neither empty nor touching.
    pub redirected: Vec<Range<u64>>,
    /// A sender stopped or died in the middle, and may still write into the posted memory.
    pub stalled: bool,
}

impl Table {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// Looks at mapped memory as a table.
    ///
    /// # Safety
    /// `start` is aligned to 64, points to at least [`Self::LEN`] mapped and writable bytes that stay mapped for `'a`.
    #[cfg(not(loom))]
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; all fields are atomics, for which any bytes are
        // valid and which others may change.
        unsafe { &*start.cast::<Self>() }
    }

    /// A table without postings, in private memory.
    pub fn new() -> Self {
        let word = || AtomicU64::new(0);
        Self {
            open: word(),
            postings: core::array::from_fn(|_| Posting {
                state: word(),
                start: word(),
                len: word(),
                destination: word(),
                crowd: word(),
                records: core::array::from_fn(|_| word()),
            }),
        }
    }

    /// Sender: whether nothing is posted.
    #[inline]
    pub fn is_idle(&self) -> bool {
        // Relaxed: whoever goes on looks at the posting's own state, with acquire.
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Sender: where the first of `len` bytes (not 0) for `offset` of the export go, and how many of them. Posted memory is
    /// `pool` bytes long; what is said to lie elsewhere is not believed. Bounded work, no waiting.
    pub fn place(&self, offset: u64, len: u64, pool: u64) -> Place<'_> {
        let mut piece = len.min(PIECE);
        let mut open = self.open.load(Ordering::Relaxed) & ((1 << POSTINGS) - 1);
        while open != 0 {
            let posting = &self.postings[open.trailing_zeros() as usize];
            open &= open - 1;
            let Some(seen) = posting.look(pool) else { continue };
            if seen.range.contains(&offset) {
                let within = offset - seen.range.start;
                let piece = piece.min(seen.range.end - offset);
                let destination = seen.destination + within;
                if let Some(claim) = posting.claim(seen.state, within..within + piece, destination)
                {
                    return Place::Posted(claim);
                }
            } else if seen.range.start > offset {
                piece = piece.min(seen.range.start - offset);
            }
        }
        Place::Default(piece)
    }

    /// Receiver: what arrives from now on in `len` bytes from `start` on goes to `destination` of the posted memory. `index`
    /// is below [`POSTINGS`] and not open, `generation` larger than any before, `len` at most [`MAX_POSTED`].
    pub fn post(&self, index: usize, generation: u64, start: u64, len: u64, destination: u64) {
        let posting = &self.postings[index];
        posting.start.store(start, Ordering::Relaxed);
        posting.len.store(len, Ordering::Relaxed);
        posting.destination.store(destination, Ordering::Relaxed);
        posting.crowd.store(generation << 16, Ordering::Relaxed);
        // Release: "posted", pairs with the acquire load in `look`.
        posting.state.store(generation << 1 | OPEN, Ordering::Release);
        self.open.fetch_or(1 << index, Ordering::Relaxed);
    }

    /// Receiver: the ranges of an open posting of `len` bytes that are redirected so far.
    pub fn redirected(&self, index: usize, len: u64) -> Vec<Range<u64>> {
        let words =
            self.postings[index].records.iter().map(|record| record.load(Ordering::Acquire));
        merged(words.filter_map(|word| covered(word, len)).collect())
    }

    /// Receiver: ends a posting of `len` bytes. Arrivals that are copying are waited for while `patient` says so. Afterwards
    /// no honest sender writes into the posted memory, unless the result says that one stalled. `patient` must come to an
    /// end.
    pub fn withdraw(
        &self,
        index: usize,
        generation: u64,
        len: u64,
        mut patient: impl FnMut() -> bool,
    ) -> Withdrawn {
        let posting = &self.postings[index];
        self.open.fetch_and(!(1 << index), Ordering::Relaxed);
        posting.state.store(generation << 1, Ordering::Relaxed);
        // "Closed", pairs with the fence in `claim`: an arrival that we do not see busy sees that it is too late.
        fence(Ordering::SeqCst);
        let mut redirected = Vec::new();
        let mut stalled = false;
        for record in &posting.records {
            let (word, ended) = end(record, &mut patient);
            stalled |= !ended;
            redirected.extend(covered(word, len));
        }
        while posting.crowd.load(Ordering::Acquire) & CROWD != 0 && !stalled {
            stalled = !patient();
        }
        Withdrawn { redirected: merged(redirected), stalled }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("is_idle", &self.is_idle()).finish_non_exhaustive()
    }
}

/// An open posting as a sender sees it, checked.
struct Seen {
    state: u64,
    range: Range<u64>,
    destination: u64,
}

const CROWD: u64 = 0xffff;

impl Posting {
    /// `None` when it is not open, or nonsense.
    fn look(&self, pool: u64) -> Option<Seen> {
        // Acquire: pairs with "posted".
        let state = self.state.load(Ordering::Acquire);
        if state & OPEN == 0 {
            return None;
        }
        // A new posting may be written over these meanwhile; then `claim` finds another state.
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let destination = self.destination.load(Ordering::Relaxed);
        let fits = len <= MAX_POSTED && destination <= pool && len <= pool - destination;
        let end = start.checked_add(len).filter(|_| fits)?;
        Some(Seen { state, range: start..end, destination })
    }

    /// Makes an arrival visible to `withdraw`; `None` when that came first.
    fn claim(&self, state: u64, range: Range<u64>, destination: u64) -> Option<Claim<'_>> {
        let hold = self.take_record(&range).or_else(|| self.join_crowd(state))?;
        // Dropped below, it gives back what it holds.
        let claim = Claim { posting: self, state, range, destination, hold };
        // "Claimed", pairs with the fence in `withdraw`.
        fence(Ordering::SeqCst);
        (self.state.load(Ordering::Relaxed) == state).then_some(claim)
    }

    /// The first record that can become longer, or is free.
    fn take_record(&self, range: &Range<u64>) -> Option<Hold> {
        self.records.iter().enumerate().find_map(|(index, record)| {
            let found = record.load(Ordering::Relaxed);
            let busy = match found & STATE {
                EMPTY => word(&(range.start..range.start), BUSY),
                DONE if touches(&bounds(found), range) => found & !STATE | BUSY,
                _ => return None,
            };
            // Acquire and release: who reads what we publish also sees what the record's earlier owners copied.
            let taken =
                record.compare_exchange(found, busy, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            taken.then_some(Hold::Record(index, found))
        })
    }

    fn join_crowd(&self, state: u64) -> Option<Hold> {
        let joined = self.crowd.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |crowd| {
            let same = crowd >> 16 == state << 15 >> 16 && crowd & CROWD != CROWD;
            same.then(|| crowd + 1)
        });
        joined.ok().map(|_| Hold::Crowd)
    }

    fn leave_crowd(&self, state: u64) {
        // Release: pairs with the load in `withdraw`. Another generation does not count us.
        let _ = self.crowd.fetch_update(Ordering::Release, Ordering::Relaxed, |crowd| {
            (crowd >> 16 == state << 15 >> 16 && crowd & CROWD != 0).then(|| crowd - 1)
        });
    }
}

impl Claim<'_> {
    /// Where the bytes go, from the start of the posted memory; with [`Claim::len`] inside it.
    #[inline]
    pub fn destination(&self) -> u64 {
        self.destination
    }

    /// How many bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// All bytes are copied. With `false` they must be copied into the default buffer too: the posting was withdrawn
    /// meanwhile, or nobody could note where they lie.
    #[must_use = "bytes that were not accepted belong into the default buffer"]
    pub fn commit(mut self) -> bool {
        let accepted = match self.hold {
            Hold::Record(index, found) => {
                let range = match found & STATE {
                    DONE => union(&bounds(found), &self.range),
                    _ => self.range.clone(),
                };
                self.give_back(index, found, word(&range, DONE))
            }
            Hold::Crowd | Hold::Nothing => return false,
        };
        self.hold = Hold::Nothing;
        accepted
    }

    /// Ends our ownership of a record; whether it had not been revoked.
    fn give_back(&self, index: usize, found: u64, next: u64) -> bool {
        let record = &self.posting.records[index];
        let busy = match found & STATE {
            DONE => found & !STATE | BUSY,
            _ => word(&(self.range.start..self.range.start), BUSY),
        };
        // Release: "done", pairs with the loads of `withdraw`.
        let kept = record.compare_exchange(busy, next, Ordering::Release, Ordering::Relaxed);
        if let Err(now) = kept
            && now & STATE == REVOKED
        {
            let _ = record.compare_exchange(now, EMPTY, Ordering::Release, Ordering::Relaxed);
        }
        kept.is_ok()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        match self.hold {
            Hold::Record(index, found) => drop(self.give_back(index, found, found)),
            Hold::Crowd => self.posting.leave_crowd(self.state),
            Hold::Nothing => {}
        }
    }
}

const EMPTY: u64 = 0;
const BUSY: u64 = 1;
const DONE: u64 = 2;
const REVOKED: u64 = 3;
const STATE: u64 = 3;

/// Lengths and starts are at most [`MAX_POSTED`], so each has 31 bits.
fn word(range: &Range<u64>, state: u64) -> u64 {
    (range.end - range.start) << 33 | range.start << 2 | state
}

fn bounds(word: u64) -> Range<u64> {
    let start = word >> 2 & MAX_POSTED;
    start..start + (word >> 33)
}

fn touches(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start <= other.end && other.start <= one.end
}

fn union(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.min(other.start)..one.end.max(other.end)
}

/// The bytes of a posting of `len` bytes that a record vouches for; it was written by a stranger.
fn covered(word: u64, len: u64) -> Option<Range<u64>> {
    let range = bounds(word);
    let counts = matches!(word & STATE, BUSY | DONE);
    (counts && !range.is_empty() && range.end <= len).then_some(range)
}

/// In order, and those that touch made one.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Takes a record from its owner: what it said, and whether nobody owns it any more.
fn end(record: &AtomicU64, patient: &mut impl FnMut() -> bool) -> (u64, bool) {
    let take = |found, next| {
        record.compare_exchange(found, next, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    loop {
        // Acquire: pairs with "done".
        let found = record.load(Ordering::Acquire);
        match found & STATE {
            EMPTY | REVOKED => return (found, true),
            DONE if take(found, EMPTY) => return (found, true),
            _ if patient() => {}
            _ => break,
        }
    }
    let found = record.swap(REVOKED, Ordering::Acquire);
    let owned = matches!(found & STATE, BUSY | REVOKED);
    if !owned {
        take(REVOKED, EMPTY);
    }
    (found, found & STATE != BUSY)
}

#[cfg(all(test, not(loom)))]
#[path = "redirection/tests.rs"]
mod tests;
