//! Plain bytes that the structures hand from thread to thread. Loom's models look at every interleaving of their words; here the bytes beside
//! them are copied as processes copy them, and under Miri each copy that a structure does not order is a race.
#![cfg(not(loom))]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use vmmc_shm::command::{Command, CommandQueue, Direction, Outcome, SLOTS, Taker};
use vmmc_shm::lane::LanePage;
use vmmc_shm::mailbox::{Mailbox, Note, Taken};
use vmmc_shm::redirection::{Place, Table};
use vmmc_shm::stream::{Publish, Receiver, Ring, Tier, Transmitter, Words};

/// How often, natively and under Miri, which is a thousand times slower but tries many orders of each round.
const fn rounds(native: usize, miri: usize) -> usize {
    if cfg!(miri) { miri } else { native }
}

/// Plain memory that threads share, a line of 64 bytes aligned to it.
#[repr(align(64))]
#[derive(Default)]
struct Line(#[expect(dead_code, reason = "reached by address")] UnsafeCell<[u64; 8]>);

struct Plain(Vec<Line>);

// SAFETY: the tests are about who may touch which bytes when.
unsafe impl Sync for Plain {}

impl Plain {
    fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| Line::default()).collect())
    }

    fn start(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut().cast()
    }

    fn write(&self, at: usize, byte: u8, len: usize) {
        assert!(at + len <= 64 * self.0.len());
        // SAFETY: inside (checked); nobody else touches these bytes now, or the test has found something.
        unsafe { self.start().add(at).write_bytes(byte, len) }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= 64 * self.0.len());
        let mut bytes = vec![0; len];
        // SAFETY: as in `write`; the vector has room for them.
        unsafe { vmmc_shm::copy(self.start().add(at), bytes.as_mut_ptr(), len) };
        bytes
    }
}

/// The words of a stream memory.
fn words(memory: &Plain) -> &Words {
    // SAFETY: aligned and long enough; zeros are valid words; the ring lies behind them.
    unsafe { &*memory.start().cast() }
}

#[test]
fn bytes_of_a_stream() {
    let total = rounds(20_000_000, 24_000);
    let (to_writer, to_reader) = (Plain::new(Tier::FIRST), Plain::new(Tier::Medium.end()));
    let byte = |at: usize| u8::try_from(at % 251).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (tx, mut sent) = (Transmitter::default(), 0);
            while sent < total {
                let (mine, theirs) = (words(&to_writer), words(&to_reader));
                let wanted = (1 + sent * 7 % 2900).min(total - sent);
                let len = wanted.min(tx.room(mine, wanted));
                if len == 0 {
                    // Now and then into the larger ring, and back when the reader is through.
                    if sent.is_multiple_of(3) && tx.tier() == Tier::Page {
                        assert!(tx.grow(theirs));
                    } else {
                        thread::yield_now();
                    }
                    continue;
                }
                let bytes: Vec<u8> = (sent..sent + len).map(byte).collect();
                // SAFETY: the memory has room for this tier.
                let ring = unsafe { Ring::new(to_reader.start(), tx.tier()) };
                // SAFETY: `len` is at most the room in the ring.
                unsafe { ring.copy_in(tx.position(), bytes.as_ptr(), len) };
                let next = ring.advance(tx.position(), len);
                assert_eq!(tx.publish(theirs, len, next), Publish::Done);
                sent += len;
                tx.shrink(mine, theirs);
            }
        });
        let (rx, mut received) = (Receiver::default(), 0);
        while received < total {
            let mine = words(&to_reader);
            let len = rx.arrived(mine).unwrap().len;
            if len == 0 {
                thread::yield_now();
                continue;
            }
            // SAFETY: the memory has room for this tier.
            let ring = unsafe { Ring::new(to_reader.start(), rx.tier()) };
            let mut bytes = vec![0; len];
            // SAFETY: `arrived` never tells more than the capacity.
            unsafe { ring.copy_out(rx.position(), bytes.as_mut_ptr(), len) };
            let expected: Vec<u8> = (received..received + len).map(byte).collect();
            assert!(bytes == expected, "at {received}");
            rx.consume(words(&to_writer), len, ring.advance(rx.position(), len));
            received += len;
        }
    });
}

#[test]
fn payload_of_commands() {
    const PAYLOAD: usize = 24;
    let each = rounds(20_000, 90);
    let (queue, payload) = (CommandQueue::new(), Plain::new(SLOTS * PAYLOAD));
    let (reaped, total) = (AtomicU64::new(0), 2 * each as u64);
    let reap = || {
        for slot in 0..SLOTS {
            queue.reap(slot, |outcome| {
                assert_eq!(outcome, Outcome::Done);
                let bytes = payload.read(slot * PAYLOAD, PAYLOAD);
                assert!([[!1; PAYLOAD], [!2; PAYLOAD]].iter().any(|answer| bytes == answer));
                reaped.fetch_add(1, Ordering::Relaxed);
            });
        }
    };
    thread::scope(|scope| {
        for poster in 1..=2u8 {
            let (queue, payload, reap) = (&queue, &payload, &reap);
            scope.spawn(move || {
                for number in 0..each {
                    let claim = loop {
                        match queue.claim() {
                            Some(claim) => break claim,
                            None => reap(),
                        }
                        thread::yield_now();
                    };
                    payload.write(claim.slot() * PAYLOAD, poster, PAYLOAD);
                    let command = Command {
                        direction: Direction::Fetch,
                        handle: poster.into(),
                        offset: number as u64,
                        len: PAYLOAD as u64,
                        local: 0,
                        signal: None,
                        notify: None,
                    };
                    let _ = queue.post(claim, &command);
                }
            });
        }
        let (mut taker, mut next) = (Taker::default(), [0; 3]);
        while reaped.load(Ordering::Relaxed) < total {
            let Some((slot, command)) = queue.take(&taker) else {
                reap();
                thread::yield_now();
                continue;
            };
            let command = command.unwrap();
            let poster = u8::try_from(command.handle).unwrap();
            assert_eq!(payload.read(slot * PAYLOAD, PAYLOAD), [poster; PAYLOAD]);
            assert_eq!(command.offset, next[usize::from(poster)], "each poster's in order");
            next[usize::from(poster)] += 1;
            payload.write(slot * PAYLOAD, !poster, PAYLOAD);
            queue.complete(&mut taker, Outcome::Done);
        }
    });
}

#[test]
fn bytes_that_were_notified() {
    let each = rounds(5_000, 60);
    let (mailbox, sent) = (Mailbox::new(), Plain::new(2 * each * 8));
    let over = AtomicU64::new(0);
    let (mut notes, mut lost) = (0, 0);
    thread::scope(|scope| {
        for sender in 0..2 {
            let (mailbox, sent, over) = (&mailbox, &sent, &over);
            scope.spawn(move || {
                for number in 0..each {
                    let at = (sender * each + number) * 8;
                    sent.write(at, 7, 8);
                    let note = Note { offset: at as u64, len: 8, last_word: number as u64 };
                    let _ = mailbox.push(note);
                }
                over.fetch_add(1, Ordering::Release);
            });
        }
        loop {
            let ended = over.load(Ordering::Acquire) == 2;
            while let Some(taken) = mailbox.take() {
                match taken {
                    Taken::Note(note) => {
                        let at = usize::try_from(note.offset).unwrap();
                        assert_eq!(sent.read(at, 8), [7; 8]);
                        notes += 1;
                    }
                    Taken::Lost(count) => lost += count,
                }
            }
            if ended {
                break;
            }
            thread::yield_now();
        }
    });
    assert_eq!(notes + lost, 2 * each as u64);
}

/// A message comes in pieces while its receiver posts memory for it, and withdraws when it was told that all is there, or before.
#[test]
fn bytes_that_are_redirected() {
    const LEN: usize = 64;
    for round in 0..rounds(5_000, 12) {
        let (table, default, posted) = (Table::new(), Plain::new(LEN), Plain::new(LEN));
        let told = AtomicBool::new(false);
        let place = |mut at: usize, end: usize| {
            while at < end {
                match table.place(at as u64, (end - at) as u64, LEN as u64) {
                    Place::Default(piece) => {
                        let piece = usize::try_from(piece).unwrap();
                        default.write(at, 5, piece);
                        at += piece;
                    }
                    Place::Posted(claim) => {
                        let piece = usize::try_from(claim.len()).unwrap();
                        posted.write(usize::try_from(claim.destination()).unwrap(), 5, piece);
                        if !claim.commit() {
                            default.write(at, 5, piece);
                        }
                        at += piece;
                    }
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..LEN).step_by(8).for_each(|at| place(at, at + 8));
                told.store(true, Ordering::Release);
            });
            table.post(0, 1, 8, 40, 0);
            while round % 2 == 0 && !told.load(Ordering::Acquire) {
                thread::yield_now();
            }
            let withdrawn = table.withdraw(0, 1, 40, || {
                thread::yield_now();
                true
            });
            assert!(!withdrawn.stalled);
            let mut direct = [false; LEN];
            for range in withdrawn.redirected {
                let range =
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                assert_eq!(posted.read(range.start, range.len()), vec![5; range.len()]);
                direct[8 + range.start..8 + range.end].fill(true);
            }
            while !told.load(Ordering::Acquire) {
                thread::yield_now();
            }
            for (at, direct) in direct.into_iter().enumerate() {
                assert!(direct || default.read(at, 1) == [5], "byte {at} is lost");
            }
        });
    }
}

#[test]
fn what_a_lane_executed_before_its_fence() {
    for _ in 0..rounds(500, 12) {
        let (page, memory) = (LanePage::default(), Plain::new(8));
        thread::scope(|scope| {
            scope.spawn(|| {
                for reached in 1..=20 {
                    if !page.enter() {
                        return;
                    }
                    memory.write(0, reached, 1);
                    page.tell(0, 1, reached.into());
                    page.leave();
                }
            });
            while !page.fence() {
                thread::yield_now();
            }
            assert_eq!(page.reached(0, 1), memory.read(0, 1)[0].into());
        });
    }
}
