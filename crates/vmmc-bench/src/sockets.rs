//! `sockets`: a pair of programs that know only `std::net`, plain and under `vmmc run`.
//!
//! The two programs and every system call they make are the same in both cases; they are started
//! anew in each round, plain and lifted alternately. `ping-pong` is half a round trip, blocking (`tcp-blocking`, `lifted`)
//! and with non-blocking sockets polled without pause (`tcp-spinning`, `lifted-spinning`); `stream` is a
//! one-way stream of blocking writes. `connections` has the same two programs make short connections beside
//! theirs. p99 and p999 are medians over the rounds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, cpu_time};
use crate::exchange::{answer, ask};
use crate::flow::Flow;
use crate::loans::InPlace;
use crate::machine::{Machine, pin};
use crate::options::{Bench, Options, PeerProgram};
use crate::path::Path;
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::rounds::fill;
use crate::socket::{Stream, accept, connect, listen};
use crate::spin::Spin;
use crate::statistics::{Samples, median};
use crate::{BenchError, bandwidth, connections, loans};

const ASK: &str = "sockets-ask";
const ANSWER: &str = "sockets-answer";

/// What the asking program is told on standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    sizes: Vec<usize>,
    kinds: Vec<Kind>,
    /// Time for each kind at each size.
    slice: Duration,
    machine: [usize; 2],
    program: PeerProgram,
}

/// What the answering program is told on standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Contact {
    address: SocketAddr,
    core: usize,
    one_core: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Blocking,
    Spinning,
    Stream,
    /// Round trips in place.
    InPlace,
    /// A stream of messages whose bytes are all made and looked at.
    Messages,
    /// The same in place.
    MessagesInPlace,
    /// Short connections beside the one between the programs.
    Connection,
}

/// Every kind, by its number in an order.
const KINDS: [Kind; 7] = [
    Kind::Blocking,
    Kind::Spinning,
    Kind::Stream,
    Kind::InPlace,
    Kind::Messages,
    Kind::MessagesInPlace,
    Kind::Connection,
];

impl Kind {
    fn measured_by(bench: Bench) -> &'static [Kind] {
        match bench {
            Bench::Loans => &[Kind::Blocking, Kind::InPlace, Kind::Messages, Kind::MessagesInPlace],
            Bench::Connections => &[Kind::Connection],
            _ => &[Kind::Blocking, Kind::Spinning, Kind::Stream],
        }
    }

    fn streams(self) -> bool {
        matches!(self, Kind::Stream | Kind::Messages | Kind::MessagesInPlace)
    }

    /// How many operations a sample consists of.
    fn ways(self) -> f64 {
        match self {
            Kind::Blocking | Kind::Spinning | Kind::InPlace => 2.0,
            Kind::Stream | Kind::Messages | Kind::MessagesInPlace | Kind::Connection => 1.0,
        }
    }

    /// Names of its path, plain and lifted.
    fn paths(self) -> [&'static str; 2] {
        match self {
            Kind::Blocking | Kind::Stream | Kind::Messages | Kind::Connection => {
                ["tcp-blocking", "lifted"]
            }
            Kind::Spinning => ["tcp-spinning", "lifted-spinning"],
            Kind::InPlace | Kind::MessagesInPlace => ["tcp-in-place", "lifted-in-place"],
        }
    }
}

/// What the asking program prints: one figure of one round. Microseconds or GB/s.
#[derive(Debug, Serialize, Deserialize)]
struct Figure {
    kind: Kind,
    size: usize,
    p50: f64,
    p99: f64,
    p999: f64,
    samples: u64,
    cpu_us: f64,
}

/// Measures plain and lifted.
pub(crate) fn run(
    bench: Bench,
    options: &Options,
    machine: &Machine,
) -> Result<Vec<Row>, BenchError> {
    let (sizes, kinds) = (options.sizes_for(bench)?, Kind::measured_by(bench).to_vec());
    let slice = options.slice(bench, sizes.len() * kinds.len() * 2)?;
    let (machine, program) = (machine.pinned, options.peer.clone());
    let task = Task { sizes, kinds, slice, machine, program };
    let rounds = options.rounds_of(bench);
    let progress = Progress::new(options.progress, bench.name(), rounds * 2);
    let (mut plain, mut lifted) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut command = Command::new(&options.peer.program);
        plain.push(pair(command.env("VMMC_DISABLE", "1"), &task)?);
        progress.advance();
        let mut command = Command::new(&options.vmmc);
        lifted.push(pair(command.args(["run", "--"]).arg(&options.peer.program), &task)?);
        progress.advance();
    }
    let mut rows = Vec::new();
    for index in 0..plain[0].len() {
        let [plain_name, lifted_name] = plain[0][index].kind.paths();
        rows.push(row(&plain, index, plain_name));
        rows.push(row(&lifted, index, lifted_name));
    }
    Ok(rows)
}

fn row(rounds: &[Vec<Figure>], index: usize, name: &'static str) -> Row {
    let over_rounds = |figure: &dyn Fn(&Figure) -> f64| {
        median(&rounds.iter().filter_map(|round| round.get(index)).map(figure).collect::<Vec<_>>())
    };
    let first = &rounds[0][index];
    let (part, unit) = match first.kind {
        kind if kind.streams() => ("stream", Unit::GigabytesPerSecond),
        Kind::Connection => ("connection", Unit::Microseconds),
        _ => ("ping-pong", Unit::Microseconds),
    };
    let samples = rounds.iter().filter_map(|round| round.get(index)).map(|f| f.samples).sum();
    let row = Row::new(name, first.size, unit, over_rounds(&|f| f.p50))
        .tails(over_rounds(&|f| f.p99), over_rounds(&|f| f.p999), samples)
        .part(part);
    Row { cpu_us: Some(over_rounds(&|f| f.cpu_us)), ..row }
}

/// Runs the two programs once.
fn pair(command: &mut Command, task: &Task) -> Result<Vec<Figure>, BenchError> {
    let failed =
        |cause: String| BenchError::Program { program: "the pair of socket programs", cause };
    let child = start(command.args(&task.program.arguments).args(["--peer", ASK]), task)?;
    let output = child.wait_with_output().map_err(|cause| failed(cause.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}; its message is above", output.status)));
    }
    let figures: Vec<Figure> =
        serde_json::from_slice(&output.stdout).map_err(|cause| failed(cause.to_string()))?;
    if figures.len() == task.sizes.len() * task.kinds.len() {
        Ok(figures)
    } else {
        Err(failed(format!("{} figures", figures.len())))
    }
}

/// Starts a program with `order` on its standard input.
fn start(command: &mut Command, order: &impl Serialize) -> Result<Child, BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let order =
        serde_json::to_vec(order).map_err(|cause| BenchError::OutOfStep(cause.to_string()))?;
    let mut start = || {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(&order)?;
        }
        Ok(child)
    };
    start().map_err(|cause| BenchError::Start { program, cause })
}

/// The programs themselves.
pub(crate) fn serve(role: &str) -> Result<(), BenchError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|cause| BenchError::os("tie a process's life to its parent's", cause))?;
    let mut order = Vec::new();
    std::io::stdin()
        .read_to_end(&mut order)
        .map_err(|cause| BenchError::os("read an order", cause))?;
    let wrong = |cause: serde_json::Error| BenchError::OutOfStep(cause.to_string());
    match role {
        ASK => {
            let figures = ask_all(&serde_json::from_slice(&order).map_err(wrong)?)?;
            println!("{}", serde_json::to_string(&figures).map_err(wrong)?);
            Ok(())
        }
        ANSWER => answer_all(&serde_json::from_slice(&order).map_err(wrong)?),
        _ => Err(BenchError::OutOfStep(format!("{role} is no role"))),
    }
}

fn ask_all(task: &Task) -> Result<Vec<Figure>, BenchError> {
    let (listener, address) = listen()?;
    let one_core = task.machine[0] == task.machine[1];
    let contact = Contact { address, core: task.machine[1], one_core };
    let mut command = Command::new(&task.program.program);
    let mut child =
        start(command.args(&task.program.arguments).args(["--peer", ANSWER]), &contact)?;
    let socket = accept_from(&listener, &mut child)?;
    let mut asking = Asking { socket, spin: Spin::new(one_core), numbers: 1 };
    pin(task.machine[0])?;
    let mut figures = Vec::new();
    for &size in &task.sizes {
        for &kind in &task.kinds {
            figures.push(asking.figure(kind, size, task.slice)?);
        }
    }
    asking.announce(None, 0, 0, 0)?;
    match child.wait() {
        Ok(status) if status.success() => Ok(figures),
        Ok(status) => Err(BenchError::PeerFailed(status.to_string())),
        Err(cause) => Err(BenchError::os("wait for the answering program", cause)),
    }
}

/// Accepts the child's connection, or notices that it will not come.
fn accept_from(listener: &TcpListener, child: &mut Child) -> Result<TcpStream, BenchError> {
    listener
        .set_nonblocking(true)
        .map_err(|cause| BenchError::os("set a socket's way of waiting", cause))?;
    loop {
        match accept(listener) {
            Err(BenchError::Os { cause, .. }) if cause.kind() == ErrorKind::WouldBlock => {}
            accepted => return accepted,
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(BenchError::PeerFailed(status.to_string()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The asking end of the connection.
#[derive(Debug)]
struct Asking {
    socket: TcpStream,
    spin: Spin,
    numbers: u64,
}

impl Asking {
    /// One kind at one size: two short runs to warm up and to see how many operations fill the slice, then the measured one.
    fn figure(&mut self, kind: Kind, size: usize, slice: Duration) -> Result<Figure, BenchError> {
        let clock = Clock::calibrated();
        let unit = if kind.streams() { bandwidth::messages_in_turn(size) } else { 1 };
        let mut count = 8;
        for share in [16, 1] {
            let from = clock.now();
            self.operations(kind, size, count * unit)?;
            count = fill(slice / share, count, clock.now() - from).max(4);
        }
        let (samples, cpu) = self.operations(kind, size, count * unit)?;
        let figure = |quantile: f64| match kind.streams() {
            true => (unit * size as u64) as f64 / clock.nanoseconds(samples.quantile(quantile)),
            false => clock.microseconds(samples.quantile(quantile)) / kind.ways(),
        };
        Ok(Figure {
            kind,
            size,
            p50: figure(0.5),
            p99: figure(0.99),
            p999: figure(0.999),
            samples: samples.len(),
            cpu_us: cpu as f64 / (count * unit) as f64 / 1000.0 / kind.ways(),
        })
    }

    fn operations(
        &mut self,
        kind: Kind,
        size: usize,
        count: u64,
    ) -> Result<(Samples, u64), BenchError> {
        let first = self.numbers;
        self.numbers += count + 1;
        self.announce(Some(kind), size, first, count)?;
        let before = cpu_time();
        let clock = Clock::calibrated();
        let mut samples = Samples::new();
        let spin = (kind == Kind::Spinning).then_some(self.spin);
        let mut stream = Stream::new(&self.socket, spin)?;
        match kind {
            Kind::Stream => samples = flow(size, first, count, self.spin).write(stream)?.turns,
            Kind::Messages => {
                samples = loans::write(flow(size, first, count, self.spin), stream)?.turns;
            }
            Kind::MessagesInPlace => {
                let flow = flow(size, first, count, self.spin);
                samples = InPlace::new(&self.socket).produce(flow)?.turns;
            }
            Kind::InPlace => {
                let mut stream = InPlace::new(&self.socket);
                ask(&mut stream, (size, size), first, (count, 1), clock, &mut samples)?;
            }
            Kind::Connection => samples = connections::ask(&self.socket, size, first, count)?,
            Kind::Blocking | Kind::Spinning => {
                ask(&mut stream, (size, size), first, (count, 1), clock, &mut samples)?;
            }
        }
        let cpu = cpu_time() - before;
        let mut theirs = [0; 8];
        Stream::new(&self.socket, None)?.read_exact(&mut theirs)?;
        Ok((samples, cpu + u64::from_ne_bytes(theirs)))
    }

    /// Tells the answering program what comes; none: that it may end.
    fn announce(
        &self,
        kind: Option<Kind>,
        size: usize,
        first: u64,
        count: u64,
    ) -> Result<(), BenchError> {
        let kind = KINDS.iter().position(|k| Some(*k) == kind).unwrap_or(KINDS.len());
        let words = [kind as u64, size as u64, first, count];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Stream::new(&self.socket, None)?.write_all(&bytes)
    }
}

fn flow(size: usize, first: u64, count: u64, spin: Spin) -> Flow {
    Flow { path: Path::TcpBlocking, size, first, count, spin }
}

fn answer_all(contact: &Contact) -> Result<(), BenchError> {
    let socket = connect(contact.address)?;
    pin(contact.core)?;
    let spin = Spin::new(contact.one_core);
    loop {
        let mut bytes = [0; 32];
        Stream::new(&socket, None)?.read_exact(&mut bytes)?;
        let mut words = [0u64; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        let [kind, size, first, count] = words;
        let Some(kind) = KINDS.get(kind as usize) else { return Ok(()) };
        let before = cpu_time();
        let spin_here = (*kind == Kind::Spinning).then_some(spin);
        let stream = Stream::new(&socket, spin_here)?;
        match kind {
            Kind::Stream => flow(size as usize, first, count, spin).read(stream).map(drop)?,
            Kind::Messages => loans::read(flow(size as usize, first, count, spin), stream)?,
            Kind::MessagesInPlace => {
                InPlace::new(&socket).consume(flow(size as usize, first, count, spin))?;
            }
            Kind::InPlace => {
                answer(InPlace::new(&socket), size as usize, size as usize, first, count)?;
            }
            Kind::Connection => connections::answer(&socket, size as usize, count)?,
            Kind::Blocking | Kind::Spinning => {
                answer(stream, size as usize, size as usize, first, count)?;
            }
        }
        let used = cpu_time() - before;
        Stream::new(&socket, None)?.write_all(&used.to_ne_bytes())?;
    }
}
