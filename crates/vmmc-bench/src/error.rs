//! Why a measurement could not be made.

use std::io;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum BenchError {
    /// the system refused to {what}: {cause}; `vmmc doctor` tells what this machine allows
    Os {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// VMMC could not {what}: {cause}
    Vmmc {
        /// What was tried.
        what: &'static str,
        /// The library's own message, which names the remedy.
        cause: String,
    },
    /// the second process could not be started ({program}): {cause}; run the measurement from an installed `vmmc`
    Start {
        /// The program that was to be started.
        program: String,
        /// What the system said.
        cause: io::Error,
    },
    /// the second process ended before the measurement did; its own message is above on standard error
    PeerLost,
    /// the second process reports: {0}
    PeerFailed(String),
    /// the other process said something else than was due ({0}); both must be the same version of `vmmc`
    OutOfStep(String),
    /// nothing arrived from the other process for ten seconds; if it was stopped, continue it and run again
    Stalled,
    /// payload {size} B over {path} arrived damaged: message {expected} was due
    Damaged {
        /// The path measured.
        path: String,
        /// Bytes of the payload.
        size: usize,
        /// Number of the message that was due.
        expected: u64,
    },
    /// size {0} is not one of 4 B to 1 MB; give sizes such as 8,4K,1M
    Size(String),
    /// {0} seconds is no time to measure in; give more than 0 and at most 3600
    Seconds(f64),
    /// {0} is measured between two nodes: run `vmmc bench --serve` on the other, and name it with --node
    OneNode(&'static str),
    /// {program} failed: {cause}
    Program {
        /// The program that was run beside VMMC.
        program: &'static str,
        /// Its last words.
        cause: String,
    },
}

impl BenchError {
    pub(crate) fn os(what: &'static str, cause: impl Into<io::Error>) -> BenchError {
        BenchError::Os { what, cause: cause.into() }
    }

    pub(crate) fn vmmc(what: &'static str, cause: impl std::fmt::Display) -> BenchError {
        BenchError::Vmmc { what, cause: cause.to_string() }
    }
}
