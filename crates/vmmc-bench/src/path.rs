//! The ways bytes can go, named as in the output.

use serde::{Deserialize, Serialize};

/// A way from process to process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// An import and an export of the `vmmc` library.
    Vmmc,
    /// The same, waiting for notifications as programs do.
    VmmcWaiting,
    /// The same by asynchronous operations, many under way together.
    VmmcAsync,
    /// A bare shared mapping and atomic words: the best that can be written by hand.
    SharedMemory,
    /// Kernel TCP over loopback, waiting asleep.
    TcpBlocking,
    /// Kernel TCP over loopback, non-blocking and polled without pause.
    TcpSpinning,
    /// An AF_UNIX stream, waiting asleep.
    UnixBlocking,
    /// An AF_UNIX stream, non-blocking and polled without pause.
    UnixSpinning,
    /// `ptr::copy_nonoverlapping` written by hand. In the latencies, within one process; in the
    /// bandwidths, between the same source and the same shared pages as [`Path::Vmmc`].
    Memcpy,
    /// One cache line to the other core and back.
    Line,
}

impl Path {
    /// Those compared in the send and fetch measurements, in the order of the output.
    pub(crate) const COMPARED: [Path; 7] = [
        Path::Vmmc,
        Path::SharedMemory,
        Path::TcpBlocking,
        Path::TcpSpinning,
        Path::UnixBlocking,
        Path::UnixSpinning,
        Path::Memcpy,
    ];

    /// The name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Path::Vmmc => "vmmc",
            Path::VmmcWaiting => "vmmc-waiting",
            Path::VmmcAsync => "vmmc-async",
            Path::SharedMemory => "shared-memory",
            Path::TcpBlocking => "tcp-blocking",
            Path::TcpSpinning => "tcp-spinning",
            Path::UnixBlocking => "unix-blocking",
            Path::UnixSpinning => "unix-spinning",
            Path::Memcpy => "memcpy",
            Path::Line => "line",
        }
    }

    /// Whether no system call is made on the way, so that single trips are too short to time one by one.
    pub(crate) fn in_memory(self) -> bool {
        matches!(self, Path::Vmmc | Path::SharedMemory | Path::Memcpy | Path::Line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_is_serialised() {
        for path in
            Path::COMPARED.into_iter().chain([Path::Line, Path::VmmcWaiting, Path::VmmcAsync])
        {
            assert_eq!(serde_json::to_value(path).unwrap(), path.name());
        }
    }
}
