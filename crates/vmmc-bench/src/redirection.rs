//! `redirection`: what it is worth that bytes arrive where the receiver needs them (the argument of the paper's figure 3).
//!
//! | part | what the receiver does with each message of a stream | paths |
//! |---|---|---|
//! | `own-address` | needs it in memory of its own, and reads it there | `vmmc-redirected`: posted before the message may come; `copied`: from the default buffer |
//! | `in-place` | reads it in the default buffer | `vmmc-redirectable`: the export could be redirected, nothing is posted; `not-redirectable` |
//! | `send` | nothing: 8 bytes are sent, again and again | as `in-place` |
//!
//! So the last two parts tell what an export pays for the hook that it does not use. In a stream four messages are on their way at most,
//! each to a slot of its own; what is reported has arrived and been read. `copying` is the rate while the *receiver* does not wait: where
//! the sender is slower, only there it shows what the receiver saves.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmmc::{Export, Import, ImportSource, PostedBuffer, Posting, Process, Redirected};

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::exchange::{check, mark};
use crate::flow::Meter;
use crate::links::{Links, Peer};
use crate::machine::Machine;
use crate::memory::{CREDIT, Memory, WINDOW, read_all};
use crate::options::{Bench, Options};
use crate::path::Path;
use crate::peer::Order;
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::rounds::{Plan, Round, Series, fill, in_turns};
use crate::statistics::{Samples, median};
use crate::vmmc_memory::import;

/// What the receiver does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Redirected,
    Copied,
    Redirectable,
    NotRedirectable,
}

/// A stream for the second process to receive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RedirectionOrder {
    way: Way,
    size: usize,
    /// Number of the first message; larger than all before.
    first: u64,
    count: u64,
}

const WAYS: [Way; 4] = [Way::Redirected, Way::Copied, Way::Redirectable, Way::NotRedirectable];

/// Messages that may be on their way.
const SLOTS: usize = 4;
/// Where the first slot begins; the signal word is before it.
const FIRST_SLOT: usize = 4096;
const WORD: usize = 0;

/// Sends of 8 bytes that are timed together.
const BATCH: u64 = 1000;

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Redirected => "vmmc-redirected",
            Way::Copied => "copied",
            Way::Redirectable => "vmmc-redirectable",
            Way::NotRedirectable => "not-redirectable",
        }
    }

    fn part(self) -> &'static str {
        match self {
            Way::Redirected | Way::Copied => "own-address",
            Way::Redirectable | Way::NotRedirectable => "in-place",
        }
    }
}

/// Measures all ways at all sizes.
pub(crate) fn run(options: &Options, machine: &Machine) -> Result<Vec<Row>, BenchError> {
    let sizes = options.sizes_for(Bench::Redirection)?;
    let plan = Plan {
        rounds: options.rounds_of(Bench::Redirection),
        slice: options.slice(Bench::Redirection, (sizes.len() + 1) * WAYS.len())?,
    };
    let parts = sizes.len() * WAYS.len() * plan.rounds;
    let progress = Progress::new(options.progress, "redirection", parts);
    let mut peer = Peer::start(&options.peer, machine)?;
    let mut rows = hook(&peer.links.vmmc.process, plan)?;
    let series = in_turns(&mut peer, &sizes, &WAYS, plan, &progress, stream)?;
    rows.extend(series.iter().map(bandwidth));
    Ok(rows)
}

fn bandwidth(series: &Series<Way>) -> Row {
    let clock = Clock::calibrated();
    let bytes = (messages_in_turn(series.size) * series.size as u64) as f64;
    let figure = |ticks: f64| bytes / clock.nanoseconds(ticks);
    let unit = Unit::GigabytesPerSecond;
    let row = Row::new(series.path.name(), series.size, unit, figure(series.middle))
        .tails(
            figure(series.tails.quantile(0.99)),
            figure(series.tails.quantile(0.999)),
            series.tails.len(),
        )
        .part(series.path.part());
    let copying = series.busy.map(|busy| figure(series.middle) / busy);
    Row { cpu_us: Some(series.cpu_us), line_us: Some(series.line_us), copying, ..row }
}

/// Messages in one sample: one turn of the window of the other streams.
fn messages_in_turn(size: usize) -> u64 {
    (WINDOW / size).clamp(SLOTS, 1024) as u64
}

fn slot(number: u64, size: usize) -> usize {
    FIRST_SLOT + (number % SLOTS as u64) as usize * size.next_multiple_of(4096)
}

fn export_len(size: usize) -> usize {
    slot(SLOTS as u64 - 1, size) + size
}

/// One round of one way; samples are turns.
fn stream(peer: &mut Peer, way: Way, size: usize, slice: Duration) -> Result<Round, BenchError> {
    let turn = messages_in_turn(size);
    let clock = Clock::calibrated();
    let mut send = |turns: u64| {
        let count = turns * turn;
        let first = peer.numbers(count);
        let order = Order::Redirection(RedirectionOrder { way, size, first, count });
        peer.together(&order, |links| send_all(links, size, first, count))
    };
    // All pages are touched in the first turn of each stream; the second says how many fill the slice.
    let ((probe, _), _) = send(2)?;
    let turns =
        1 + fill(slice, 1, clock.ticks(Duration::from_nanos(1)).max(probe.quantile(1.0) as u64))
            .max(2);
    let ((middle, busy), cpu) = send(turns)?;
    let cpu_us = cpu as f64 / (turns * turn) as f64 / 1000.0;
    Ok(Round { middle, tails: None, cpu_us, busy: Some(busy) })
}

/// The sender's side: samples of turns, and the share of the time in which the receiver did not wait. The first turn is not counted.
fn send_all(
    links: &Links,
    size: usize,
    first: u64,
    count: u64,
) -> Result<(Samples, f64), BenchError> {
    let import = import(&links.vmmc.process, &links.control.hear::<String>()?)?;
    let mut source = Buffer::filled(0x5a, size);
    let turn = messages_in_turn(size);
    let mut meter = Meter::start(turn);
    let mut taken = 0;
    for number in 0..count {
        if number == turn {
            meter = Meter::start(turn);
        }
        if number == taken + SLOTS as u64 {
            links.spin.until(|| {
                taken = links.vmmc.load_signal(CREDIT).saturating_sub(first);
                taken + SLOTS as u64 > number
            })?;
        }
        let stamp = first + number;
        mark(&mut source, stamp);
        import
            .send_signal(slot(number, size), &source, WORD, stamp + 1)
            .map_err(|cause| BenchError::vmmc("send", cause))?;
        meter.message();
    }
    links.spin.until(|| links.vmmc.load_signal(CREDIT) == first + count)?;
    Ok((meter.stop().turns, links.control.hear()?))
}

/// The receiver's side.
pub(crate) fn receive(order: &RedirectionOrder, links: &Links) -> Result<(), BenchError> {
    let RedirectionOrder { way, size, first, count } = *order;
    let options = links.vmmc.process.export(export_len(size));
    let options = match way {
        Way::Redirected | Way::Redirectable => {
            options.redirectable(SLOTS * size.next_multiple_of(4096))
        }
        Way::Copied | Way::NotRedirectable => options,
    };
    let export = options.create().map_err(|cause| BenchError::vmmc("export", cause))?;
    let mut landing = Landing::new(way, &export, size)?;
    links.control.say(&export.id().to_string())?;
    let turn = messages_in_turn(size);
    let mut meter = Meter::start(turn);
    let mut there = 0;
    for number in 0..count {
        let stamp = first + number;
        if number == turn {
            meter = Meter::start(turn);
        }
        if number == there {
            let from = Clock::calibrated().now();
            links.spin.until(|| {
                there = export.load_signal(WORD).unwrap_or(0).saturating_sub(first);
                there > number
            })?;
            meter.waited(from);
        }
        landing.take(&export, number, size, stamp)?;
        links.vmmc.signal(CREDIT, stamp + 1)?;
    }
    let timing = meter.stop();
    links.control.say(&(1.0 - timing.waiting as f64 / timing.total as f64))
}

/// Where the receiver reads messages.
enum Landing {
    /// A posting for each slot.
    Posted(Vec<Option<Posting>>),
    /// A buffer for each slot.
    Private(Vec<Buffer>),
    InPlace,
}

impl Landing {
    fn new(way: Way, export: &Export, size: usize) -> Result<Landing, BenchError> {
        let slots = 0..SLOTS as u64;
        Ok(match way {
            Way::Redirected => {
                let posted = slots.map(|number| {
                    let buffer = export.redirect_buffer(size);
                    let buffer =
                        buffer.map_err(|cause| BenchError::vmmc("take a buffer", cause))?;
                    post(export, number, size, buffer.into()).map(Some)
                });
                Landing::Posted(posted.collect::<Result<_, _>>()?)
            }
            Way::Copied => Landing::Private(slots.map(|_| Buffer::filled(0, size)).collect()),
            Way::Redirectable | Way::NotRedirectable => Landing::InPlace,
        })
    }

    fn take(
        &mut self,
        export: &Export,
        number: u64,
        size: usize,
        stamp: u64,
    ) -> Result<(), BenchError> {
        let at = slot(number, size);
        let index = (number % SLOTS as u64) as usize;
        match self {
            Landing::Posted(postings) => {
                let missing = || BenchError::OutOfStep("a slot is not posted".into());
                let posting = postings[index].take().ok_or_else(missing)?;
                let Redirected { buffer, redirected } =
                    export.finish(posting).map_err(|cause| BenchError::vmmc("finish", cause))?;
                if redirected.first() != Some(&(0..size)) {
                    return Err(BenchError::OutOfStep("a message was not redirected".into()));
                }
                if let PostedBuffer::Shared(memory) = &buffer {
                    // SAFETY: the buffer is `size` bytes long, and its sender waits for the credit.
                    read(unsafe { std::slice::from_raw_parts(memory.as_ptr(), size) }, stamp)?;
                }
                postings[index] = Some(post(export, number, size, buffer)?);
                Ok(())
            }
            Landing::Private(buffers) => {
                let buffer = &mut buffers[index];
                export.read(at, buffer).map_err(|cause| BenchError::vmmc("read", cause))?;
                read(buffer, stamp)
            }
            Landing::InPlace => {
                // SAFETY: the slot lies in the export, and its sender waits for the credit.
                let bytes = unsafe { std::slice::from_raw_parts(export.as_ptr().add(at), size) };
                read(bytes, stamp)
            }
        }
    }
}

fn post(
    export: &Export,
    number: u64,
    size: usize,
    buffer: PostedBuffer,
) -> Result<Posting, BenchError> {
    export.post(slot(number, size), buffer).map_err(|cause| BenchError::vmmc("post", cause))
}

fn read(bytes: &[u8], stamp: u64) -> Result<(), BenchError> {
    read_all(bytes);
    check(bytes, stamp, Path::Vmmc)
}

/// What a send of 8 bytes costs, to an export that can be redirected and to one that cannot.
fn hook(process: &Process, plan: Plan) -> Result<Vec<Row>, BenchError> {
    let exports = [process.export(4096).redirectable(4096), process.export(4096)];
    let mut ends: Vec<(Export, Import)> = Vec::new();
    for export in exports {
        let export = export.create().map_err(|cause| BenchError::vmmc("export", cause))?;
        let import = process.import(ImportSource::Id(export.id())).open();
        ends.push((export, import.map_err(|cause| BenchError::vmmc("import", cause))?));
    }
    let mut found = [(); 2].map(|()| (Samples::new(), Vec::new()));
    for _ in 0..plan.rounds {
        for ((all, middles), (_, import)) in found.iter_mut().zip(&ends) {
            let round = sends(import, plan.slice)?;
            middles.push(round.quantile(0.5));
            all.merge(&round);
        }
    }
    let clock = Clock::calibrated();
    let figure = |ticks: f64| clock.nanoseconds(ticks);
    let ways = [Way::Redirectable, Way::NotRedirectable];
    let rows = ways.into_iter().zip(&found).map(|(way, (all, middles))| {
        Row::new(way.name(), 8, Unit::Nanoseconds, figure(median(middles)))
            .tails(figure(all.quantile(0.99)), figure(all.quantile(0.999)), all.len())
            .part("send")
    });
    Ok(rows.collect())
}

/// Samples are means of [`BATCH`] sends.
fn sends(import: &Import, slice: Duration) -> Result<Samples, BenchError> {
    let (clock, began, mut samples) = (Clock::calibrated(), Instant::now(), Samples::new());
    while samples.len() < 10 || began.elapsed() < slice {
        let from = clock.now();
        for number in 0..BATCH {
            let sent = import.send(64, &std::hint::black_box(number).to_ne_bytes());
            sent.map_err(|cause| BenchError::vmmc("send", cause))?;
        }
        samples.record(clock.ticks_between(from, clock.now()) as f64 / BATCH as f64);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_behind_the_word_and_in_the_export_and_do_not_meet() {
        for size in [4, 4096, 65536, 1 << 20] {
            assert!(slot(0, size) > WORD + 8);
            for number in 0..9 {
                assert!(slot(number, size) + size <= export_len(size));
                assert_eq!(slot(number, size), slot(number + SLOTS as u64, size));
                assert!(slot(number, size).abs_diff(slot(number + 1, size)) >= size);
            }
        }
    }
}
