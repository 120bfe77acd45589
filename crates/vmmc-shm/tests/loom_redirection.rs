//! Every interleaving of arrivals with a receiver that posts and withdraws, with fewer records than arrivals.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use vmmc_shm::redirection::{Place, Table, Withdrawn};

/// An export of two bytes and as many of posted memory. Default bytes are atomics, as the finish may copy while another arrival
/// writes; loom watches that posted bytes are touched by one side at a time.
struct Memory {
    table: Table,
    default: [AtomicU64; 2],
    posted: [UnsafeCell<u64>; 2],
}

// SAFETY: the cells are what the test is about; loom reports accesses that meet.
unsafe impl Sync for Memory {}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(),
            default: [AtomicU64::new(0), AtomicU64::new(0)],
            posted: [UnsafeCell::new(0), UnsafeCell::new(0)],
        })
    }

    fn send(&self, offset: u64, len: u64) {
        let mut at = offset;
        while at < offset + len {
            match self.table.place(at, offset + len - at, 2) {
                Place::Default(piece) => {
                    self.into_default(at..at + piece);
                    at += piece;
                }
                Place::Posted(claim) => {
                    let (to, piece) = (claim.destination(), claim.len());
                    for byte in to..to + piece {
                        // SAFETY: the claim is ours.
                        self.posted[byte as usize].with_mut(|byte| unsafe { *byte = 1 });
                    }
                    if !claim.commit() {
                        self.into_default(at..at + piece);
                    }
                    at += piece;
                }
            }
        }
    }

    fn into_default(&self, range: core::ops::Range<u64>) {
        for at in range {
            self.default[at as usize].store(1, Ordering::Relaxed);
        }
    }

    /// The posting is over, and no sender stalled: what is said to be redirected is there, and nobody writes it.
    fn read(&self, withdrawn: &Withdrawn) -> [bool; 2] {
        let mut redirected = [false; 2];
        for at in withdrawn.redirected.iter().cloned().flatten() {
            redirected[at as usize] = true;
        }
        if !withdrawn.stalled {
            for (byte, redirected) in self.posted.iter().zip(redirected) {
                // SAFETY: no sender owns a claim.
                let found = byte.with(|byte| unsafe { *byte });
                assert!(!redirected || found == 1, "told of bytes that are not there");
            }
        }
        redirected
    }

    /// The arrivals are over: every byte lies where the receiver was told, or in the default buffer.
    fn complete(&self, redirected: [bool; 2], bytes: core::ops::Range<usize>) {
        for at in bytes {
            let default = self.default[at].load(Ordering::Relaxed) == 1;
            assert!(redirected[at] || default, "byte {at} is lost");
        }
    }
}

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(check);
}

#[test]
fn withdraw_against_an_arrival_without_patience() {
    model(|| {
        let memory = Memory::new();
        memory.table.post(0, 1, 0, 2, 0);
        let sending = Arc::clone(&memory);
        let sender = thread::spawn(move || sending.send(0, 2));
        let redirected = memory.read(&memory.table.withdraw(0, 1, 2, || false));
        sender.join().unwrap();
        memory.complete(redirected, 0..2);
    });
}

#[test]
fn post_and_withdraw_against_an_arrival_with_patience() {
    model(|| {
        let memory = Memory::new();
        let sending = Arc::clone(&memory);
        let sender = thread::spawn(move || sending.send(0, 2));
        memory.table.post(0, 1, 0, 2, 0);
        let mut patience = 2;
        let withdrawn = memory.table.withdraw(0, 1, 2, || {
            thread::yield_now();
            patience -= 1;
            patience > 0
        });
        let redirected = memory.read(&withdrawn);
        sender.join().unwrap();
        memory.complete(redirected, 0..2);
    });
}

#[test]
fn two_arrivals_and_one_record() {
    model(|| {
        let memory = Memory::new();
        memory.table.post(0, 1, 0, 2, 0);
        let senders: Vec<_> = (0..2)
            .map(|at| {
                let sending = Arc::clone(&memory);
                thread::spawn(move || sending.send(at, 1))
            })
            .collect();
        let redirected = memory.read(&memory.table.withdraw(0, 1, 2, || false));
        for sender in senders {
            sender.join().unwrap();
        }
        memory.complete(redirected, 0..2);
    });
}

#[test]
fn two_posts_against_an_arrival_over_both() {
    model(|| {
        let memory = Memory::new();
        memory.table.post(0, 1, 0, 1, 1);
        let sending = Arc::clone(&memory);
        let sender = thread::spawn(move || sending.send(0, 2));
        // The second comes, and the first goes, while bytes arrive for both; each has the other's place.
        memory.table.post(1, 2, 1, 1, 0);
        let first = memory.table.withdraw(0, 1, 1, || false);
        sender.join().unwrap();
        let second = memory.table.withdraw(1, 2, 1, || false);
        assert!(!second.stalled, "nobody is left");
        let redirected = [!first.redirected.is_empty(), !second.redirected.is_empty()];
        for (at, redirected) in
            redirected.into_iter().enumerate().filter(|(at, _)| *at == 1 || !first.stalled)
        {
            // SAFETY: no sender owns a claim.
            let found = memory.posted[1 - at].with(|byte| unsafe { *byte });
            assert!(!redirected || found == 1, "told of bytes that are not there");
        }
        memory.complete(redirected, 0..2);
    });
}

#[test]
fn an_arrival_that_saw_the_posting_before() {
    model(|| {
        let memory = Memory::new();
        memory.table.post(0, 1, 0, 1, 0);
        let sending = Arc::clone(&memory);
        let sender = thread::spawn(move || sending.send(0, 1));
        let first = memory.table.withdraw(0, 1, 1, || false);
        // Other memory, and the same posting again.
        memory.table.post(0, 2, 0, 1, 1);
        let second = memory.table.withdraw(0, 2, 1, || false);
        if !first.stalled && !second.stalled {
            // SAFETY: nobody owns a claim.
            let bytes = [0, 1].map(|at: usize| memory.posted[at].with(|byte| unsafe { *byte }));
            assert!(first.redirected.is_empty() || bytes[0] == 1);
            assert!(second.redirected.is_empty() || bytes[1] == 1);
        }
        sender.join().unwrap();
        let default = memory.default[0].load(Ordering::Relaxed) == 1;
        let places = [!first.redirected.is_empty(), !second.redirected.is_empty(), default];
        assert!(places.contains(&true), "lost");
    });
}
