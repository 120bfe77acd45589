//! The marks beside a bell that many streams share: they say for which of them it was rung. Those who ring set them, the bell's owner
//! takes them; both have the memory mapped.
//!
//! ```text
//! summary    bit w: words[w] may have marks
//! words[w]   bit b: rung for place 64 w + b
//! listener   who takes the marks: nobody, one listener, or several
//! ```
//!
//! A mark is a hint where to look, and nothing else: what a stream holds is in its own memory. So it does no harm if a hostile
//! peer sets marks for nothing. If it takes them away, or writes nonsense into the last word, its own streams are looked at late.
//!
//! Each mark can be taken once. Where several hear one bell (two epoll objects, a forked child), none of them could take marks without
//! taking them from the others. So whoever begins to hear it [`Marks::claim`]s the marks first; where they were another's,
//! nobody takes any from then on: everybody looks at all that he has at that bell.

use core::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = 64;

/// The marks as they lie in memory; all zero: none, and nobody takes them.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Marks {
    summary: AtomicU64,
    listener: AtomicU64,
    words: [AtomicU64; WORDS],
}

// They are shared as one page.
const _: () = assert!(Marks::LEN <= 4096);

impl Marks {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();
    /// Streams that can share a bell.
    pub const PLACES: u32 = 64 * WORDS as u32;

    const SEVERAL: u64 = u64::MAX;

    /// Looks at mapped memory as marks.
    ///
    /// # Safety
    /// `start` is aligned to 64, points to at least [`Self::LEN`] mapped and writable bytes that stay mapped for `'a`.
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; all fields are atomics, for which any bytes are valid and which others may
        // change.
        unsafe { &*start.cast::<Self>() }
    }

    /// Before ringing for `place`. Nothing is done for a place that does not exist.
    #[inline]
    pub fn mark(&self, place: u32) {
        let (word, bit) = (place / 64, 1 << (place % 64));
        let Some(marks) = self.words.get(word as usize) else { return };
        // The word before the summary, as they are taken in the opposite order.
        marks.fetch_or(bit, Ordering::SeqCst);
        let bit = 1 << word;
        if self.summary.load(Ordering::SeqCst) & bit == 0 {
            self.summary.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Takes all marks that were set before the ring that this answers; some may have been set for nothing.
    pub fn take(&self, mut each: impl FnMut(u32)) {
        let mut summary = self.summary.swap(0, Ordering::SeqCst);
        while summary != 0 {
            let word = summary.trailing_zeros();
            summary &= summary - 1;
            let mut marks = self.words[word as usize].swap(0, Ordering::SeqCst);
            while marks != 0 {
                each(64 * word + marks.trailing_zeros());
                marks &= marks - 1;
            }
        }
    }

    /// `listener` (neither 0 nor the largest number) begins to hear the bell.
    pub fn claim(&self, listener: u64) {
        let claimed =
            self.listener.compare_exchange(0, listener, Ordering::SeqCst, Ordering::SeqCst);
        if claimed.is_err_and(|other| other != listener) {
            self.listener.store(Self::SEVERAL, Ordering::SeqCst);
        }
    }

    /// Whether `listener` is the only one who ever heard it at the same time: then it may take marks, and need not look at anything else.
    pub fn is_claimed_by(&self, listener: u64) -> bool {
        self.listener.load(Ordering::SeqCst) == listener
    }

    /// `listener` hears the bell no more.
    pub fn renounce(&self, listener: u64) {
        let _ = self.listener.compare_exchange(listener, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Marks {
        let zero = || AtomicU64::new(0);
        Marks { summary: zero(), listener: zero(), words: std::array::from_fn(|_| zero()) }
    }

    fn taken(marks: &Marks) -> Vec<u32> {
        let mut all = Vec::new();
        marks.take(|place| all.push(place));
        all
    }

    #[test]
    fn each_mark_is_taken_once() {
        let marks = fresh();
        assert!(taken(&marks).is_empty());
        for place in [0, 63, 64, 4095, 63, 700] {
            marks.mark(place);
        }
        assert_eq!(taken(&marks), [0, 63, 64, 700, 4095]);
        assert!(taken(&marks).is_empty());
    }

    #[test]
    fn places_that_do_not_exist_are_not_marked() {
        let marks = fresh();
        marks.mark(Marks::PLACES);
        marks.mark(u32::MAX);
        assert!(taken(&marks).is_empty());
    }

    #[test]
    fn whatever_is_written_into_them_names_only_places_that_exist() {
        let marks = fresh();
        marks.summary.store(u64::MAX, Ordering::Relaxed);
        marks.words.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        assert_eq!(taken(&marks), (0..Marks::PLACES).collect::<Vec<_>>());
    }

    #[test]
    fn of_several_listeners_none_takes_marks() {
        let marks = fresh();
        assert!(!marks.is_claimed_by(1));
        marks.claim(1);
        marks.claim(1);
        assert!(marks.is_claimed_by(1));
        marks.renounce(2);
        assert!(marks.is_claimed_by(1));
        marks.renounce(1);
        marks.claim(2);
        assert!(marks.is_claimed_by(2) && !marks.is_claimed_by(1));
        marks.claim(1);
        assert!(!marks.is_claimed_by(2) && !marks.is_claimed_by(1));
        marks.renounce(1);
        assert!(!marks.is_claimed_by(2) && !marks.is_claimed_by(1));
    }

    #[test]
    fn a_mark_set_while_others_are_taken_is_found_by_who_looks_after_the_ring() {
        const ROUNDS: u32 = if cfg!(miri) { 200 } else { 100_000 };
        let (marks, rung) = (fresh(), AtomicU64::new(0));
        let mut found = vec![0u32; 2];
        std::thread::scope(|scope| {
            for place in [5, 6] {
                let (marks, rung) = (&marks, &rung);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        marks.mark(place);
                        rung.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let mut answered = 0;
            while answered < u64::from(2 * ROUNDS) {
                answered = rung.load(Ordering::SeqCst);
                marks.take(|place| found[place as usize - 5] += 1);
            }
        });
        assert!(taken(&marks).is_empty() && found.iter().all(|&times| times > 0), "{found:?}");
    }
}
