//! The page of a process's end of a lane link: how far its engine got with what came, and whether it may go on. The process and its node
//! service share it.
//!
//! ```text
//! turn       0 free ─► 1 held (process, while it executes packets) ─► 0
//!            0 free ─► 2 fenced (service), for ever
//! reached    process, while it holds the turn: for each channel of the link its generation, and sequence numbers executed
//! ```
//!
//! Whoever fences knows that the engine is not in the middle of a packet, and what it had executed: it can be stopped, at any instruction, and
//! executes nothing more when it goes on. The service reads two words and believes neither more than that they are about the process's own
//! memory.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const FREE: u32 = 0;
const HELD: u32 = 1;
const FENCED: u32 = 2;

/// Channels of a link that a page tells of.
pub const CHANNELS: usize = 504;
/// Sequence numbers that can be told, and bits of the generation above them.
const SEQUENCES: u64 = (1 << 48) - 1;

/// The page as it lies in memory; all zero is a link over which nothing came.
#[repr(C, align(64))]
pub struct LanePage {
    turn: Line,
    reached: [AtomicU64; CHANNELS],
}

// It is shared as one page.
const _: () = assert!(LanePage::LEN <= 4096);

#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Line(AtomicU32);

impl LanePage {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// Looks at mapped memory as a page of a lane.
    ///
    /// # Safety
    /// `start` is aligned to 64, points to at least [`Self::LEN`] mapped and writable bytes that stay mapped for `'a`.
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; all fields are atomics, for which any bytes are valid and which others may
        // change.
        unsafe { &*start.cast::<Self>() }
    }

    /// Engine: takes the turn to execute a packet; `false` when the lane is fenced.
    #[must_use = "nothing may be executed on a fenced lane"]
    pub fn enter(&self) -> bool {
        // Acquire: pairs with "left", so that what another thread executed is seen.
        self.turn.0.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Engine, which has the turn: says how far it got on a channel, in its present use.
    pub fn tell(&self, channel: usize, generation: u32, reached: u64) {
        if let Some(word) = self.reached.get(channel) {
            word.store(word_of(generation, reached), Ordering::Relaxed);
        }
    }

    /// Engine: lets the turn go.
    pub fn leave(&self) {
        // Release: "left", pairs with the exchanges in `enter` and `fence`.
        self.turn.0.store(FREE, Ordering::Release);
    }

    /// Whether the lane is fenced.
    pub fn is_fenced(&self) -> bool {
        self.turn.0.load(Ordering::Relaxed) == FENCED
    }

    /// Service: ends the link; `false` while the engine is in the middle of a packet.
    #[must_use = "the engine may still be at work"]
    pub fn fence(&self) -> bool {
        // Acquire: pairs with "left".
        let found =
            self.turn.0.compare_exchange(FREE, FENCED, Ordering::Acquire, Ordering::Acquire);
        matches!(found, Ok(_) | Err(FENCED))
    }

    /// Service, after the fence: what was executed on a channel in this use of it.
    pub fn reached(&self, channel: usize, generation: u32) -> u64 {
        let word = self.reached.get(channel).map_or(0, |word| word.load(Ordering::Relaxed));
        // Of an earlier use: nothing came in this one.
        if word & !SEQUENCES == word_of(generation, 0) { word & SEQUENCES } else { 0 }
    }
}

impl Default for LanePage {
    fn default() -> Self {
        Self { turn: Line::default(), reached: [const { AtomicU64::new(0) }; CHANNELS] }
    }
}

impl core::fmt::Debug for LanePage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LanePage").field("turn", &self.turn).finish_non_exhaustive()
    }
}

fn word_of(generation: u32, reached: u64) -> u64 {
    u64::from(generation) << 48 | reached & SEQUENCES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_waits_for_the_packet_and_lasts() {
        let page = LanePage::default();
        assert!(page.enter());
        assert!(!page.fence(), "in the middle of a packet");
        page.tell(3, 1, 17);
        page.leave();
        assert!(page.fence());
        assert_eq!((page.reached(3, 1), page.reached(3, 2), page.reached(4, 0)), (17, 0, 0));
        assert!(!page.enter() && page.is_fenced());
        assert!(page.fence(), "again");
        assert_eq!(page.reached(CHANNELS, 0), 0);
    }
}
