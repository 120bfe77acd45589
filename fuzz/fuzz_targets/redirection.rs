//! A table of redirections that senders write what they like into: an arrival stays inside the posted memory, and the receiver is told only of ranges that
//! it posted.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use vmmc_shm::redirection::{Claim, MAX_POSTED, POSTINGS, Place, Table};

/// Bytes of the posted memory, and of the export.
const POOL: u64 = 1 << 20;
/// Arrivals that are copying at a time.
const MOST_CLAIMS: usize = 80;

#[derive(Debug, arbitrary::Arbitrary)]
enum Act {
    Post {
        index: u8,
        start: u32,
        len: u32,
        destination: u32,
    },
    Look {
        index: u8,
    },
    Withdraw {
        index: u8,
        patience: u8,
    },
    Place {
        offset: u64,
        len: u32,
    },
    Commit {
        claim: u8,
    },
    Forget {
        claim: u8,
    },
    /// A sender writes into the table; most attacks are near what was there.
    Lie {
        at: u16,
        value: u64,
        relative: bool,
    },
}

fuzz_target!(|acts: Vec<Act>| {
    // A line more than is needed, so that it can begin on one.
    let mut words = vec![0_u64; Table::LEN / 8 + 8];
    let start = words.as_mut_ptr();
    // SAFETY: at most 7 words on, which were added.
    let start = unsafe { start.add(start.align_offset(64)) };
    // SAFETY: aligned, and long enough; `words` outlives the reference.
    play(acts, unsafe { Table::at(start.cast()) }, start);
});

/// `words` are the table's own.
fn play(acts: Vec<Act>, table: &Table, words: *mut u64) {
    // What the receiver knows by itself: generation and length of each posting that is open.
    let mut posted: [Option<(u64, u64)>; POSTINGS] = [None; POSTINGS];
    let mut generation = 0;
    let mut claims: Vec<Claim<'_>> = Vec::new();
    for act in acts {
        match act {
            Act::Post { index, start, len, destination } => {
                let index = usize::from(index) % POSTINGS;
                let destination = u64::from(destination) % POOL;
                let len = u64::from(len) % (POOL - destination);
                if posted[index].is_none() {
                    generation += 1;
                    table.post(index, generation, u64::from(start), len, destination);
                    posted[index] = Some((generation, len));
                }
            }
            Act::Look { index } => {
                let index = usize::from(index) % POSTINGS;
                if let Some((_, len)) = posted[index] {
                    check(&table.redirected(index, len), len);
                }
            }
            Act::Withdraw { index, mut patience } => {
                let index = usize::from(index) % POSTINGS;
                if let Some((generation, len)) = posted[index].take() {
                    let patient = || {
                        patience = patience.saturating_sub(1);
                        patience > 0
                    };
                    check(&table.withdraw(index, generation, len, patient).redirected, len);
                }
            }
            Act::Place { offset, len } => {
                let len = u64::from(len).max(1);
                match table.place(offset, len, POOL) {
                    Place::Default(piece) => assert!((1..=len).contains(&piece)),
                    Place::Posted(claim) => {
                        assert!((1..=len.min(MAX_POSTED)).contains(&claim.len()));
                        assert!(claim.destination() <= POOL - claim.len());
                        if claims.len() < MOST_CLAIMS {
                            claims.push(claim);
                        }
                    }
                }
            }
            Act::Commit { claim } if !claims.is_empty() => {
                let _ = claims.swap_remove(usize::from(claim) % claims.len()).commit();
            }
            Act::Forget { claim } if !claims.is_empty() => {
                drop(claims.swap_remove(usize::from(claim) % claims.len()));
            }
            Act::Lie { at, value, relative } => {
                // SAFETY: a word within the table.
                let word = unsafe { words.add(usize::from(at) % (Table::LEN / 8)) };
                // SAFETY: as the table's fields are atomics, so is this.
                let word = unsafe { std::sync::atomic::AtomicU64::from_ptr(word) };
                let before = word.load(std::sync::atomic::Ordering::Relaxed);
                let value =
                    if relative { before.wrapping_add(value % 64).wrapping_sub(32) } else { value };
                word.store(value, std::sync::atomic::Ordering::Relaxed);
            }
            Act::Commit { .. } | Act::Forget { .. } => {}
        }
    }
}

/// In order, neither empty nor touching, within what was posted.
fn check(redirected: &[Range<u64>], len: u64) {
    assert!(redirected.iter().all(|range| range.start < range.end && range.end <= len));
    assert!(redirected.windows(2).all(|pair| pair[0].end < pair[1].start));
}
