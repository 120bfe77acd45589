//! From options to a report.

use std::time::Duration;

use crate::clock::Clock;
use crate::links::Peer;
use crate::machine::Machine;
use crate::options::{Bench, LARGEST, Options};
use crate::others::Others;
use crate::path::Path;
use crate::progress::Progress;
use crate::report::{Report, Row, Unit};
use crate::rounds::{Plan, Round, Series, in_turns};
use crate::statistics::{Samples, median};
use crate::{
    BenchError, bandwidth, idle, latency, notify, redirection, scale, send_rate, setup, sockets,
    utlb,
};

/// Runs one measurement; takes [`Options::seconds`] and a few more. Starts other processes, which end with it.
///
/// The calling thread is held to the first core of the measurement while it runs, and thereafter.
///
/// # Errors
/// See [`BenchError`]; among others when VMMC's node service can be neither reached nor started.
pub fn run(bench: Bench, options: &Options) -> Result<Report, BenchError> {
    let machine = Machine::look()?;
    let mut notes = Vec::new();
    if machine.one_core() {
        notes.push("only one core may be used: both processes share it, and whatever spins gives way instead".to_owned());
    }
    let rows = match bench {
        Bench::SendLatency => latencies(bench, options, &machine, 2.0, latency::send, &mut notes)?,
        Bench::FetchLatency => {
            latencies(bench, options, &machine, 1.0, latency::fetch, &mut notes)?
        }
        Bench::SendBandwidth => bandwidths(bench, options, &machine, bandwidth::send, &mut notes)?,
        Bench::FetchBandwidth => {
            bandwidths(bench, options, &machine, bandwidth::fetch, &mut notes)?
        }
        Bench::SendRate => send_rate::run(options, &machine, &mut notes)?,
        Bench::Notify => notify::run(options, &machine)?,
        Bench::Redirection => redirection::run(options, &machine)?,
        Bench::Scale => scale::run(options, &machine, &mut notes)?,
        Bench::Setup => setup::run(options, &machine)?,
        Bench::Utlb => utlb::run(options, &machine, &mut notes)?,
        Bench::Sockets | Bench::Connections | Bench::Loans => {
            sockets::run(bench, options, &machine)?
        }
        Bench::Idle => idle::run(options, &mut notes)?,
        Bench::Congestion => return Err(BenchError::OneNode(bench.name())),
    };
    Ok(Report { bench, machine, rows, notes })
}

type Measure = fn(&mut Peer, Path, usize, Duration) -> Result<Round, BenchError>;

/// `ways` is how many operations a sample consists of.
fn latencies(
    bench: Bench,
    options: &Options,
    machine: &Machine,
    ways: f64,
    measure: Measure,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let mut others = Others::of(bench, options, machine, notes)?;
    let series = all_paths(bench, options, machine, |peer, path, size, slice| {
        if path == Path::Vmmc {
            others.measure(size)?;
        }
        measure(peer, path, size, slice)
    })?;
    let clock = Clock::calibrated();
    let figure = |ticks: f64| clock.microseconds(ticks) / ways;
    let mut rows: Vec<Row> = series
        .iter()
        .map(|series| Row {
            cpu_us: Some(series.cpu_us),
            line_us: Some(series.line_us),
            ..Row::new(series.path.name(), series.size, Unit::Microseconds, figure(series.middle))
                .tails(
                    figure(series.tails.quantile(0.99)),
                    figure(series.tails.quantile(0.999)),
                    series.tails.len(),
                )
        })
        .collect();
    others.add_to(&mut rows)?;
    rows.extend(line(&series));
    Ok(rows)
}

fn bandwidths(
    bench: Bench,
    options: &Options,
    machine: &Machine,
    measure: Measure,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let mut others = Others::of(bench, options, machine, notes)?;
    let (mut unread, mut unread_all) = (Vec::new(), Samples::new());
    let series = all_paths(bench, options, machine, |peer, path, size, slice| {
        if path == Path::Vmmc {
            others.measure(size)?;
        }
        if path == Path::Vmmc && size == LARGEST && bench == Bench::SendBandwidth {
            let round = bandwidth::unread(peer, size, slice)?;
            unread.push(round.quantile(0.5));
            unread_all.merge(&round);
        }
        measure(peer, path, size, slice)
    })?;
    let clock = Clock::calibrated();
    let rate = |size: usize, ticks: f64| {
        (bandwidth::messages_in_turn(size) * size as u64) as f64 / clock.nanoseconds(ticks)
    };
    let mut rows: Vec<Row> = series
        .iter()
        .map(|series| {
            let figure = |ticks: f64| rate(series.size, ticks);
            let rate = figure(series.middle);
            Row {
                cpu_us: Some(series.cpu_us),
                copying: series.busy.map(|busy| rate / busy),
                line_us: Some(series.line_us),
                ..Row::new(series.path.name(), series.size, Unit::GigabytesPerSecond, rate).tails(
                    figure(series.tails.quantile(0.99)),
                    figure(series.tails.quantile(0.999)),
                    series.tails.len(),
                )
            }
        })
        .collect();
    if !unread.is_empty() {
        let figure = |ticks: f64| rate(LARGEST, ticks);
        let tail = |quantile: f64| figure(unread_all.quantile(quantile));
        let row =
            Row::new("vmmc-unread", LARGEST, Unit::GigabytesPerSecond, figure(median(&unread)));
        rows.push(row.tails(tail(0.99), tail(0.999), unread_all.len()));
    }
    others.add_to(&mut rows)?;
    rows.extend(line(&series));
    Ok(rows)
}

fn all_paths(
    bench: Bench,
    options: &Options,
    machine: &Machine,
    measure: impl FnMut(&mut Peer, Path, usize, Duration) -> Result<Round, BenchError>,
) -> Result<Vec<Series<Path>>, BenchError> {
    let sizes = options.sizes_for(bench)?;
    let parts = sizes.len() * Path::COMPARED.len();
    let plan = Plan { rounds: options.rounds_of(bench), slice: options.slice(bench, parts)? };
    let progress = Progress::new(options.progress, bench.name(), parts * plan.rounds);
    let mut peer = Peer::start(&options.peer, machine)?;
    in_turns(&mut peer, &sizes, &Path::COMPARED, plan, &progress, measure)
}

/// The line's round trips during the whole run.
fn line(series: &[Series<Path>]) -> Option<Row> {
    let clock = Clock::calibrated();
    let mut all = series.first()?.line.clone();
    // Every path of one size carries the same measurements of the line.
    for series in series.iter().filter(|series| series.path == Path::COMPARED[0]).skip(1) {
        all.merge(&series.line);
    }
    let figure = |quantile: f64| clock.microseconds(all.quantile(quantile));
    let row = Row::new(Path::Line.name(), 64, Unit::Microseconds, figure(0.5));
    Some(row.tails(figure(0.99), figure(0.999), all.len()))
}
