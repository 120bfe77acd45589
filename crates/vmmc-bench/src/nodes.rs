//! The same measurements between two nodes: VMMC over the link, beside kernel TCP over the same wire.
//!
//! [`serve_nodes`] waits on one node, [`run_between`] measures from another. They agree over a TCP connection of their own what comes next. A
//! process waits by looking, and gives way every 2.5 µs: two nodes on one machine may share a processor.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::buffer::Buffer;
use crate::clock::{Clock, cpu_time};
use crate::congestion;
use crate::exchange::{Exchange, OverMemory, answer, ask, check, mark};
use crate::flow::{Flow, Timing};
use crate::machine::Machine;
use crate::memory::{Memory, SLOTS, read_all, received, slot_count, slot_stride};
use crate::options::{Bench, Options};
use crate::path::Path;
use crate::peer::{Order, Outcome};
use crate::progress::Progress;
use crate::report::{Report, Row, Unit};
use crate::rounds::fill;
use crate::socket::{self, Stream};
use crate::spin::Spin;
use crate::statistics::{Samples, median};
use crate::vmmc_memory::{VmmcInbox, VmmcMemory};
use crate::window::Window;

/// What is compared in streams.
const STREAMS: [Path; 4] = [Path::Vmmc, Path::VmmcAsync, Path::TcpSpinning, Path::TcpBlocking];
/// Where what is there is fetched.
const FETCHES: [Path; 3] = [Path::Vmmc, Path::TcpSpinning, Path::TcpBlocking];
/// The same where one payload is waited for.
const LATENCIES: [Path; 4] = [Path::Vmmc, Path::VmmcWaiting, Path::TcpSpinning, Path::TcpBlocking];
/// Where the other process takes no part.
const RATES: [Path; 2] = [Path::VmmcAsync, Path::Vmmc];
/// Sends timed together there.
const BATCH: u64 = 256;
/// Sizes measured unless told otherwise, in bytes.
const SIZES: [usize; 4] = [8, 64, 4096, 1 << 20];

/// Between which nodes to measure.
#[derive(Debug, Clone)]
pub struct Between {
    /// This node, by the name that the other knows.
    pub own: String,
    /// The other, by the name that this one knows.
    pub other: String,
    /// Where [`serve_nodes`] listens there.
    pub address: SocketAddr,
}

/// Everything the two processes are connected by.
pub(crate) struct Wires {
    pub(crate) line: Line,
    pub(crate) vmmc: VmmcMemory,
    tcp: TcpStream,
    spin: Spin,
    numbers: u64,
    /// Processor time that was used for what is measured, in nanoseconds.
    cpu: u64,
}

/// Whole JSON messages, one a line.
pub(crate) struct Line {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

/// What the measuring side says first.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    node: String,
    export: String,
}

/// Serves measurements from other nodes, one after the other, for ever.
///
/// # Errors
/// When it cannot listen there. What goes wrong in one measurement is told to that one.
pub fn serve_nodes(listen: SocketAddr) -> Result<(), BenchError> {
    let listener = TcpListener::bind(listen)
        .map_err(|cause| BenchError::os("listen for other nodes", cause))?;
    loop {
        match serve(&listener) {
            Ok(()) | Err(BenchError::PeerLost) => {}
            Err(cause) => eprintln!("vmmc bench: {cause}"),
        }
    }
}

fn serve(listener: &TcpListener) -> Result<(), BenchError> {
    let mut line = Line::new(socket::accept(listener)?)?;
    let introduction: Introduction = line.hear()?;
    let inbox = VmmcInbox::new()?;
    line.say(&inbox.name())?;
    let tcp = socket::accept(listener)?;
    let vmmc = inbox.connect_to_node(&introduction.export, &introduction.node)?;
    line.say(&"connected")?;
    let mut wires = Wires { line, vmmc, tcp, spin: Spin::between_nodes(), numbers: 1, cpu: 0 };
    loop {
        let order: Order = wires.line.hear()?;
        if let Order::Swallow(order) = order {
            wires.line.say(&order.carry_out(listener))?;
            continue;
        }
        let before = cpu_time();
        let outcome = match carry_out(&order, &wires) {
            Ok(()) => Outcome::Done { cpu: cpu_time() - before },
            Err(cause) => Outcome::Failed(cause.to_string()),
        };
        wires.line.say(&outcome)?;
    }
}

fn carry_out(order: &Order, wires: &Wires) -> Result<(), BenchError> {
    let (memory, spin) = (&wires.vmmc, wires.spin);
    match *order {
        Order::Answer { path: path @ Path::Vmmc, size, answer: reply, first, count } => {
            answer(OverMemory { memory, spin, path }, size, reply, first, count)
        }
        Order::Answer { path: Path::VmmcWaiting, size, answer: reply, first, count } => {
            answer(Waiting { memory }, size, reply, first, count)
        }
        Order::Answer { path, size, answer: reply, first, count } => {
            answer(wires.stream(path)?, size, reply, first, count)
        }
        Order::Receive { path, size, first, count } => {
            let flow = Flow { path, size, first, count, spin };
            match path {
                Path::Vmmc | Path::VmmcAsync => flow.receive(memory).map(drop),
                _ => flow.read(wires.stream(path)?).map(drop),
            }
        }
        Order::Offer { path, size, first, count } => {
            let flow = Flow { path, size, first, count, spin };
            match path {
                Path::Vmmc => flow.offer(memory).map(drop),
                Path::VmmcAsync => flow.offer_async(memory).map(drop),
                _ => flow.write(wires.stream(path)?).map(drop),
            }
        }
        _ => Err(BenchError::OutOfStep("this is not measured between nodes".to_owned())),
    }
}

/// Runs one measurement against [`serve_nodes`] on another node; [`Bench::SendLatency`], [`Bench::FetchLatency`], [`Bench::SendBandwidth`],
/// [`Bench::FetchBandwidth`], [`Bench::SendRate`] or [`Bench::Congestion`].
///
/// # Errors
/// See [`BenchError`]; among others when the other node cannot be reached.
pub fn run_between(
    bench: Bench,
    between: &Between,
    options: &Options,
) -> Result<Report, BenchError> {
    if bench == Bench::Congestion {
        let mut wires = Wires::connect(between)?;
        let (rows, notes) = congestion::run(&mut wires, between, options)?;
        return Ok(Report { bench, machine: Machine::look()?, rows, notes });
    }
    let sizes = match options.sizes.is_empty() {
        true => SIZES.to_vec(),
        false => options.sizes_for(bench)?,
    };
    let paths = match bench {
        Bench::SendLatency => &LATENCIES[..],
        Bench::FetchLatency => &FETCHES,
        Bench::SendRate => &RATES,
        _ => &STREAMS,
    };
    let parts = sizes.len() * paths.len();
    let (rounds, slice) = (options.rounds_of(bench), options.slice(bench, parts)?);
    let progress = Progress::new(options.progress, bench.name(), parts * rounds);
    let mut wires = Wires::connect(between)?;
    let mut rows = Vec::new();
    for size in sizes {
        let mut series = vec![Vec::new(); paths.len()];
        for _ in 0..rounds {
            for (path, series) in paths.iter().zip(&mut series) {
                series.push(wires.round(bench, *path, size, slice)?);
                progress.advance();
            }
        }
        rows.extend(
            paths.iter().zip(&series).map(|(path, series)| row(bench, *path, size, series)),
        );
    }
    let notes = vec![format!(
        "from node {} to node {}; every process that waits by looking gives way every 2.5 µs",
        between.own, between.other
    )];
    Ok(Report { bench, machine: Machine::look()?, rows, notes })
}

/// One path at one size; of what `samples` count, see [`Wires::round`].
fn row(bench: Bench, path: Path, size: usize, rounds: &[(Samples, f64)]) -> Row {
    let clock = Clock::calibrated();
    let mut all = Samples::new();
    rounds.iter().for_each(|(round, _)| all.merge(round));
    // On a wire that loses much, a stream may not come to the end of one turn in a round.
    let told = rounds.iter().filter(|(round, _)| round.len() > 0);
    let middles: Vec<f64> = told.map(|(round, _)| round.quantile(0.5)).collect();
    let cpus: Vec<f64> = rounds.iter().map(|(_, cpu)| *cpu).collect();
    let bytes = (slot_count(size) * size) as f64;
    let (unit, figure): (Unit, &dyn Fn(f64) -> f64) = match bench {
        Bench::SendLatency => (Unit::Microseconds, &|ticks| clock.microseconds(ticks) / 2.0),
        Bench::FetchLatency => (Unit::Microseconds, &|ticks| clock.microseconds(ticks)),
        Bench::SendRate => {
            (Unit::MillionsPerSecond, &|ticks| BATCH as f64 * 1e3 / clock.nanoseconds(ticks))
        }
        _ => (Unit::GigabytesPerSecond, &|ticks| bytes / clock.nanoseconds(ticks)),
    };
    let tail = |quantile| figure(all.quantile(quantile));
    let row = Row::new(path.name(), size, unit, figure(median(&middles)));
    let row = row.tails(tail(0.99), tail(0.999), all.len());
    Row { cpu_us: Some(median(&cpus)), ..row }
}

/// Payloads with a notification each, for which the other process waits as programs do.
struct Waiting<'a> {
    memory: &'a VmmcMemory,
}

impl Exchange for Waiting<'_> {
    fn post(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        mark(payload, stamp);
        self.memory.send_notify(SLOTS, payload)
    }

    fn take(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        self.memory.wait()?;
        // SAFETY: the notification shows that the payload is complete; the sender waits for our answer.
        let bytes = unsafe { received(self.memory.inbox(), SLOTS, payload.len()) };
        read_all(bytes);
        check(bytes, stamp, Path::VmmcWaiting)
    }
}

impl Wires {
    fn connect(between: &Between) -> Result<Wires, BenchError> {
        let mut line = Line::new(socket::connect(between.address)?)?;
        let inbox = VmmcInbox::new()?;
        line.say(&Introduction { node: between.own.clone(), export: inbox.name() })?;
        let theirs: String = line.hear()?;
        let tcp = socket::connect(between.address)?;
        let vmmc = inbox.connect_to_node(&theirs, &between.other)?;
        line.hear::<String>()?;
        Ok(Wires { line, vmmc, tcp, spin: Spin::between_nodes(), numbers: 1, cpu: 0 })
    }

    /// One path for about `slice`: samples are round trips, fetches, or turns of the window, in ticks; and the processor time of both processes
    /// for each message, in microseconds. The node services', which have no part in it where processes host engines, is not counted.
    fn round(
        &mut self,
        bench: Bench,
        path: Path,
        size: usize,
        slice: Duration,
    ) -> Result<(Samples, f64), BenchError> {
        let clock = Clock::calibrated();
        let pilot = match bench {
            Bench::SendLatency | Bench::FetchLatency => 16,
            Bench::SendRate => BATCH,
            _ => slot_count(size) as u64,
        };
        let from = clock.now();
        self.measure(bench, path, size, pilot)?;
        let count = fill(slice, pilot, clock.now() - from);
        // Streams are measured in whole turns.
        let turn = if pilot == 16 { 1 } else { pilot };
        let count = (count / turn).max(2) * turn;
        self.cpu = 0;
        let samples = self.measure(bench, path, size, count)?;
        let messages = if bench == Bench::SendLatency { 2 * count } else { count };
        Ok((samples, self.cpu as f64 / messages as f64 / 1000.0))
    }

    fn measure(
        &mut self,
        bench: Bench,
        path: Path,
        size: usize,
        count: u64,
    ) -> Result<Samples, BenchError> {
        let first = self.numbers;
        self.numbers += count + 1;
        let spin = self.spin;
        let flow = Flow { path, size, first, count, spin };
        let turns = |timing: Timing| timing.turns;
        match (bench, path) {
            (Bench::SendLatency, _) => self.round_trips(path, (size, size), first, count),
            (Bench::FetchLatency, Path::Vmmc) => self.fetches(size, count),
            (Bench::SendRate, _) => self.sends(path, size, count),
            (Bench::FetchLatency, _) => self.round_trips(path, (4, size), first, count),
            (Bench::SendBandwidth, _) => {
                let order = Order::Receive { path, size, first, count };
                self.together(&order, |wires| match path {
                    Path::Vmmc => flow.send(&wires.vmmc).map(turns),
                    Path::VmmcAsync => flow.send_async(&wires.vmmc).map(turns),
                    _ => flow.write(wires.stream(path)?).map(turns),
                })
            }
            (Bench::FetchBandwidth, _) => {
                let order = Order::Offer { path, size, first, count };
                self.together(&order, |wires| match path {
                    Path::Vmmc => flow.fetch(&wires.vmmc).map(turns),
                    Path::VmmcAsync => flow.fetch_async(&wires.vmmc).map(turns),
                    _ => flow.read(wires.stream(path)?).map(turns),
                })
            }
            _ => Err(BenchError::OutOfStep("this is not measured between nodes".to_owned())),
        }
    }

    fn round_trips(
        &mut self,
        path: Path,
        sizes: (usize, usize),
        first: u64,
        count: u64,
    ) -> Result<Samples, BenchError> {
        let order = Order::Answer { path, size: sizes.0, answer: sizes.1, first, count };
        self.together(&order, |wires| {
            let (clock, mut samples) = (Clock::calibrated(), Samples::new());
            let (memory, spin) = (&wires.vmmc, wires.spin);
            match path {
                Path::Vmmc => {
                    let mut exchange = OverMemory { memory, spin, path };
                    ask(&mut exchange, sizes, first, (count, 1), clock, &mut samples)?;
                }
                Path::VmmcWaiting => {
                    let mut exchange = Waiting { memory };
                    ask(&mut exchange, sizes, first, (count, 1), clock, &mut samples)?;
                }
                _ => {
                    let mut stream = wires.stream(path)?;
                    ask(&mut stream, sizes, first, (count, 1), clock, &mut samples)?;
                }
            }
            Ok(samples)
        })
    }

    /// The other process takes no part.
    fn fetches(&mut self, size: usize, count: u64) -> Result<Samples, BenchError> {
        let (clock, mut samples) = (Clock::calibrated(), Samples::new());
        let before = cpu_time();
        let mut fetched = Buffer::filled(0, size);
        for _ in 0..count {
            let from = clock.now();
            self.vmmc.fetch(SLOTS, std::hint::black_box(&mut fetched))?;
            samples.record(clock.ticks_between(from, clock.now()) as f64);
        }
        self.cpu += cpu_time() - before;
        Ok(samples)
    }

    /// Sends of whole batches, round the slots of the other's inbox, each to its end. The other process takes no part.
    fn sends(&mut self, path: Path, size: usize, count: u64) -> Result<Samples, BenchError> {
        let (clock, mut samples) = (Clock::calibrated(), Samples::new());
        let before = cpu_time();
        let (mut window, source) = (Window::new(size), Buffer::filled(0x5a, size));
        for batch in 0..count / BATCH {
            let from = clock.now();
            for number in batch * BATCH..(batch + 1) * BATCH {
                let at = SLOTS + number as usize % slot_count(size) * slot_stride(size);
                if path == Path::Vmmc {
                    self.vmmc.send(at, &source)?;
                    continue;
                }
                if !window.has_room()
                    && let Some(buffer) = window.oldest()?
                {
                    window.give_back(buffer);
                }
                let source = window.buffer();
                window.push(self.vmmc.import.send_async(at, source));
            }
            samples.record(clock.ticks_between(from, clock.now()) as f64);
        }
        while window.oldest()?.is_some() {}
        self.cpu += cpu_time() - before;
        Ok(samples)
    }

    /// Has the other process carry out `order` while this one does `part`.
    fn together<T>(
        &mut self,
        order: &Order,
        part: impl FnOnce(&Wires) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        self.line.say(order)?;
        let before = cpu_time();
        let ours = part(self);
        self.cpu += cpu_time() - before;
        if let Err(BenchError::Stalled) = ours {
            // It may be waiting for us just as well.
            return ours;
        }
        match self.line.hear()? {
            Outcome::Failed(why) => Err(BenchError::PeerFailed(why)),
            Outcome::Done { cpu } => {
                self.cpu += cpu;
                ours
            }
        }
    }

    fn stream(&self, path: Path) -> Result<Stream<'_, TcpStream>, BenchError> {
        Stream::new(&self.tcp, (path == Path::TcpSpinning).then_some(self.spin))
    }
}

impl Line {
    fn new(stream: TcpStream) -> Result<Line, BenchError> {
        let reader = stream
            .try_clone()
            .map_err(|cause| BenchError::os("use a connection to another node", cause))?;
        Ok(Line { stream, reader: BufReader::new(reader) })
    }

    pub(crate) fn say(&mut self, message: &impl Serialize) -> Result<(), BenchError> {
        let mut text = serde_json::to_vec(message)
            .map_err(|cause| BenchError::OutOfStep(cause.to_string()))?;
        text.push(b'\n');
        self.stream.write_all(&text).map_err(|_| BenchError::PeerLost)
    }

    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> Result<T, BenchError> {
        let mut text = String::new();
        match self.reader.read_line(&mut text) {
            Ok(0) => return Err(BenchError::PeerLost),
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => {
                return Err(BenchError::PeerLost);
            }
            Err(cause) => return Err(BenchError::os("hear the other node", cause)),
            Ok(_) => {}
        }
        serde_json::from_str(&text).map_err(|cause| BenchError::OutOfStep(cause.to_string()))
    }
}
