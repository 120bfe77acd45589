//! Other libraries' own measurements, beside ours in the same run: UCX, libfabric, iceoryx2, each where it is installed.

use std::process::Stdio;

use crate::machine::Machine;
use crate::options::{Bench, LARGEST, Options};
use crate::report::{Row, Unit};
use crate::statistics::median;
use crate::{BenchError, iceoryx2, libfabric, ucx};

/// Messages of a latency.
const MESSAGES: u64 = 200_000;
/// Each program is started in at most so many rounds: to start takes longer than to measure.
const ROUNDS: usize = 5;

/// The size at which all are compared in latency.
const SMALL: usize = 64;

type Measure = fn(&Machine, &Options, usize) -> Result<f64, BenchError>;
type Percentile = fn(&Machine, usize, &str) -> Result<f64, BenchError>;

/// One program's figure at one size.
struct Other {
    path: &'static str,
    size: usize,
    unit: Unit,
    measure: Measure,
    /// A percentile of its single messages, if it tells them.
    percentile: Option<Percentile>,
    rounds: Vec<f64>,
}

/// Those that this run is compared with.
pub(crate) struct Others<'o> {
    machine: &'o Machine,
    options: &'o Options,
    all: Vec<Other>,
}

impl<'o> Others<'o> {
    /// Those that measure the same, at the sizes that are measured; a note for each that is not installed.
    pub(crate) fn of(
        bench: Bench,
        options: &'o Options,
        machine: &'o Machine,
        notes: &mut Vec<String>,
    ) -> Result<Self, BenchError> {
        let sizes = options.sizes_for(bench)?;
        let mut all = Vec::new();
        for (other, there, missing) in known(bench, options) {
            if !sizes.contains(&other.size) {
            } else if there {
                all.push(other);
            } else {
                let note = format!("{missing}: no row {}", other.path);
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
        Ok(Self { machine, options, all })
    }

    /// One round at this size.
    pub(crate) fn measure(&mut self, size: usize) -> Result<(), BenchError> {
        let due = |other: &&mut Other| other.size == size && other.rounds.len() < ROUNDS;
        for other in self.all.iter_mut().filter(due) {
            other.rounds.push((other.measure)(self.machine, self.options, size)?);
        }
        Ok(())
    }

    /// Puts the rows behind ours of the same size.
    pub(crate) fn add_to(self, rows: &mut Vec<Row>) -> Result<(), BenchError> {
        for other in self.all.into_iter().filter(|other| !other.rounds.is_empty()) {
            let size = other.size;
            let behind = rows.iter().rposition(|row| row.size == size).map_or(0, |at| at + 1);
            let middle = median(&other.rounds);
            let mut row = Row::new(other.path, size, other.unit, middle);
            if let Some(percentile) = other.percentile {
                // Each percentile is a run of its own, so the machine may have been better for a higher one.
                let p99 = percentile(self.machine, size, "99")?.max(middle);
                let p999 = percentile(self.machine, size, "99.9")?.max(p99);
                row = row.tails(p99, p999, MESSAGES);
            }
            rows.insert(behind, row);
        }
        Ok(())
    }
}

/// All that measure the same, whether they are there, and what to say if not.
fn known(bench: Bench, options: &Options) -> Vec<(Other, bool, &'static str)> {
    let other = |path, size, unit, measure, percentile| Other {
        path,
        size,
        unit,
        measure,
        percentile,
        rounds: Vec::new(),
    };
    match bench {
        Bench::SendLatency => {
            let unit = Unit::Microseconds;
            let ucx = |size| {
                let middle: Measure =
                    |machine, _, size| ucx::tag_latency(machine, size, MESSAGES, "50");
                let tail: Percentile =
                    |machine, size, of| ucx::tag_latency(machine, size, MESSAGES, of);
                let other = other("ucx-posix", size, unit, middle, Some(tail));
                (other, ucx::installed(), ucx::MISSING)
            };
            let libfabric: Measure = |machine, _, size| libfabric::latency(machine, size, MESSAGES);
            let iceoryx2: Measure =
                |machine, options, size| iceoryx2::latency(machine, options, size, MESSAGES);
            let libfabric = other("libfabric-shm", SMALL, unit, libfabric, None);
            let built = iceoryx2::program(options).is_some();
            vec![
                ucx(8),
                ucx(SMALL),
                (libfabric, libfabric::installed(), libfabric::MISSING),
                (other("iceoryx2", SMALL, unit, iceoryx2, None), built, iceoryx2::MISSING),
            ]
        }
        Bench::SendBandwidth => {
            let unit = Unit::GigabytesPerSecond;
            let ucx: Measure = |machine, _, size| ucx::tag_bandwidth(machine, size, 1000);
            let libfabric: Measure = |machine, _, size| libfabric::bandwidth(machine, size, 1000);
            let libfabric = other("libfabric-shm", LARGEST, unit, libfabric, None);
            vec![
                (other("ucx-cma", LARGEST, unit, ucx, None), ucx::installed(), ucx::MISSING),
                (libfabric, libfabric::installed(), libfabric::MISSING),
            ]
        }
        _ => Vec::new(),
    }
}

/// Whether a program can be started at all.
pub(crate) fn can_be_started(program: &str) -> bool {
    let mut command = std::process::Command::new(program);
    command.arg("-h").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}
