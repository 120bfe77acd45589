//! What to measure, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BenchError;

/// The measurements, named as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bench {
    /// One way of a send, half a round trip (the paper's figure 5).
    SendLatency,
    /// A stream of sends of one size (figure 6).
    SendBandwidth,
    /// One fetch of what the owner has just written (figure 7).
    FetchLatency,
    /// A stream of fetches of one size (figure 8).
    FetchBandwidth,
    /// Asynchronous sends a second from one sender.
    SendRate,
    /// The parts of a notification (figure 9).
    Notify,
    /// Streams with and without redirection (figure 3).
    Redirection,
    /// Export, import, unimport, unexport (section 5.1).
    Setup,
    /// The node service under many processes and imports.
    Scale,
    /// Lookups in the translation table (table 2, section 5.2).
    Utlb,
    /// A program that knows only `std::net`, plain and under `vmmc run`.
    Sockets,
    /// Short connections of such programs, plain and under `vmmc run`.
    Connections,
    /// Messages that are produced and consumed in place, plain and under `vmmc run`.
    Loans,
    /// Idle connections of such programs, plain and under `vmmc run`.
    Idle,
    /// Streams to another node and kernel TCP over the same wire: alone in turns, then at the same time.
    Congestion,
}

impl Bench {
    /// The sizes measured unless told otherwise.
    pub fn default_sizes(self) -> &'static [usize] {
        match self {
            Bench::SendLatency
            | Bench::SendBandwidth
            | Bench::FetchLatency
            | Bench::FetchBandwidth => &SIZES,
            Bench::SendRate => &[8, 64],
            Bench::Notify => &[8],
            Bench::Redirection => &[65536, LARGEST],
            Bench::Scale => &[4096],
            Bench::Setup => &[4096, 16384, 65536, 262_144, 1_048_576],
            Bench::Utlb => &[4096, 16384, 32768, 49152, 65536],
            Bench::Sockets => &[8, 64, 1024, 16384, 65536],
            Bench::Connections => &[64, 1024, 16384],
            Bench::Loans => &[64, 65536, LARGEST],
            Bench::Idle => &[],
            Bench::Congestion => &[LARGEST],
        }
    }

    /// The time spent measuring unless told otherwise, in seconds.
    pub fn default_seconds(self) -> f64 {
        match self {
            Bench::Notify => 12.0,
            Bench::Setup | Bench::Utlb | Bench::SendRate | Bench::Redirection | Bench::Scale => {
                10.0
            }
            _ => 30.0,
        }
    }

    /// How often the paths take turns unless told otherwise. Short turns keep what is compared close together in
    /// time: the distance of virtual cores changes within seconds.
    pub fn default_rounds(self) -> usize {
        match self {
            Bench::Idle | Bench::Congestion => 3,
            Bench::Redirection => 9,
            Bench::SendRate
            | Bench::Notify
            | Bench::Setup
            | Bench::Utlb
            | Bench::Sockets
            | Bench::Loans
            | Bench::Scale => 5,
            _ => 15,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Bench::SendLatency => "send-latency",
            Bench::SendBandwidth => "send-bandwidth",
            Bench::FetchLatency => "fetch-latency",
            Bench::FetchBandwidth => "fetch-bandwidth",
            Bench::SendRate => "send-rate",
            Bench::Notify => "notify",
            Bench::Redirection => "redirection",
            Bench::Scale => "scale",
            Bench::Setup => "setup",
            Bench::Utlb => "utlb",
            Bench::Sockets => "sockets",
            Bench::Connections => "connections",
            Bench::Loans => "loans",
            Bench::Idle => "idle",
            Bench::Congestion => "congestion",
        }
    }
}

/// The sizes of the paper's figures 5 to 8.
const SIZES: [usize; 12] = [4, 8, 16, 32, 64, 256, 1024, 4096, 16384, 65536, 262_144, LARGEST];

/// The largest payload, in bytes.
pub(crate) const LARGEST: usize = 1 << 20;

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Payload sizes in bytes, 4 to 1 MiB; empty for [`Bench::default_sizes`].
    pub sizes: Vec<usize>,
    /// Time spent measuring, in seconds, divided evenly among sizes, rounds and paths; `None` for
    /// [`Bench::default_seconds`]. Starting, warming up and comparing programs come on top.
    pub seconds: Option<f64>,
    /// How often the paths take turns, at least once; `None` for [`Bench::default_rounds`]. The median over the
    /// rounds is reported.
    pub rounds: Option<usize>,
    /// How many connections lie idle in [`Bench::Idle`], at least one.
    pub connections: usize,
    /// `scale`: how many processes are at the service, at least 2.
    pub processes: usize,
    /// `scale`: how many imports these processes have together.
    pub imports: usize,
    /// Whether to show a progress bar on standard error (only if that is a terminal).
    pub progress: bool,
    /// How to start the second process.
    pub peer: PeerProgram,
    /// The `vmmc` program, for measurements under `vmmc run`.
    pub vmmc: PathBuf,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sizes: Vec::new(),
            seconds: None,
            rounds: None,
            connections: 1000,
            processes: 100,
            imports: 10_000,
            progress: true,
            peer: PeerProgram::default(),
            vmmc: this_program(),
        }
    }
}

impl Options {
    /// The sizes to measure, checked.
    pub(crate) fn sizes_for(&self, bench: Bench) -> Result<Vec<usize>, BenchError> {
        let given = if self.sizes.is_empty() { bench.default_sizes() } else { &self.sizes };
        match given.iter().find(|size| !(4..=LARGEST).contains(size)) {
            Some(size) => Err(BenchError::Size(size.to_string())),
            None => Ok(given.to_vec()),
        }
    }

    /// How many rounds to make.
    pub(crate) fn rounds_of(&self, bench: Bench) -> usize {
        self.rounds.unwrap_or(bench.default_rounds()).max(1)
    }

    /// The time for one path in one round, when there are so many paths and sizes.
    pub(crate) fn slice(
        &self,
        bench: Bench,
        paths_and_sizes: usize,
    ) -> Result<Duration, BenchError> {
        let seconds = self.seconds.unwrap_or(bench.default_seconds());
        if !(seconds > 0.0 && seconds <= 3600.0) {
            return Err(BenchError::Seconds(seconds));
        }
        let slices = (paths_and_sizes * self.rounds_of(bench)).max(1);
        Ok(Duration::from_secs_f64(seconds / slices as f64))
    }
}

/// The program that runs the other processes of a measurement: started with these arguments, followed by `--peer` and
/// a role, it must call [`crate::serve_peer`] with that role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerProgram {
    /// Program file.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Default for PeerProgram {
    /// This program again, as `vmmc bench --peer ROLE`.
    fn default() -> PeerProgram {
        PeerProgram { program: this_program(), arguments: vec!["bench".into()] }
    }
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("vmmc"))
}

/// Reads a size such as `64`, `4K`, `1M` (powers of 1024).
///
/// # Errors
/// [`BenchError::Size`] if it is no number of 4 to 1,048,576 bytes.
pub fn parse_size(text: &str) -> Result<usize, BenchError> {
    let wrong = || BenchError::Size(text.to_owned());
    let (digits, unit) = match text.trim().to_ascii_uppercase() {
        t if t.ends_with('K') => (t[..t.len() - 1].to_owned(), 1024),
        t if t.ends_with('M') => (t[..t.len() - 1].to_owned(), 1024 * 1024),
        t => (t, 1),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)?;
    if (4..=LARGEST).contains(&bytes) { Ok(bytes) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("4").unwrap(), 4);
        assert_eq!(parse_size("64k").unwrap(), 65536);
        assert_eq!(parse_size("1M").unwrap(), LARGEST);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for text in
            ["", "0", "3", "2M", "-8", "8B", "K", "99999999999999999999", "18014398509481984K"]
        {
            assert!(matches!(parse_size(text), Err(BenchError::Size(_))), "{text}");
        }
    }

    #[test]
    fn sizes_given_in_the_options_are_checked() {
        let options = Options { sizes: vec![8, LARGEST + 1], ..Options::default() };
        assert!(matches!(options.sizes_for(Bench::SendLatency), Err(BenchError::Size(_))));
        let usual = Options::default().sizes_for(Bench::SendLatency).unwrap();
        assert_eq!((usual[0], usual.len(), usual[11]), (4, 12, LARGEST));
    }

    #[test]
    fn time_is_divided_among_all_slices() {
        let options = Options { seconds: Some(10.0), rounds: Some(5), ..Options::default() };
        let slice = options.slice(Bench::SendLatency, 20).unwrap();
        assert_eq!(slice, Duration::from_millis(100));
        for seconds in [0.0, -1.0, f64::NAN, 1e9] {
            let options = Options { seconds: Some(seconds), ..Options::default() };
            let slice = options.slice(Bench::SendLatency, 1);
            assert!(matches!(slice, Err(BenchError::Seconds(_))), "{seconds}");
        }
    }
}
