//! libfabric's own ping-pong over shared memory (`fi_pingpong -p shm`, Debian package libfabric-bin), where it is installed.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::machine::{Machine, pin};
use crate::others::can_be_started;
use crate::ucx::{Ended, free_port};

pub(crate) const MISSING: &str = "fi_pingpong is not installed (Debian package libfabric-bin)";

/// Whether `fi_pingpong` can be started.
pub(crate) fn installed() -> bool {
    can_be_started("fi_pingpong")
}

/// One way of `size` bytes, in microseconds: the mean of a run.
pub(crate) fn latency(machine: &Machine, size: usize, count: u64) -> Result<f64, BenchError> {
    measure(machine, size, count, 6)
}

/// Messages of `size` bytes there and back, in GB/s.
pub(crate) fn bandwidth(machine: &Machine, size: usize, count: u64) -> Result<f64, BenchError> {
    Ok(measure(machine, size, count, 5)? / 1000.0)
}

/// Runs it; what stands in the given column of its final line, which is
/// `bytes #sent #ack total time MB/sec usec/xfer Mxfers/sec`.
fn measure(machine: &Machine, size: usize, count: u64, column: usize) -> Result<f64, BenchError> {
    let port = free_port()?.to_string();
    let (size, count) = (size.to_string(), count.to_string());
    let test = ["-p", "shm", "-e", "rdm", "-I", &count, "-S", &size];
    let mut server = Ended(start(machine.pinned[1], &[&test[..], &["-B", &port]].concat())?);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let client = [&test[..], &["-P", &port, "127.0.0.1"]].concat();
        let started = start(machine.pinned[0], &client);
        pin(machine.pinned[0])?;
        let output = started?.wait_with_output().map_err(|cause| failed(cause.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(figure) = output.status.success().then(|| figure_in(&text, column)).flatten() {
            return Ok(figure);
        }
        // The server says nothing when it listens, and the client that was too early fails.
        let gone = server.0.try_wait().ok().flatten().is_some();
        if gone || Instant::now() > deadline {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(failed(error.lines().last().unwrap_or("it printed nothing").to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// On a core: the program has no option for it, but inherits it from this thread.
fn start(core: usize, arguments: &[&str]) -> Result<std::process::Child, BenchError> {
    pin(core)?;
    Command::new("fi_pingpong")
        .args(arguments)
        .env("VMMC_DISABLE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| failed(cause.to_string()))
}

fn figure_in(text: &str, column: usize) -> Option<f64> {
    text.lines().last()?.split_whitespace().nth(column)?.parse().ok()
}

fn failed(cause: String) -> BenchError {
    BenchError::Program { program: "fi_pingpong", cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_figures_are_found() {
        let text = "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec
64      20k     =20k     2.4m        0.02s    117.97       0.54       1.84
";
        assert_eq!((figure_in(text, 5), figure_in(text, 6)), (Some(117.97), Some(0.54)));
        assert_eq!(figure_in("", 5), None);
    }
}
