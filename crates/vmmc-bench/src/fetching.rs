//! Fetches whose time is taken one after the other, of memory that its owner has just written.
//!
//! The owner writes a number of slots; each begins with the number of the slot to fetch next (a
//! full-period pseudo-random order), so that a fetch cannot begin before the one before it has
//! brought its first bytes, and nothing is prefetched. Without this the processor would overlap them, and
//! what looked like a latency would be a throughput; if the owner did not write again, the fetcher
//! would read its own cache.

use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::memory::{CREDIT, Memory, SLOTS, WORD, slot_stride};
use crate::spin::Spin;
use crate::statistics::Samples;

/// How often how many slots are written and fetched.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Refill {
    /// Number of the first round; larger than all used before.
    pub(crate) first: u64,
    pub(crate) rounds: u64,
    /// Slots a round: a power of two.
    pub(crate) slots: u32,
}

/// Slots fetched in one batch: 64, or fewer such that they stay in a first-level cache's neighbourhood.
pub(crate) fn batch(size: usize) -> u32 {
    let fit = (128 * 1024 / slot_stride(size)).clamp(1, 64) as u32;
    1 << fit.ilog2()
}

fn slot_at(size: usize, slot: u32) -> usize {
    SLOTS + slot as usize * slot_stride(size)
}

/// The slot after `slot`: a full period over every power of two.
fn next(slot: u32, slots: u32) -> u32 {
    slot.wrapping_mul(5).wrapping_add(1) & (slots - 1)
}

/// The owner's side.
pub(crate) fn refill(
    memory: &impl Memory,
    size: usize,
    refill: Refill,
    spin: Spin,
) -> Result<(), BenchError> {
    let mut content = Buffer::filled(0x5a, size);
    for round in refill.first..refill.first + refill.rounds {
        spin.until(|| memory.load_signal(CREDIT) == round)?;
        for slot in 0..refill.slots {
            content[..4].copy_from_slice(&next(slot, refill.slots).to_ne_bytes());
            // SAFETY: the slot lies in our inbox, and the other fetches only after our signal.
            unsafe {
                let to = memory.inbox().add(slot_at(size, slot));
                std::ptr::copy_nonoverlapping(content.as_ptr(), to, size);
            }
        }
        memory.signal(WORD, round)?;
    }
    Ok(())
}

/// The fetcher's side: a sample is the mean time of the fetches of one round, in ticks.
pub(crate) fn fetch(
    memory: &impl Memory,
    size: usize,
    refill: Refill,
    spin: Spin,
    clock: Clock,
    samples: &mut Samples,
) -> Result<(), BenchError> {
    let mut fetched = Buffer::filled(0, size);
    for round in refill.first..refill.first + refill.rounds {
        memory.signal(CREDIT, round)?;
        spin.until(|| memory.load_signal(WORD) == round)?;
        let ticks = chase(memory, size, refill.slots, clock, &mut fetched)?;
        samples.record(ticks as f64 / f64::from(refill.slots));
    }
    Ok(())
}

#[inline(always)]
fn chase(
    memory: &impl Memory,
    size: usize,
    slots: u32,
    clock: Clock,
    fetched: &mut [u8],
) -> Result<u64, BenchError> {
    let mut slot = 0;
    let from = clock.now();
    for _ in 0..slots {
        memory.fetch(slot_at(size, slot), std::hint::black_box(fetched))?;
        slot = u32::from_ne_bytes([fetched[0], fetched[1], fetched[2], fetched[3]]) & (slots - 1);
    }
    let ticks = clock.ticks_between(from, clock.now());
    if slot == 0 {
        Ok(ticks)
    } else {
        Err(BenchError::OutOfStep("a fetch brought old bytes".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{INBOX, WINDOW};
    use crate::shared_memory::{SharedMemory, nameless_memory};

    #[test]
    fn the_order_visits_every_slot_once() {
        for slots in [1u32, 2, 8, 64] {
            let (mut slot, mut seen) = (0, vec![false; slots as usize]);
            for _ in 0..slots {
                assert!(!std::mem::replace(&mut seen[slot as usize], true));
                slot = next(slot, slots);
            }
            assert_eq!(slot, 0);
        }
    }

    #[test]
    fn batches_are_powers_of_two_that_fit() {
        for size in [4, 64, 4096, 65536, 1 << 20] {
            assert!(batch(size).is_power_of_two());
            assert!(batch(size) as usize * slot_stride(size) <= WINDOW);
        }
        assert_eq!((batch(4), batch(1 << 20)), (64, 1));
    }

    #[test]
    fn what_the_owner_writes_is_fetched_round_by_round() {
        let (left, right) = (nameless_memory(INBOX).unwrap(), nameless_memory(INBOX).unwrap());
        for size in [4, 1000, 65536] {
            let order = Refill { first: 1, rounds: 5, slots: batch(size) };
            let (spin, clock) = (Spin::new(true), Clock::calibrated());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let memory = SharedMemory::new(&right, &left).unwrap();
                    memory.signal(WORD, 0).unwrap();
                    refill(&memory, size, order, spin).unwrap();
                });
                let memory = SharedMemory::new(&left, &right).unwrap();
                memory.signal(CREDIT, 0).unwrap();
                let mut samples = Samples::new();
                fetch(&memory, size, order, spin, clock, &mut samples).unwrap();
                assert_eq!(samples.len(), 5);
            });
        }
    }
}
