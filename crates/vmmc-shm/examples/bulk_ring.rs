//! What a bare ring carries between two threads, by its size and by how much of it may be unread: the ground for the bulk ring of
//! `vmmc_shm::stream::Tier`.
//!
//! `cargo run --release -p vmmc-shm --example bulk_ring`
//!
//! Both threads copy pieces of 64 KiB with `vmmc_shm::copy` and publish each, without sockets and without sleep. It needs two
//! processors of its own. The rows take turns, for what the host of a virtual machine does meanwhile changes the figures.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PIECE: usize = 64 << 10;
const TIME: Duration = Duration::from_millis(400);
const ROUNDS: usize = 7;
const MIB: usize = 1 << 20;
/// Size of the ring, and how much of it may be unread.
const RINGS: [(usize, usize); 8] = [
    (2 * MIB, 2 * MIB),
    (4 * MIB, 4 * MIB),
    (8 * MIB, 8 * MIB),
    (2 * MIB, MIB),
    (3 * MIB, 2 * MIB),
    (4 * MIB, 2 * MIB),
    (4 * MIB, 3 * MIB),
    (8 * MIB, 4 * MIB),
];

/// A word on a line of its own, and on none that is fetched together with another's.
#[derive(Default)]
#[repr(align(256))]
struct Apart<T>(T);

/// Rings and the buffers of programs that move bulk lie in whole pages; copies between others take twice as long.
#[derive(Clone)]
#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "only its bytes are used, by address")] [u8; 4096]);

fn pages(bytes: usize, value: u8) -> Vec<Page> {
    vec![Page([value; 4096]); bytes / size_of::<Page>()]
}

#[derive(Default)]
struct Shared {
    produced: Apart<AtomicUsize>,
    consumed: Apart<AtomicUsize>,
    over: Apart<AtomicBool>,
}

/// Gigabytes a second.
fn carry(size: usize, window: usize) -> f64 {
    let mut memory = pages(size, 0);
    // As a number, because each thread touches only the piece that is its own at the time.
    let ring = memory.as_mut_ptr().expose_provenance();
    let shared = Shared::default();
    std::thread::scope(|scope| {
        scope.spawn(|| read(ring, size, &shared));
        let rate = write(ring, size, window, &shared);
        shared.over.0.store(true, Ordering::Relaxed);
        rate
    })
}

fn write(ring: usize, size: usize, window: usize, shared: &Shared) -> f64 {
    let bytes = pages(PIECE, 1);
    let (start, mut produced) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        if produced - shared.consumed.0.load(Ordering::Acquire) > window - PIECE {
            spin_loop();
            continue;
        }
        let to = std::ptr::with_exposed_provenance_mut(ring + produced % size);
        // SAFETY: `size` is a multiple of a piece, so the piece lies in the ring; the reader has consumed what was there.
        unsafe { vmmc_shm::copy(bytes.as_ptr().cast(), to, PIECE) };
        produced += PIECE;
        shared.produced.0.store(produced, Ordering::Release);
    }
    produced as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn read(ring: usize, size: usize, shared: &Shared) {
    let (mut bytes, mut consumed) = (pages(PIECE, 0), 0);
    while !shared.over.0.load(Ordering::Relaxed) {
        if shared.produced.0.load(Ordering::Acquire) == consumed {
            spin_loop();
            continue;
        }
        let from = std::ptr::with_exposed_provenance(ring + consumed % size);
        // SAFETY: as in `write`; the writer has produced what is there, and does not touch it before it is consumed.
        unsafe { vmmc_shm::copy(from, bytes.as_mut_ptr().cast(), PIECE) };
        consumed += PIECE;
        shared.consumed.0.store(consumed, Ordering::Release);
    }
}

fn main() {
    let mut rates = [const { Vec::new() }; RINGS.len()];
    for _ in 0..ROUNDS {
        for (rates, (size, window)) in rates.iter_mut().zip(RINGS) {
            rates.push(carry(size, window));
        }
    }
    println!("ring MiB  unread MiB  GB/s (median)  least  most");
    for (rates, (size, window)) in rates.iter_mut().zip(RINGS) {
        rates.sort_by(f64::total_cmp);
        let (least, median, most) = (rates[0], rates[ROUNDS / 2], rates[ROUNDS - 1]);
        println!("{:8}  {:10}  {median:13.1}  {least:5.1}  {most:4.1}", size / MIB, window / MIB);
    }
}
