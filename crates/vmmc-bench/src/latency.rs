//! `send-latency` and `fetch-latency` (the paper's figures 5 and 7).
//!
//! **Send**: one way is half a round trip of stamped payloads, each written by its sender and read
//! whole by its receiver.
//! **Fetch**: the time of one fetch, of bytes that lie modified in the owner's cache; over sockets a
//! request of 4 bytes and an answer with the payload, which is what a remote read is there.
//!
//! On the memory paths the median is taken over the means of batches, so that the timer does not show
//! at 0.1 µs; the tails are those of single trips, timed one by one, less the timer's own cost. The
//! kernel's paths are long enough to be timed one by one throughout.

use std::time::Duration;

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::exchange::{OverMemory, ask};
use crate::fetching::{self, Refill};
use crate::links::{Links, Peer, over};
use crate::path::Path;
use crate::peer::Order;
use crate::rounds::{Round, fill};
use crate::statistics::Samples;

/// One round of `send-latency`; samples are round trips, twice what is reported.
pub(crate) fn send(
    peer: &mut Peer,
    path: Path,
    size: usize,
    slice: Duration,
) -> Result<Round, BenchError> {
    match path {
        Path::Memcpy => copy(size, slice, 2),
        _ => round_trips(peer, path, (size, size), slice, 2),
    }
}

/// One round of `fetch-latency`; samples are fetches.
pub(crate) fn fetch(
    peer: &mut Peer,
    path: Path,
    size: usize,
    slice: Duration,
) -> Result<Round, BenchError> {
    match path {
        Path::Memcpy => copy(size, slice, 1),
        _ if path.in_memory() => fetches(peer, path, size, slice),
        _ => round_trips(peer, path, (4, size), slice, 1),
    }
}

fn round_trips(
    peer: &mut Peer,
    path: Path,
    sizes: (usize, usize),
    slice: Duration,
    ways: u64,
) -> Result<Round, BenchError> {
    let clock = Clock::calibrated();
    let pilot = 8;
    let from = clock.now();
    trips(peer, path, sizes, (pilot, pilot))?;
    let count = fill(slice / 8, pilot, clock.now() - from).max(pilot);
    let from = clock.now();
    trips(peer, path, sizes, (count, count))?;
    let ticks = clock.now() - from;
    let trips_per_op = ways as f64 * 1000.0;
    if !path.in_memory() {
        let count = fill(slice, count, ticks);
        let (middle, cpu) = trips(peer, path, sizes, (count, 1))?;
        return Ok(Round {
            middle,
            tails: None,
            cpu_us: cpu as f64 / count as f64 / trips_per_op,
            busy: None,
        });
    }
    let count = fill(slice / 2, count, ticks);
    let (middle, cpu) = trips(peer, path, sizes, (count, batch(sizes.1)))?;
    let (tails, _) = trips(peer, path, sizes, (count, 1))?;
    let cpu_us = cpu as f64 / count as f64 / trips_per_op;
    Ok(Round { middle, tails: Some(tails), cpu_us, busy: None })
}

/// Round trips in a batch: some 10 µs, of which the timer's 10 ns are a thousandth.
fn batch(size: usize) -> u64 {
    (64 * 256 / size as u64).clamp(1, 64)
}

fn trips(
    peer: &mut Peer,
    path: Path,
    (size, answer): (usize, usize),
    (count, batch): (u64, u64),
) -> Result<(Samples, u64), BenchError> {
    let first = peer.numbers(count);
    let order = Order::Answer { path, size, answer, first, count };
    let mut samples = Samples::new();
    let clock = Clock::calibrated();
    let ((), cpu) = peer.together(&order, |links| {
        let (spin, sizes, counts) = (links.spin, (size, answer), (count, batch));
        over!(
            links,
            path,
            |memory| {
                let mut exchange = OverMemory { memory, spin, path };
                ask(&mut exchange, sizes, first, counts, clock, &mut samples)
            },
            |stream| {
                let mut stream = stream;
                ask(&mut stream, sizes, first, counts, clock, &mut samples)
            }
        )
    })?;
    Ok((samples, cpu))
}

fn fetches(peer: &mut Peer, path: Path, size: usize, slice: Duration) -> Result<Round, BenchError> {
    let (clock, slots) = (Clock::calibrated(), fetching::batch(size));
    let from = clock.now();
    chased(peer, path, size, 4, slots)?;
    let rounds = fill(slice / 8, 4, clock.now() - from).max(4);
    let from = clock.now();
    chased(peer, path, size, rounds, slots)?;
    let rounds = fill(slice / 2, rounds, clock.now() - from);
    let middle = chased(peer, path, size, rounds, slots)?;
    let tails = chased(peer, path, size, rounds * u64::from(slots).min(8), 1)?;
    // The owner takes no part in a fetch, so its processor time is the fetcher's, which never waits.
    let cpu_us = clock.microseconds(middle.quantile(0.5));
    Ok(Round { middle, tails: Some(tails), cpu_us, busy: None })
}

fn chased(
    peer: &mut Peer,
    path: Path,
    size: usize,
    rounds: u64,
    slots: u32,
) -> Result<Samples, BenchError> {
    let refill = Refill { first: peer.numbers(rounds), rounds, slots };
    let order = Order::Refill { path, size, refill };
    let mut samples = Samples::new();
    let clock = Clock::calibrated();
    peer.together(&order, |links: &Links| {
        over!(
            links,
            path,
            |memory| fetching::fetch(memory, size, refill, links.spin, clock, &mut samples),
            |_stream| Err(BenchError::OutOfStep("sockets have no slots".to_owned()))
        )
    })?;
    Ok(samples)
}

/// A copy within this process, from a warm source to a warm destination: the floor of every path.
/// `ways` copies count as one sample, as a round trip is two sends.
fn copy(size: usize, slice: Duration, ways: u64) -> Result<Round, BenchError> {
    let clock = Clock::calibrated();
    let (source, mut destination) = (Buffer::filled(0x5a, size), Buffer::filled(0, size));
    let mut copies = |count: u64| {
        let from = clock.now();
        for _ in 0..count * ways {
            std::hint::black_box(&mut destination).copy_from_slice(std::hint::black_box(&source));
        }
        clock.ticks_between(from, clock.now())
    };
    copies(64);
    let batch = batch(size);
    let samples = fill(slice / 4, 1, copies(batch)).min(20_000);
    let (mut middle, mut tails) = (Samples::new(), Samples::new());
    for _ in 0..samples {
        middle.record(copies(batch) as f64 / batch as f64);
        tails.record(copies(1) as f64);
    }
    let cpu_us = clock.microseconds(middle.quantile(0.5)) / ways as f64;
    Ok(Round { middle, tails: Some(tails), cpu_us, busy: None })
}
