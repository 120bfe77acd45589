//! The command queue of a process: what an engine shall do for it, in memory that both map.
//!
//! Any number of threads of the process post; one engine takes. The engine may sit in another process, to which the posters are
//! strangers, so it keeps its place for itself and believes nothing that it finds.
//!
//! ```text
//! tail          posters    the next ticket
//! asleep        engine     1: whoever posts has to ring
//! completed     engine     counts batches of completions; posters sleep on it
//! waiting       posters    how many sleep
//! slots[64]     turn:      round << 2 | FREE -> POSTED (poster) -> DONE (engine) -> REAPING (a poster) -> round + 1 << 2 | FREE
//!               command, status
//! ```
//!
//! Ticket `t` uses slot `t % 64` in round `t / 64`. **Order**: commands are taken in the order of their tickets. **Bounds**: a full
//! queue is told at once, posting is a handful of stores, and an engine takes at most one command a look. **Waking**: post, fence, look whether
//! the engine sleeps; the engine announces its sleep, fences, looks again. The other way round it is the same with `waiting`.
//!
//! A poster that is killed between claim and post stops its own process's queue, and nobody else's.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use core::fmt;

/// Commands that a queue holds.
#[cfg(not(loom))]
pub const SLOTS: usize = 64;
/// Commands that a queue holds.
#[cfg(loom)]
pub const SLOTS: usize = 2;

/// Payload of one command between processes, bytes at most; more goes in several.
pub const PIECE: usize = 32 * 1024;
/// Where the payload of slot 0 lies in a queue's memory, bytes; the queue itself lies before it, and the others' behind, [`PIECE`] apart.
#[cfg(not(loom))]
pub const PAYLOAD: usize = CommandQueue::LEN.next_multiple_of(4096);
/// Bytes of the memory that poster and engine share.
#[cfg(not(loom))]
pub const MEMORY: usize = PAYLOAD + SLOTS * PIECE;

const FREE: u64 = 0;
const POSTED: u64 = 1;
const DONE: u64 = 2;
const REAPING: u64 = 3;
const STATE: u64 = 3;

const HAS_SIGNAL: u64 = 1 << 8;
const HAS_NOTIFY: u64 = 1 << 9;

/// What shall be done. Between processes the payload lies beside the queue, and `local` is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Which way.
    pub direction: Direction,
    /// Names the import.
    pub handle: u64,
    /// Where in the export, bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Where the poster's bytes are, if poster and engine share an address space.
    pub local: u64,
    /// Signal word written after the bytes: offset and value.
    pub signal: Option<(u64, u64)>,
    /// Notify the exporter of `(offset, len)` afterwards.
    pub notify: Option<(u64, u64)>,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the export.
    Send,
    /// From the export.
    Fetch,
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// No such import of this process. Nothing was written.
    Unknown,
    /// The import lacks the right. Nothing was written.
    Rights,
    /// Outside the export. Nothing was written.
    Range,
    /// Revoked, or the exporter is dead. Nothing was written.
    Gone,
    /// The memory could not be written; part may be.
    Memory,
}

/// The queue as it lies in memory; all zero is an empty one whose engine is awake.
#[repr(C)]
pub struct CommandQueue {
    tail: Line<AtomicU64>,
    asleep: Line<AtomicU32>,
    completed: Line<AtomicU32>,
    waiting: Line<AtomicU32>,
    slots: [Slot; SLOTS],
}

#[derive(Default)]
#[repr(C, align(64))]
struct Line<T>(T);

#[derive(Default)]
#[repr(C, align(128))]
struct Slot {
    turn: AtomicU64,
    status: AtomicU64,
    kind: AtomicU64,
    handle: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    local: AtomicU64,
    signal: [AtomicU64; 2],
    notify: [AtomicU64; 2],
}

/// A slot that was claimed and must now be posted: the queue stands still until it is.
#[derive(Debug)]
#[must_use = "the queue stands still until the slot is posted"]
pub struct Claim {
    ticket: u64,
}

impl Claim {
    /// Which slot, below [`SLOTS`].
    #[allow(clippy::cast_possible_truncation, reason = "below SLOTS")]
    pub fn slot(&self) -> usize {
        (self.ticket % SLOTS as u64) as usize
    }
}

/// An engine's place in a queue. Kept out of the shared memory, so that posters cannot change it.
#[derive(Debug, Default)]
pub struct Taker {
    head: u64,
}

/// A command that an engine took and completes later, perhaps after others that it took later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deferred {
    ticket: u64,
}

impl Taker {
    /// The command that [`CommandQueue::take`] shows now.
    pub fn deferred(&self) -> Deferred {
        Deferred { ticket: self.head }
    }

    /// Goes on to the next command; the one that was shown is completed by [`CommandQueue::complete_deferred`].
    pub fn skip(&mut self) {
        self.head = self.head.wrapping_add(1);
    }
}

impl CommandQueue {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// Looks at mapped memory as a queue.
    ///
    /// # Safety
    /// `start` is aligned to 128, points to at least [`Self::LEN`] mapped and writable bytes that stay mapped for `'a`.
    #[cfg(not(loom))]
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; all fields are atomics, for which any bytes are
        // valid and which others may change.
        unsafe { &*start.cast::<Self>() }
    }

    /// An empty queue in private memory.
    pub fn new() -> Self {
        Self {
            tail: Line::default(),
            asleep: Line::default(),
            completed: Line::default(),
            waiting: Line::default(),
            slots: core::array::from_fn(|_| Slot::default()),
        }
    }

    /// Takes the next ticket; `None` when the queue is full. Lock-free.
    pub fn claim(&self) -> Option<Claim> {
        let mut ticket = self.tail.0.load(Ordering::Relaxed);
        loop {
            let round = ticket / SLOTS as u64;
            // Acquire: pairs with "freed", so that our stores come after the reaper's loads.
            let turn = self.slot(ticket).turn.load(Ordering::Acquire);
            if turn >> 2 < round {
                return None;
            }
            let current = if turn == round << 2 | FREE {
                let next = ticket.wrapping_add(1);
                match self.tail.0.compare_exchange_weak(
                    ticket,
                    next,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(Claim { ticket }),
                    Err(current) => current,
                }
            } else {
                // Somebody else took this ticket since.
                self.tail.0.load(Ordering::Relaxed)
            };
            if current == ticket && turn != round << 2 | FREE {
                // Honest posters move the tail before the turn: the memory was spoilt.
                return None;
            }
            ticket = current;
        }
    }

    /// Posts a command in the claimed slot. Whether the engine sleeps and the caller, and nobody else, has to ring.
    #[must_use = "the engine may have to be woken"]
    pub fn post(&self, claim: Claim, command: &Command) -> bool {
        let slot = self.slot(claim.ticket);
        let mut kind = match command.direction {
            Direction::Send => 1,
            Direction::Fetch => 2,
        };
        for (option, flag, words) in
            [(command.signal, HAS_SIGNAL, &slot.signal), (command.notify, HAS_NOTIFY, &slot.notify)]
        {
            if let Some((first, second)) = option {
                kind |= flag;
                words[0].store(first, Ordering::Relaxed);
                words[1].store(second, Ordering::Relaxed);
            }
        }
        slot.kind.store(kind, Ordering::Relaxed);
        slot.handle.store(command.handle, Ordering::Relaxed);
        slot.offset.store(command.offset, Ordering::Relaxed);
        slot.len.store(command.len, Ordering::Relaxed);
        slot.local.store(command.local, Ordering::Relaxed);
        // Release: "posted", pairs with the acquire load in `take`.
        slot.turn.store((claim.ticket / SLOTS as u64) << 2 | POSTED, Ordering::Release);
        // Either we see the announcement, or the engine, which looks again behind its fence, sees the command.
        fence(Ordering::SeqCst);
        self.asleep.0.load(Ordering::Relaxed) != 0 && self.asleep.0.swap(0, Ordering::Relaxed) != 0
    }

    /// What became of the command in `slot`, if it was done; the slot serves another afterwards. `keep` runs in between: what belongs
    /// to the slot is the caller's alone meanwhile. Lock-free; each completion goes to one caller.
    pub fn reap<R>(&self, slot: usize, keep: impl FnOnce(Outcome) -> R) -> Option<R> {
        let slot = self.slots.get(slot)?;
        let turn = slot.turn.load(Ordering::Relaxed);
        if turn & STATE != DONE {
            return None;
        }
        // Acquire: pairs with "done".
        slot.turn
            .compare_exchange(turn, turn | REAPING, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        let kept = keep(Outcome::from_status(slot.status.load(Ordering::Relaxed)));
        // Release: "freed".
        slot.turn.store(((turn >> 2) + 1) << 2 | FREE, Ordering::Release);
        Some(kept)
    }

    /// The word that posters sleep on while commands are executed, changed by [`Self::announce_completions`].
    pub fn completed(&self) -> &AtomicU32 {
        &self.completed.0
    }

    /// Says that a poster will sleep, and returns what [`Self::completed`] holds: look for completions once more, then
    /// sleep while it holds that, then call [`Self::awake`].
    pub fn announce_wait(&self) -> u32 {
        self.waiting.0.fetch_add(1, Ordering::SeqCst);
        self.completed.0.load(Ordering::SeqCst)
    }

    /// A poster sleeps no longer.
    pub fn awake(&self) {
        self.waiting.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Engine: the next command and its slot, if there is one. Complete it before the next.
    pub fn take(&self, taker: &Taker) -> Option<(usize, Option<Command>)> {
        let slot = self.slot(taker.head);
        let round = taker.head / SLOTS as u64;
        // Acquire: pairs with "posted".
        if slot.turn.load(Ordering::Acquire) != round << 2 | POSTED {
            return None;
        }
        let kind = slot.kind.load(Ordering::Relaxed);
        let pair = |words: &[AtomicU64; 2]| {
            (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed))
        };
        let direction = match kind & !(HAS_SIGNAL | HAS_NOTIFY) {
            1 => Some(Direction::Send),
            2 => Some(Direction::Fetch),
            _ => None,
        };
        let command = direction.map(|direction| Command {
            direction,
            handle: slot.handle.load(Ordering::Relaxed),
            offset: slot.offset.load(Ordering::Relaxed),
            len: slot.len.load(Ordering::Relaxed),
            local: slot.local.load(Ordering::Relaxed),
            signal: (kind & HAS_SIGNAL != 0).then(|| pair(&slot.signal)),
            notify: (kind & HAS_NOTIFY != 0).then(|| pair(&slot.notify)),
        });
        #[allow(clippy::cast_possible_truncation, reason = "below SLOTS")]
        let index = (taker.head % SLOTS as u64) as usize;
        Some((index, command))
    }

    /// Engine: the command that was taken has become this.
    pub fn complete(&self, taker: &mut Taker, outcome: Outcome) {
        self.complete_deferred(taker.deferred(), outcome);
        taker.skip();
    }

    /// Engine: a command that was skipped has become this. Once for each.
    pub fn complete_deferred(&self, Deferred { ticket }: Deferred, outcome: Outcome) {
        let slot = self.slot(ticket);
        slot.status.store(outcome.status(), Ordering::Relaxed);
        // Release: "done", pairs with the exchange in `reap`.
        slot.turn.store((ticket / SLOTS as u64) << 2 | DONE, Ordering::Release);
    }

    /// Engine: after completions. Whether posters sleep on [`Self::completed`] and have to be woken.
    #[must_use = "posters may have to be woken"]
    pub fn announce_completions(&self) -> bool {
        self.completed.0.fetch_add(1, Ordering::SeqCst);
        self.waiting.0.load(Ordering::SeqCst) != 0
    }

    /// Engine: says that it will sleep until rung; `false`, and it did not say so, when there is a command.
    #[must_use = "sleep only if nothing came"]
    pub fn announce_sleep(&self, taker: &Taker) -> bool {
        self.asleep.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let nothing = self.take(taker).is_none();
        if !nothing {
            self.asleep.0.store(0, Ordering::Relaxed);
        }
        nothing
    }

    #[allow(clippy::cast_possible_truncation, reason = "below SLOTS")]
    fn slot(&self, ticket: u64) -> &Slot {
        &self.slots[(ticket % SLOTS as u64) as usize]
    }
}

impl Default for CommandQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandQueue").finish_non_exhaustive()
    }
}

impl Outcome {
    fn status(self) -> u64 {
        match self {
            Self::Done => 0,
            Self::Unknown => 1,
            Self::Rights => 2,
            Self::Range => 3,
            Self::Gone => 4,
            Self::Memory => 5,
        }
    }

    fn from_status(status: u64) -> Self {
        match status {
            0 => Self::Done,
            1 => Self::Unknown,
            2 => Self::Rights,
            3 => Self::Range,
            4 => Self::Gone,
            _ => Self::Memory,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command(number: u64) -> Command {
        Command {
            direction: if number.is_multiple_of(2) { Direction::Send } else { Direction::Fetch },
            handle: number,
            offset: number + 1,
            len: number + 2,
            local: number + 3,
            signal: (number.is_multiple_of(3)).then_some((number, 7)),
            notify: (number.is_multiple_of(5)).then_some((number, 8)),
        }
    }

    #[test]
    fn commands_come_in_order_and_a_full_queue_says_so() {
        let (queue, mut taker) = (CommandQueue::new(), Taker::default());
        for round in 0..5 {
            for number in 0..SLOTS as u64 {
                let claim = queue.claim().unwrap();
                assert!(!queue.post(claim, &command(round * 100 + number)));
            }
            assert!(queue.claim().is_none(), "full");
            for number in 0..SLOTS as u64 {
                let (slot, found) = queue.take(&taker).unwrap();
                assert_eq!(found, Some(command(round * 100 + number)));
                assert!(queue.reap(slot, |_| ()).is_none(), "not done yet");
                queue.complete(&mut taker, Outcome::Gone);
                assert!(queue.claim().is_none(), "not reaped yet");
            }
            assert!(queue.take(&taker).is_none());
            for slot in 0..SLOTS {
                assert_eq!(queue.reap(slot, |outcome| outcome), Some(Outcome::Gone));
                assert!(queue.reap(slot, |_| ()).is_none(), "reaped twice");
            }
        }
    }

    #[test]
    fn a_sleeping_engine_is_rung_once() {
        let (queue, taker) = (CommandQueue::new(), Taker::default());
        assert!(queue.announce_sleep(&taker));
        let (first, second) = (queue.claim().unwrap(), queue.claim().unwrap());
        assert!(queue.post(first, &command(1)));
        assert!(!queue.post(second, &command(2)));
        assert!(!queue.announce_sleep(&taker), "there is a command");
    }

    proptest! {
        /// Whatever lies in the memory, an engine takes at most one command a look, and both sides come to an end.
        #[test]
        fn any_memory_is_looked_at_without_harm(words in prop::collection::vec(
            prop_oneof![0..1024_u64, any::<u64>()], CommandQueue::LEN / 8)
        ) {
            #[repr(align(128))]
            struct Memory([u64; CommandQueue::LEN / 8]);
            let mut memory = Box::new(Memory([0; CommandQueue::LEN / 8]));
            memory.0.copy_from_slice(&words);
            // SAFETY: aligned, as long as a queue, and alive until the end of the test.
            let queue = unsafe { CommandQueue::at(memory.0.as_mut_ptr().cast()) };
            let mut taker = Taker::default();
            for _ in 0..2 * SLOTS {
                if queue.take(&taker).is_some() {
                    queue.complete(&mut taker, Outcome::Range);
                }
                let _ = queue.announce_sleep(&taker);
                if let Some(claim) = queue.claim() {
                    let _ = queue.post(claim, &command(3));
                }
            }
            for slot in 0..=SLOTS {
                let _ = queue.reap(slot, |_| ());
            }
        }
    }
}
