//! Ping-pong: the loops of both processes, the same for every path.
//!
//! A payload is stamped, sent, waited for, and read whole by its receiver, which answers in kind. Up
//! to 8 bytes the payload *is* the signal word on the memory paths; longer ones are followed by a word.

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::memory::{Memory, WORD, payload_at, read_all, received};
use crate::path::Path;
use crate::socket::{Connected, Stream};
use crate::spin::Spin;
use crate::statistics::Samples;

/// A path on which stamped payloads go to and fro.
pub(crate) trait Exchange {
    /// Sends `payload` with `stamp` written over its beginning.
    fn post(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError>;
    /// Waits for the payload with `stamp`, and reads all of it.
    fn take(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError>;
}

/// Over memory.
#[derive(Debug)]
pub(crate) struct OverMemory<'a, M> {
    pub(crate) memory: &'a M,
    pub(crate) spin: Spin,
    pub(crate) path: Path,
}

impl<M: Memory> Exchange for OverMemory<'_, M> {
    #[inline(always)]
    fn post(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        if payload.len() <= 8 {
            return self.memory.signal(WORD, word_of(stamp, payload.len()));
        }
        mark(payload, stamp);
        self.memory.send_signal(payload_at(payload.len()), payload, WORD, stamp)
    }

    #[inline(always)]
    fn take(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        let size = payload.len();
        let word = word_of(stamp, size);
        self.spin.until(|| self.memory.load_signal(WORD) == word)?;
        if size > 8 {
            // SAFETY: the word shows that the payload is complete; the sender waits for our answer.
            let bytes = unsafe { received(self.memory.inbox(), payload_at(size), size) };
            read_all(bytes);
            check(bytes, stamp, self.path)?;
        }
        Ok(())
    }
}

impl<S: Connected> Exchange for Stream<'_, S> {
    #[inline]
    fn post(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        mark(payload, stamp);
        self.write_all(payload)
    }

    #[inline]
    fn take(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        self.read_exact(payload)?;
        read_all(payload);
        check(payload, stamp, Path::TcpBlocking)
    }
}

/// The answering side: `count` payloads of `size` bytes, each answered by one of `answer` bytes.
pub(crate) fn answer(
    mut exchange: impl Exchange,
    size: usize,
    answer: usize,
    first: u64,
    count: u64,
) -> Result<(), BenchError> {
    let (mut incoming, mut outgoing) = (Buffer::filled(0, size), Buffer::filled(0xa5, answer));
    for stamp in first..first + count {
        exchange.take(&mut incoming, stamp)?;
        exchange.post(&mut outgoing, stamp)?;
    }
    Ok(())
}

/// The timing side: `count` round trips in batches of `batch`; a sample is the mean round trip of one batch in ticks.
pub(crate) fn ask(
    exchange: &mut impl Exchange,
    (size, answer): (usize, usize),
    first: u64,
    (count, batch): (u64, u64),
    clock: Clock,
    samples: &mut Samples,
) -> Result<(), BenchError> {
    let (mut outgoing, mut incoming) = (Buffer::filled(0x5a, size), Buffer::filled(0, answer));
    let mut stamp = first;
    let end = first + count;
    while stamp < end {
        let trips = batch.min(end - stamp);
        let from = clock.now();
        for stamp in stamp..stamp + trips {
            exchange.post(&mut outgoing, stamp)?;
            exchange.take(&mut incoming, stamp)?;
        }
        let ticks = clock.ticks_between(from, clock.now());
        samples.record(ticks as f64 / trips as f64);
        stamp += trips;
    }
    Ok(())
}

/// The payload of up to 8 bytes as a word.
#[inline(always)]
fn word_of(stamp: u64, size: usize) -> u64 {
    if size < 8 { stamp & ((1 << (8 * size)) - 1) } else { stamp }
}

/// Writes the stamp over the beginning of a payload.
#[inline(always)]
pub(crate) fn mark(payload: &mut [u8], stamp: u64) {
    let bytes = stamp.to_ne_bytes();
    let len = payload.len().min(8);
    payload[..len].copy_from_slice(&bytes[..len]);
}

/// Whether a payload begins with its stamp.
#[inline(always)]
pub(crate) fn check(payload: &[u8], stamp: u64, path: Path) -> Result<(), BenchError> {
    let bytes = stamp.to_ne_bytes();
    let len = payload.len().min(8);
    if payload[..len] == bytes[..len] { Ok(()) } else { Err(damaged(payload.len(), stamp, path)) }
}

#[cold]
fn damaged(size: usize, expected: u64, path: Path) -> BenchError {
    BenchError::Damaged { path: path.name().to_owned(), size, expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::INBOX;
    use crate::shared_memory::{SharedMemory, nameless_memory};

    fn over(memory: &SharedMemory) -> OverMemory<'_, SharedMemory> {
        OverMemory { memory, spin: Spin::new(true), path: Path::SharedMemory }
    }

    #[test]
    fn every_size_goes_to_and_fro() {
        let (left, right) = (nameless_memory(INBOX).unwrap(), nameless_memory(INBOX).unwrap());
        for size in [4, 7, 8, 9, 56, 57, 4096] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let memory = SharedMemory::new(&right, &left).unwrap();
                    answer(over(&memory), size, size, 1000, 50).unwrap();
                });
                let memory = SharedMemory::new(&left, &right).unwrap();
                let mut samples = Samples::new();
                let clock = Clock::calibrated();
                ask(&mut over(&memory), (size, size), 1000, (50, 16), clock, &mut samples).unwrap();
                assert_eq!(samples.len(), 4, "three whole batches and the rest");
            });
        }
    }

    #[test]
    fn a_wrong_stamp_is_damage() {
        let mut payload = [0; 16];
        mark(&mut payload, 7);
        assert!(check(&payload, 7, Path::Vmmc).is_ok());
        assert!(matches!(
            check(&payload, 8, Path::Vmmc),
            Err(BenchError::Damaged { expected: 8, .. })
        ));
    }
}
