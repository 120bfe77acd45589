//! `send-bandwidth` and `fetch-bandwidth` (the paper's figures 6 and 8).
//!
//! A stream of messages of one size; the rate counts from the first message's copy to the last
//! message's read, so what is reported has *arrived and been read*. A sample is one turn of the
//! slots (4 MiB, or 1024 messages). `memcpy` is the same stream over the very pages of the VMMC import, with
//! `ptr::copy_nonoverlapping` and atomic words by hand: same source, same destination, same rotation, the
//! same reader in the same rhythm. `shared-memory` is that over a mapping of its own. `copying` is
//! the rate while not waiting for the other side. Over sockets fetches are not asked for one by
//! one, but streamed by their owner, which favours the sockets.
//!
//! `vmmc-unread` is for the comparison with other libraries' own programs, none of which touches the bytes: one source is sent to one place
//! again and again, each time with a signal word, and nobody reads it.

use std::time::{Duration, Instant};

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::flow::{Flow, Timing};
use crate::links::{Peer, over};
use crate::memory::{Memory, SLOTS};
use crate::path::Path;
use crate::peer::Order;
use crate::rounds::{Round, fill};
use crate::statistics::Samples;

/// The signal word of sends that nobody reads.
const UNREAD: usize = 1024;

/// One round of `send-bandwidth`; samples are turns.
pub(crate) fn send(
    peer: &mut Peer,
    path: Path,
    size: usize,
    slice: Duration,
) -> Result<Round, BenchError> {
    round(path, slice, size, |count| {
        let first = peer.numbers(count);
        let order = Order::Receive { path, size, first, count };
        peer.together(&order, |links| {
            let flow = Flow { path, size, first, count, spin: links.spin };
            over!(links, path, |memory| flow.send(memory), |stream| flow.write(stream))
        })
    })
}

/// One round of `fetch-bandwidth`; samples are turns.
pub(crate) fn fetch(
    peer: &mut Peer,
    path: Path,
    size: usize,
    slice: Duration,
) -> Result<Round, BenchError> {
    round(path, slice, size, |count| {
        let first = peer.numbers(count);
        let order = Order::Offer { path, size, first, count };
        peer.together(&order, |links| {
            let flow = Flow { path, size, first, count, spin: links.spin };
            over!(links, path, |memory| flow.fetch(memory), |stream| flow.read(stream))
        })
    })
}

/// One round of sends that nobody reads; samples are turns.
pub(crate) fn unread(peer: &Peer, size: usize, slice: Duration) -> Result<Samples, BenchError> {
    let (memory, clock, began) = (&peer.links.vmmc, Clock::calibrated(), Instant::now());
    let (source, mut samples) = (Buffer::filled(0x5a, size), Samples::new());
    while samples.len() < 10 || began.elapsed() < slice {
        let from = clock.now();
        for number in 0..messages_in_turn(size) {
            memory.send_signal(SLOTS, &source, UNREAD, number)?;
        }
        samples.record(clock.ticks_between(from, clock.now()) as f64);
    }
    Ok(samples)
}

fn round(
    path: Path,
    slice: Duration,
    size: usize,
    mut stream: impl FnMut(u64) -> Result<(Timing, u64), BenchError>,
) -> Result<Round, BenchError> {
    let turn = messages_in_turn(size);
    let clock = Clock::calibrated();
    let from = clock.now();
    stream(turn)?;
    let turns = fill(slice, 1, clock.now() - from).max(2);
    let (timing, cpu) = stream(turns * turn)?;
    let busy = 1.0 - timing.waiting as f64 / timing.total as f64;
    Ok(Round {
        middle: timing.turns,
        tails: None,
        cpu_us: cpu as f64 / (turns * turn) as f64 / 1000.0,
        busy: path.in_memory().then_some(busy),
    })
}

/// Messages in one sample.
pub(crate) fn messages_in_turn(size: usize) -> u64 {
    crate::memory::slot_count(size) as u64
}
