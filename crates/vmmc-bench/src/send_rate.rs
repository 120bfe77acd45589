//! `send-rate`: asynchronous sends a second from one sender, each with its end looked at; beside them synchronous sends, bare
//! stores into the same kind of memory, and UCX's puts over `posix`. Then the same by a write-only import, for which the service's engine
//! writes: asynchronous with up to 64 under way, and synchronous.
//!
//! The receiver takes no part in any of them. The sends go round a page of the other process's inbox, one cache line further each time.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use vmmc::{ImportSource, Rights, Transfer};

use crate::clock::Clock;
use crate::links::Peer;
use crate::machine::Machine;
use crate::memory::{Memory, SLOTS};
use crate::options::{Bench, LARGEST, Options};
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::statistics::{Samples, median};
use crate::vmmc_memory::VmmcMemory;
use crate::{BenchError, ucx};

/// Sends timed together.
const BATCH: u64 = 1000;
/// Places that the sends go round.
const PLACES: usize = 64;
/// Handed over again and again: what lives for ever is a buffer that costs nothing to own.
static PAYLOAD: [u8; LARGEST] = [0x5a; LARGEST];

/// The sender's ways, in the order of the rows.
const PATHS: [&str; 6] =
    ["vmmc", "vmmc-sync", "shared-memory", "ucx-posix", "vmmc-write-only", "vmmc-write-only-sync"];

/// Sends that a sender by the engine has under way.
const WINDOW: usize = 64;

pub(crate) fn run(
    options: &Options,
    machine: &Machine,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let sizes = options.sizes_for(Bench::SendRate)?;
    let rounds = options.rounds_of(Bench::SendRate);
    let slice = options.slice(Bench::SendRate, sizes.len() * PATHS.len())?;
    let progress = Progress::new(options.progress, "send-rate", sizes.len() * rounds);
    let with_ucx = ucx::installed();
    if !with_ucx {
        notes.push(format!("{}: no row ucx-posix", ucx::MISSING));
    }
    let peer = Peer::start(&options.peer, machine)?;
    let links = &peer.links;
    let write_only = links
        .vmmc
        .process
        .import(ImportSource::Id(links.vmmc.import.id()))
        .rights(Rights::WRITE)
        .open()
        .map_err(|cause| BenchError::vmmc("import for writing only", cause))?;
    let mut rows = Vec::new();
    for size in sizes {
        let mut series = PATHS.map(Series::new);
        for _ in 0..rounds {
            let [asynchronous, synchronous, stores, puts, by_engine, by_engine_sync] = &mut series;
            asynchronous.add(batches(slice, |at| post(&links.vmmc, at, size))?);
            synchronous.add(batches(slice, |at| links.vmmc.send(at, payload(size)))?);
            stores.add(batches(slice, |at| links.shared_memory.send(at, payload(size)))?);
            if with_ucx {
                puts.add(ucx_puts(machine, size, slice)?);
            }
            let mut window = VecDeque::with_capacity(WINDOW);
            by_engine.add(batches(slice, |at| {
                if window.len() == WINDOW {
                    window.pop_front().map_or(Ok(()), ended)?;
                }
                window.push_back(write_only.send_async(at, payload(size)));
                Ok(())
            })?);
            window.into_iter().try_for_each(ended)?;
            by_engine_sync.add(batches(slice, |at| {
                let sent = write_only.send(at, payload(size));
                sent.map_err(|cause| BenchError::vmmc("transfer", cause))
            })?);
            progress.advance();
        }
        let measured = series.iter().filter(|series| !series.middles.is_empty());
        rows.extend(measured.map(|series| series.row(size)));
    }
    Ok(rows)
}

/// What is sent, of which the compiler knows neither the bytes nor how many.
#[inline(always)]
fn payload(size: usize) -> &'static [u8] {
    black_box(&PAYLOAD[..size])
}

/// One asynchronous send, to its end.
#[inline(always)]
fn post(memory: &VmmcMemory, at: usize, size: usize) -> Result<(), BenchError> {
    ended(memory.import.send_async(at, payload(size)))
}

#[inline(always)]
fn ended(transfer: Transfer<&'static [u8]>) -> Result<(), BenchError> {
    transfer.wait().result.map_err(|cause| BenchError::vmmc("transfer", cause))
}

/// Sends for so long; a sample is the time of one send in ticks.
fn batches(
    slice: Duration,
    mut send: impl FnMut(usize) -> Result<(), BenchError>,
) -> Result<Samples, BenchError> {
    let (clock, began, mut samples) = (Clock::calibrated(), Instant::now(), Samples::new());
    while samples.len() < 10 || began.elapsed() < slice {
        let from = clock.now();
        for number in 0..BATCH as usize {
            send(SLOTS + number % PLACES * 64)?;
        }
        samples.record(clock.ticks_between(from, clock.now()) as f64 / BATCH as f64);
    }
    Ok(samples)
}

/// UCX tells the mean of a run: one sample.
fn ucx_puts(machine: &Machine, size: usize, slice: Duration) -> Result<Samples, BenchError> {
    // About 10 ns each.
    let count =
        u64::try_from(slice.as_nanos() / 10).unwrap_or(u64::MAX).clamp(100_000, 100_000_000);
    let rate = ucx::put_rate(machine, size, count)?;
    let (clock, mut samples) = (Clock::calibrated(), Samples::new());
    samples.record(clock.ticks(Duration::from_secs(1)) as f64 / rate);
    Ok(samples)
}

/// One path over all rounds; samples in ticks.
struct Series {
    path: &'static str,
    middles: Vec<f64>,
    all: Samples,
}

impl Series {
    fn new(path: &'static str) -> Series {
        Series { path, middles: Vec::new(), all: Samples::new() }
    }

    fn add(&mut self, round: Samples) {
        self.middles.push(round.quantile(0.5));
        self.all.merge(&round);
    }

    fn row(&self, size: usize) -> Row {
        let clock = Clock::calibrated();
        let millions = |ticks: f64| 1e3 / clock.nanoseconds(ticks);
        let tails = (millions(self.all.quantile(0.99)), millions(self.all.quantile(0.999)));
        Row::new(self.path, size, Unit::MillionsPerSecond, millions(median(&self.middles))).tails(
            tails.0,
            tails.1,
            self.all.len(),
        )
    }
}
