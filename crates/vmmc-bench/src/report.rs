//! The result: rows, in the form that is printed as JSON.

use serde::Serialize;

use crate::machine::Machine;
use crate::options::Bench;

/// What a run has found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which measurement.
    pub bench: Bench,
    /// Where.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
    /// What a reader must know about this run (one core only, a program that is not installed).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Report {
    /// The report as one JSON object, on several lines.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has only strings as keys")
    }
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Nanoseconds: less is better.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// Microseconds: less is better.
    #[serde(rename = "us")]
    Microseconds,
    /// 10⁹ bytes a second: more is better.
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    /// 1024 bytes of memory: less is better.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// 10⁶ operations a second: more is better.
    #[serde(rename = "M/s")]
    MillionsPerSecond,
}

impl Unit {
    /// The name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Nanoseconds => "ns",
            Unit::Microseconds => "us",
            Unit::GigabytesPerSecond => "GB/s",
            Unit::Kibibytes => "KiB",
            Unit::MillionsPerSecond => "M/s",
        }
    }
}

/// One path at one size.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The way of the bytes, see [`crate::Path`]; also `ucx-posix`, `eventfd`, `futex`, `lifted` and the like.
    pub path: String,
    /// Payload in bytes; `idle`: connections; `scale`: a page, or processes.
    pub size: usize,
    /// Which part of the whole, where a measurement has parts (`notify`, `setup`, `sockets`, `connections`, `loans`, `idle`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<&'static str>,
    /// Unit of the three figures.
    pub unit: Unit,
    /// Median over the rounds of each round's median.
    pub p50: f64,
    /// What 99 % of all samples are at least as good as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// What 99.9 % of all samples are at least as good as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999: Option<f64>,
    /// Processor time of both processes for one operation, in microseconds; `idle`: of all connections in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<f64>,
    /// Bandwidths over memory: the rate while not waiting for the other process, in GB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copying: Option<f64>,
    /// Setup: the first operation of the run, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<f64>,
    /// Setup: the thousandth, while all before it are still alive, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thousandth: Option<f64>,
    /// How many samples p99 and p999 stand on.
    pub samples: u64,
    /// Median of the cache line round trip between the two cores while this row was measured, in
    /// microseconds: on virtual machines it drifts, and latencies with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_us: Option<f64>,
}

impl Row {
    /// A row with its three figures and nothing else.
    pub(crate) fn new(path: impl Into<String>, size: usize, unit: Unit, p50: f64) -> Row {
        Row {
            path: path.into(),
            size,
            part: None,
            unit,
            p50,
            p99: None,
            p999: None,
            cpu_us: None,
            copying: None,
            first: None,
            thousandth: None,
            samples: 0,
            line_us: None,
        }
    }

    pub(crate) fn tails(self, p99: f64, p999: f64, samples: u64) -> Row {
        Row { p99: Some(p99), p999: Some(p999), samples, ..self }
    }

    pub(crate) fn part(self, part: &'static str) -> Row {
        Row { part: Some(part), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_written_with_the_names_its_readers_expect() {
        let row = Row::new("vmmc", 8, Unit::GigabytesPerSecond, 1.5).tails(1.25, 1.0, 7);
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"path": "vmmc", "size": 8, "unit": "GB/s", "p50": 1.5, "p99": 1.25, "p999": 1.0, "samples": 7})
        );
        assert_eq!(serde_json::to_value(Bench::SendLatency).unwrap(), "send-latency");
        assert_eq!(serde_json::to_value(Unit::Microseconds).unwrap(), "us");
    }
}
