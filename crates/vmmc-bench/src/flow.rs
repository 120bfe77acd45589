//! Streams of messages of one size: the loops of both processes, the same for every path.
//!
//! On the memory paths the messages go through the slots of the receiver's inbox in rotation. After
//! each the sender raises a signal word; four times a turn the receiver gives back the slots that it
//! has read by a word in the sender's inbox. For fetches the slots are in the *sender's* inbox, and
//! the receiver copies them out.

use std::collections::VecDeque;

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::exchange::{check, mark};
use crate::memory::{CREDIT, Memory, SLOTS, WORD, read_all, received, slot_count, slot_stride};
use crate::path::Path;
use crate::socket::{Connected, Stream};
use crate::spin::Spin;
use crate::statistics::Samples;
use crate::vmmc_memory::{VmmcMemory, failed};
use crate::window::Window;

/// Signal words under way.
const WORDS: usize = 32;

/// What flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) path: Path,
    pub(crate) size: usize,
    /// Number of the first message; larger than all of earlier flows.
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) spin: Spin,
}

/// What one end has found out: a sample is the time of one turn of the slots in ticks.
#[derive(Debug)]
pub(crate) struct Timing {
    pub(crate) turns: Samples,
    /// Ticks spent waiting for the other end.
    pub(crate) waiting: u64,
    /// Ticks in all.
    pub(crate) total: u64,
}

impl Flow {
    /// Messages in a turn.
    pub(crate) fn turn(&self) -> u64 {
        slot_count(self.size) as u64
    }

    fn slot(&self, number: u64) -> usize {
        SLOTS + (number % self.turn()) as usize * slot_stride(self.size)
    }

    fn stamp(&self, number: u64) -> u64 {
        self.first + number
    }

    /// How many messages a word announces; words of earlier flows announce none.
    #[inline(always)]
    fn announced(&self, word: u64) -> u64 {
        word.wrapping_sub(self.first).cast_signed().max(0).cast_unsigned()
    }

    /// Sends all messages into the other's inbox.
    pub(crate) fn send(self, memory: &impl Memory) -> Result<Timing, BenchError> {
        let mut source = Buffer::filled(0x5a, self.size);
        self.produce(memory, |number, stamp| {
            mark(&mut source, stamp);
            memory.send_signal(self.slot(number), &source, WORD, stamp + 1)
        })
    }

    /// Writes all messages into our own inbox, for the other to fetch.
    pub(crate) fn offer(self, memory: &impl Memory) -> Result<Timing, BenchError> {
        let mut source = Buffer::filled(0x5a, self.size);
        self.produce(memory, |number, stamp| {
            self.fill(memory, &mut source, (number, stamp));
            memory.signal(WORD, stamp + 1)
        })
    }

    /// The same by asynchronous signal words.
    pub(crate) fn offer_async(self, memory: &VmmcMemory) -> Result<Timing, BenchError> {
        let mut source = Buffer::filled(0x5a, self.size);
        let mut words = VecDeque::with_capacity(WORDS);
        let timing = self.produce(memory, |number, stamp| {
            self.fill(memory, &mut source, (number, stamp));
            words.push_back(memory.import.signal_async(WORD, stamp + 1));
            if words.len() < WORDS {
                return Ok(());
            }
            words.pop_front().map_or(Ok(()), |oldest| oldest.wait().result.map_err(failed))
        })?;
        words.into_iter().try_for_each(|word| word.wait().result.map_err(failed))?;
        Ok(timing)
    }

    /// Writes a message into our own inbox, where the credit has shown that the other has read the one before.
    fn fill(&self, memory: &impl Memory, source: &mut Buffer, (number, stamp): (u64, u64)) {
        mark(source, stamp);
        // SAFETY: the slot lies in our inbox, and nobody else uses it now.
        unsafe {
            let slot = memory.inbox().add(self.slot(number));
            std::ptr::copy_nonoverlapping(source.as_ptr(), slot, self.size);
        }
    }

    /// Reads all messages where the other has sent them.
    pub(crate) fn receive(self, memory: &impl Memory) -> Result<Timing, BenchError> {
        self.consume(memory, |number, stamp| {
            // SAFETY: the word shows that the slot is complete; its sender waits for the credit.
            let bytes = unsafe { received(memory.inbox(), self.slot(number), self.size) };
            read_all(bytes);
            check(bytes, stamp, self.path)
        })
    }

    /// As [`Flow::send`], by asynchronous sends.
    pub(crate) fn send_async(self, memory: &VmmcMemory) -> Result<Timing, BenchError> {
        let mut window = Window::new(self.size);
        let timing = self.produce(memory, |number, stamp| {
            if !window.has_room()
                && let Some(buffer) = window.oldest()?
            {
                window.give_back(buffer);
            }
            let (slot, mut source) = (self.slot(number), window.buffer());
            mark(&mut source, stamp);
            window.push(memory.import.send_signal_async(slot, source, WORD, stamp + 1));
            Ok(())
        })?;
        while window.oldest()?.is_some() {}
        Ok(timing)
    }

    /// As [`Flow::fetch`], by asynchronous fetches of what is known to be there.
    pub(crate) fn fetch_async(self, memory: &VmmcMemory) -> Result<Timing, BenchError> {
        let mut window = Window::new(self.size);
        let mut posted = 0;
        self.consume(memory, |number, stamp| {
            let there = self.announced(memory.load_signal(WORD)).max(number + 1);
            while posted < there && window.has_room() {
                let (slot, into) = (self.slot(posted), window.buffer());
                window.push(memory.import.fetch_async(slot, into));
                posted += 1;
            }
            let fetched = window.oldest()?.ok_or(BenchError::Stalled)?;
            check(&fetched, stamp, self.path)?;
            window.give_back(fetched);
            Ok(())
        })
    }

    /// Fetches all messages from the other's inbox.
    pub(crate) fn fetch(self, memory: &impl Memory) -> Result<Timing, BenchError> {
        let mut fetched = Buffer::filled(0, self.size);
        self.consume(memory, |number, stamp| {
            memory.fetch(self.slot(number), std::hint::black_box(&mut fetched))?;
            check(&fetched, stamp, self.path)
        })
    }

    #[inline(always)]
    fn produce(
        self,
        memory: &impl Memory,
        mut message: impl FnMut(u64, u64) -> Result<(), BenchError>,
    ) -> Result<Timing, BenchError> {
        let mut meter = Meter::start(self.turn());
        let mut free = self.turn();
        for number in 0..self.count {
            if number == free {
                let from = meter.clock.now();
                self.spin.until(|| {
                    free = self.turn() + self.announced(memory.load_signal(CREDIT));
                    free > number
                })?;
                meter.waited(from);
            }
            message(number, self.stamp(number))?;
            meter.message();
        }
        let from = meter.clock.now();
        self.spin.until(|| self.announced(memory.load_signal(CREDIT)) == self.count)?;
        meter.waited(from);
        Ok(meter.stop())
    }

    #[inline(always)]
    fn consume(
        self,
        memory: &impl Memory,
        mut message: impl FnMut(u64, u64) -> Result<(), BenchError>,
    ) -> Result<Timing, BenchError> {
        let credit_after = (self.turn() / 4).max(1);
        let mut meter = Meter::start(self.turn());
        let mut there = 0;
        for number in 0..self.count {
            if number == there {
                let from = meter.clock.now();
                self.spin.until(|| {
                    there = self.announced(memory.load_signal(WORD));
                    there > number
                })?;
                meter.waited(from);
            }
            message(number, self.stamp(number))?;
            if (number + 1) % credit_after == 0 || number + 1 == self.count {
                memory.signal(CREDIT, self.stamp(number) + 1)?;
            }
            meter.message();
        }
        Ok(meter.stop())
    }

    /// Writes all messages to a socket.
    pub(crate) fn write<S: Connected>(self, mut to: Stream<'_, S>) -> Result<Timing, BenchError> {
        let mut source = Buffer::filled(0x5a, self.size);
        let mut meter = Meter::start(self.turn());
        for number in 0..self.count {
            mark(&mut source, self.stamp(number));
            to.write_all(&source)?;
            meter.message();
        }
        Ok(meter.stop())
    }

    /// Reads all messages from a socket, in pieces as large as they come (up to 64 KB, or one message).
    pub(crate) fn read<S: Connected>(self, mut from: Stream<'_, S>) -> Result<Timing, BenchError> {
        let mut piece = Buffer::filled(0, self.size.max(64 * 1024));
        let mut meter = Meter::start(self.turn());
        let (size, all) = (self.size as u64, self.count * self.size as u64);
        let mut done = 0;
        while done < all {
            let most = piece.len().min((all - done) as usize);
            let read = from.read(&mut piece[..most])?;
            read_all(&piece[..read]);
            let messages = done / size;
            done += read as u64;
            (messages..done / size).for_each(|_| meter.message());
        }
        Ok(meter.stop())
    }
}

/// Takes the time of whole turns.
#[derive(Debug)]
pub(crate) struct Meter {
    clock: Clock,
    timing: Timing,
    turn: u64,
    messages: u64,
    start: u64,
    turn_start: u64,
}

impl Meter {
    pub(crate) fn start(turn: u64) -> Meter {
        let clock = Clock::calibrated();
        let start = clock.now();
        let timing = Timing { turns: Samples::new(), waiting: 0, total: 0 };
        Meter { clock, timing, turn, messages: 0, start, turn_start: start }
    }

    #[inline(always)]
    pub(crate) fn message(&mut self) {
        self.messages += 1;
        if self.messages == self.turn {
            self.end_turn();
        }
    }

    fn end_turn(&mut self) {
        let now = self.clock.now();
        self.timing.turns.record(self.clock.ticks_between(self.turn_start, now) as f64);
        self.messages = 0;
        self.turn_start = now;
    }

    pub(crate) fn waited(&mut self, from: u64) {
        self.timing.waiting += self.clock.ticks_between(from, self.clock.now());
    }

    pub(crate) fn stop(mut self) -> Timing {
        self.timing.total = self.clock.ticks_between(self.start, self.clock.now());
        self.timing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::INBOX;
    use crate::shared_memory::{SharedMemory, nameless_memory};
    use std::os::unix::net::UnixStream;

    fn flow(size: usize, first: u64) -> Flow {
        let flow = Flow { path: Path::SharedMemory, size, first, count: 0, spin: Spin::new(true) };
        Flow { count: 2 * flow.turn() + 1, ..flow }
    }

    #[test]
    fn streams_of_sends_and_of_fetches_arrive_whole_one_after_the_other() {
        let (left, right) = (nameless_memory(INBOX).unwrap(), nameless_memory(INBOX).unwrap());
        let a = || SharedMemory::new(&left, &right).unwrap();
        let b = || SharedMemory::new(&right, &left).unwrap();
        for (size, first) in [(4, 100), (64, 10_000), (100_000, 20_000), (1 << 20, 30_000)] {
            let sends = flow(size, first);
            let fetches = flow(size, first + sends.count);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    sends.receive(&b()).unwrap();
                    fetches.offer(&b()).unwrap();
                });
                let timing = sends.send(&a()).unwrap();
                assert_eq!(timing.turns.len(), 2);
                assert!(timing.waiting <= timing.total);
                assert_eq!(fetches.fetch(&a()).unwrap().turns.len(), 2);
            });
        }
    }

    #[test]
    fn streams_over_sockets_arrive_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for size in [4, 1000, 100_000] {
            let flow = flow(size, 1);
            std::thread::scope(|scope| {
                scope.spawn(|| flow.write(Stream::new(&theirs, None).unwrap()).unwrap());
                let timing = flow.read(Stream::new(&ours, None).unwrap()).unwrap();
                assert_eq!(timing.turns.len(), 2, "{size}");
            });
        }
    }

    #[test]
    fn words_of_earlier_flows_announce_nothing() {
        let flow = flow(8, 500);
        assert_eq!(flow.announced(0), 0);
        assert_eq!(flow.announced(499), 0);
        assert_eq!(flow.announced(503), 3);
    }
}
