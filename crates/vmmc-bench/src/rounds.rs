//! Paths take turns: every size is measured in several rounds, each round on every path, one after the other.
//!
//! So a drift of the machine touches all of them alike. The distance of the two cores is measured
//! again in every round.

use std::time::Duration;

use crate::BenchError;
use crate::clock::Clock;
use crate::exchange::{OverMemory, ask};
use crate::links::Peer;
use crate::path::Path;
use crate::peer::Order;
use crate::progress::Progress;
use crate::statistics::{Samples, median};

/// What one path gave in one round.
#[derive(Debug)]
pub(crate) struct Round {
    /// Samples whose median counts, in ticks.
    pub(crate) middle: Samples,
    /// Samples for the tails, if they are others.
    pub(crate) tails: Option<Samples>,
    /// Processor time of both processes for one operation, in microseconds.
    pub(crate) cpu_us: f64,
    /// Part of the time in which this process did not wait for the other.
    pub(crate) busy: Option<f64>,
}

/// What one path gave at one size in all rounds.
#[derive(Debug)]
pub(crate) struct Series<P> {
    pub(crate) path: P,
    pub(crate) size: usize,
    /// Median over the rounds of the rounds' medians, in ticks.
    pub(crate) middle: f64,
    pub(crate) tails: Samples,
    pub(crate) cpu_us: f64,
    pub(crate) busy: Option<f64>,
    /// Line round trip, in microseconds.
    pub(crate) line_us: f64,
    /// All single measurements of the line at this size, in ticks.
    pub(crate) line: Samples,
}

/// How long each part is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

/// Measures every path at every size; `measure` is given the path, the size and the time for it.
pub(crate) fn in_turns<P: Copy>(
    peer: &mut Peer,
    sizes: &[usize],
    paths: &[P],
    plan: Plan,
    progress: &Progress,
    mut measure: impl FnMut(&mut Peer, P, usize, Duration) -> Result<Round, BenchError>,
) -> Result<Vec<Series<P>>, BenchError> {
    let mut all = Vec::new();
    for &size in sizes {
        let mut rounds: Vec<Vec<Round>> = paths.iter().map(|_| Vec::new()).collect();
        let mut line = Samples::new();
        let mut lines = Vec::new();
        for _ in 0..plan.rounds {
            let round = line_round_trip(peer)?;
            lines.push(round.quantile(0.5));
            line.merge(&round);
            for (&path, rounds) in paths.iter().zip(&mut rounds) {
                rounds.push(measure(peer, path, size, plan.slice)?);
                progress.advance();
            }
        }
        let line_us = Clock::calibrated().microseconds(median(&lines));
        for (&path, rounds) in paths.iter().zip(rounds) {
            all.push(Series::of(path, size, &rounds, line_us, line.clone()));
        }
    }
    Ok(all)
}

impl<P> Series<P> {
    fn of(path: P, size: usize, rounds: &[Round], line_us: f64, line: Samples) -> Series<P> {
        let over_rounds = |figure: &dyn Fn(&Round) -> f64| {
            median(&rounds.iter().map(figure).collect::<Vec<f64>>())
        };
        let mut tails = Samples::new();
        for round in rounds {
            tails.merge(round.tails.as_ref().unwrap_or(&round.middle));
        }
        Series {
            path,
            size,
            middle: over_rounds(&|round| round.middle.quantile(0.5)),
            tails,
            cpu_us: over_rounds(&|round| round.cpu_us),
            busy: rounds
                .iter()
                .all(|round| round.busy.is_some())
                .then(|| over_rounds(&|round| round.busy.unwrap_or(1.0))),
            line_us,
            line,
        }
    }
}

/// Round trips of a line between the cores, by the hand-written path; samples are means of 50.
fn line_round_trip(peer: &mut Peer) -> Result<Samples, BenchError> {
    const TRIPS: u64 = 2000;
    let first = peer.numbers(TRIPS);
    let order = Order::Answer { path: Path::Line, size: 8, answer: 8, first, count: TRIPS };
    let mut samples = Samples::new();
    peer.together(&order, |links| {
        let (memory, spin) = (&links.shared_memory, links.spin);
        let mut exchange = OverMemory { memory, spin, path: Path::Line };
        ask(&mut exchange, (8, 8), first, (TRIPS, 50), Clock::calibrated(), &mut samples)
    })?;
    Ok(samples)
}

/// How many operations fill `slice`, when `count` of them have taken `ticks`; at least one.
pub(crate) fn fill(slice: Duration, count: u64, ticks: u64) -> u64 {
    let slice = Clock::calibrated().ticks(slice);
    (u128::from(slice) * u128::from(count) / u128::from(ticks.max(1))).clamp(1, 1 << 28) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(ticks: f64, cpu_us: f64, busy: Option<f64>) -> Round {
        let mut middle = Samples::new();
        (0..10).for_each(|_| middle.record(ticks));
        Round { middle, tails: None, cpu_us, busy }
    }

    #[test]
    fn a_series_is_the_median_of_its_rounds_and_has_the_tails_of_all() {
        let rounds = [round(10.0, 1.0, None), round(30.0, 3.0, None), round(11.0, 2.0, None)];
        let series = Series::of(Path::Vmmc, 8, &rounds, 0.2, Samples::new());
        assert!((series.middle - 11.0).abs() < 0.1);
        assert!((series.cpu_us - 2.0).abs() < 1e-9);
        assert_eq!(series.tails.len(), 30);
        assert!(series.tails.quantile(0.99) > 29.0);
        assert_eq!(series.busy, None);
    }

    #[test]
    fn a_slice_is_filled() {
        let clock = Clock::calibrated();
        let ticks = clock.ticks(Duration::from_millis(1));
        let count = fill(Duration::from_millis(10), 100, ticks);
        assert!((990..=1010).contains(&count), "{count}");
        assert_eq!(fill(Duration::ZERO, 1, 1), 1);
    }
}
