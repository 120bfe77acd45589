//! Streams between two nodes where the wire is the limit: alone in turns, for what loss costs, then VMMC and one TCP stream at a time, for who
//! gets how much of it.
//!
//! TCP runs with every congestion control that this kernel has of [`KINDS`]; each stream is a new connection. Its bytes are counted by the
//! receiver for as long as the measurement takes, those of VMMC by the sender as they are placed.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmmc::Transfer;

use crate::BenchError;
use crate::memory::SLOTS;
use crate::nodes::{Between, Wires};
use crate::options::{Bench, LARGEST, Options};
use crate::peer::Order;
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::socket;
use crate::statistics::median;

/// Kernel congestion controls: their kernel name, the row of the stream, and the part in which VMMC runs beside it.
const KINDS: [(&str, &str, &str); 2] =
    [("cubic", "tcp-cubic", "beside-cubic"), ("bbr", "tcp-bbr", "beside-bbr")];
const ALONE: &str = "alone";
/// Sends of VMMC on their way at a time.
const POSTED: usize = 3;

/// How many bytes of a TCP stream arrived in the time of a measurement, or why that is not known.
type Arrived = Result<u64, String>;

/// The receiver of a TCP stream: for how long it reads.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Swallow {
    milliseconds: u64,
}

impl Swallow {
    /// Reads from the next connection for the time of the measurement, and then hangs up.
    pub(crate) fn carry_out(self, listener: &TcpListener) -> Arrived {
        let swallow = || -> Result<u64, BenchError> {
            let mut stream = socket::accept(listener)?;
            let failed = |cause| BenchError::os("read from a socket", cause);
            let end = Instant::now() + Duration::from_millis(self.milliseconds);
            let (mut piece, mut arrived) = (vec![0; 256 << 10], 0);
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                stream.set_read_timeout(Some(left.max(TICK))).map_err(failed)?;
                match stream.read(&mut piece) {
                    Ok(0) => return Err(BenchError::PeerLost),
                    Ok(read) => arrived += read as u64,
                    Err(cause) if is_timeout(&cause) => {}
                    Err(cause) => return Err(failed(cause)),
                }
            }
            Ok(arrived)
        };
        swallow().map_err(|cause| cause.to_string())
    }
}

/// A timeout of zero would be none.
const TICK: Duration = Duration::from_millis(1);

fn is_timeout(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Measures all of it; the rows, and what has to be said about them.
pub(crate) fn run(
    wires: &mut Wires,
    between: &Between,
    options: &Options,
) -> Result<(Vec<Row>, Vec<String>), BenchError> {
    let kinds: Vec<_> = KINDS.into_iter().filter(|(kind, ..)| is_there(kind)).collect();
    let rounds = options.rounds_of(Bench::Congestion);
    let slice = options.slice(Bench::Congestion, 1 + 2 * kinds.len())?.max(10 * TICK);
    let progress = Progress::new(options.progress, "congestion", rounds * (1 + 2 * kinds.len()));
    let (mut alone, mut streams) = (Vec::new(), vec![Vec::new(); kinds.len()]);
    let mut shares: Vec<[Vec<f64>; 2]> = vec![Default::default(); kinds.len()];
    for _ in 0..rounds {
        alone.push(send_for(wires, slice)?);
        progress.advance();
        for ((kind, ..), stream) in kinds.iter().zip(&mut streams) {
            stream.push(tcp_beside(wires, between.address, kind, slice, |_| Ok(()))?.0);
            progress.advance();
        }
        for ((kind, ..), [ours, theirs]) in kinds.iter().zip(&mut shares) {
            let (tcp, vmmc) =
                tcp_beside(wires, between.address, kind, slice, |wires| send_for(wires, slice))?;
            ours.push(vmmc);
            theirs.push(tcp);
            progress.advance();
        }
    }
    let row = |path: &str, part, rates: &[f64]| {
        Row::new(path, LARGEST, Unit::GigabytesPerSecond, median(rates)).part(part)
    };
    let mut rows = vec![row("vmmc", ALONE, &alone)];
    rows.extend(kinds.iter().zip(&streams).map(|((_, path, _), rates)| row(path, ALONE, rates)));
    let mut notes = Vec::new();
    for ((kind, path, part), [ours, theirs]) in kinds.iter().zip(&shares) {
        let share: Vec<f64> =
            ours.iter().zip(theirs).map(|(our, their)| our / (our + their)).collect();
        notes.push(format!(
            "beside one TCP stream with {kind}, VMMC gets {:.0} %",
            100.0 * median(&share)
        ));
        rows.extend([row("vmmc", part, ours), row(path, part, theirs)]);
    }
    Ok((rows, notes))
}

/// Whether the kernel has a congestion control and lets us use it.
fn is_there(kind: &str) -> bool {
    let list = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
    list.is_ok_and(|list| list.split_whitespace().any(|there| there == kind))
}

/// One TCP stream for so long, and something else at the same time; the stream's rate in GB/s.
fn tcp_beside<T>(
    wires: &mut Wires,
    address: SocketAddr,
    kind: &str,
    time: Duration,
    beside: impl FnOnce(&mut Wires) -> Result<T, BenchError>,
) -> Result<(f64, T), BenchError> {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    wires.line.say(&Order::Swallow(Swallow { milliseconds }))?;
    let stream = socket::connect(address)?;
    rustix::net::sockopt::set_tcp_congestion(&stream, kind)
        .map_err(|cause| BenchError::os("choose a congestion control", cause))?;
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| pour(&stream));
        beside(wires)
    });
    let arrived = wires.line.hear::<Arrived>()?.map_err(BenchError::PeerFailed)?;
    Ok((arrived as f64 / time.as_secs_f64() / 1e9, beside?))
}

/// Writes until the other side hangs up.
fn pour(mut stream: &TcpStream) {
    let piece = vec![0x5a; 256 << 10];
    while stream.write_all(&piece).is_ok() {}
}

/// Sends of 1 MB for so long; GB/s.
fn send_for(wires: &mut Wires, time: Duration) -> Result<f64, BenchError> {
    let import = &wires.vmmc.import;
    let start = Instant::now();
    let mut posted: VecDeque<Transfer<Vec<u8>>> =
        (0..POSTED).map(|_| import.send_async(SLOTS, vec![0x5a; LARGEST])).collect();
    let mut placed = 0;
    while let Some(transfer) = posted.pop_front() {
        let Some(left) = time.checked_sub(start.elapsed()) else {
            transfer.cancel();
            transfer.wait();
            continue;
        };
        match transfer.wait_timeout(left) {
            Err(unfinished) => posted.push_front(unfinished),
            Ok(finished) => {
                finished.result.map_err(|cause| BenchError::vmmc("transfer", cause))?;
                placed += LARGEST;
                posted.push_back(import.send_async(SLOTS, finished.buffer));
            }
        }
    }
    Ok(placed as f64 / start.elapsed().as_secs_f64() / 1e9)
}
