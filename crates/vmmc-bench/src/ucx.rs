//! UCX's own measurement over shared memory (`ucx_perftest`, Debian package ucx-utils), where it is installed.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::machine::Machine;
use crate::others::can_be_started;

pub(crate) const MISSING: &str = "ucx_perftest is not installed (Debian package ucx-utils)";

/// Whether `ucx_perftest` can be started.
pub(crate) fn installed() -> bool {
    can_be_started("ucx_perftest")
}

/// One-way latency of `size` bytes, tag matching over `posix`, in microseconds: the given percentile of
/// its single messages.
pub(crate) fn tag_latency(
    machine: &Machine,
    size: usize,
    iterations: u64,
    percentile: &str,
) -> Result<f64, BenchError> {
    let test = ["-t", "tag_lat", "-s", &size.to_string(), "-R", percentile];
    measure(machine, "posix,self", &test, iterations, 1)
}

/// A stream of tagged messages of `size` bytes, which the receiver copies out of the sender's memory (`cma`), in GB/s: the mean over all.
pub(crate) fn tag_bandwidth(machine: &Machine, size: usize, count: u64) -> Result<f64, BenchError> {
    let test = ["-t", "tag_bw", "-s", &size.to_string()];
    // Its megabytes are powers of two.
    Ok(measure(machine, "posix,cma,self", &test, count, 5)? * f64::from(1 << 20) / 1e9)
}

/// Puts of `size` bytes over `posix` a second, the mean over all.
pub(crate) fn put_rate(machine: &Machine, size: usize, count: u64) -> Result<f64, BenchError> {
    let test = ["-t", "ucp_put_bw", "-s", &size.to_string()];
    measure(machine, "posix,self", &test, count, 7)
}

/// Runs a test; what stands in the given column of its final line, which is
/// `iterations,percentile,average latency,overall,average bandwidth,overall,average rate,overall`.
fn measure(
    machine: &Machine,
    transports: &str,
    test: &[&str],
    iterations: u64,
    column: usize,
) -> Result<f64, BenchError> {
    let port = free_port()?.to_string();
    let mut server = Ended(start(machine.pinned[1], transports, &["-p", &port])?);
    let iterations = iterations.to_string();
    let client = ["127.0.0.1", "-p", &port, "-f", "-v", "-n", &iterations, "-w", "5000"];
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = start(machine.pinned[0], transports, &[&client, test].concat())?
            .wait_with_output()
            .map_err(|cause| failed(cause.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(figure) = output.status.success().then(|| figure_in(&text, column)).flatten() {
            return Ok(figure);
        }
        // The server says nothing when it listens, and refuses the client that was too early.
        let gone = server.0.try_wait().ok().flatten().is_some();
        if gone || Instant::now() > deadline {
            let error = String::from_utf8_lossy(&output.stderr);
            let last = error.lines().last().or(text.lines().last()).unwrap_or("it printed nothing");
            return Err(failed(last.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(core: usize, transports: &str, arguments: &[&str]) -> Result<Child, BenchError> {
    Command::new("ucx_perftest")
        .args(["-c", &core.to_string()])
        .args(arguments)
        .env("UCX_TLS", transports)
        .env("UCX_LOG_LEVEL", "error")
        .env("UCX_WARN_UNUSED_ENV_VARS", "n")
        .env("VMMC_DISABLE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| failed(cause.to_string()))
}

fn figure_in(text: &str, column: usize) -> Option<f64> {
    let line = text.lines().rev().find(|line| line.matches(',').count() >= 6)?;
    line.split(',').nth(column)?.trim().parse().ok()
}

pub(crate) fn free_port() -> Result<u16, BenchError> {
    let port = || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
    port().map_err(|cause: std::io::Error| BenchError::os("find a free port", cause))
}

fn failed(cause: String) -> BenchError {
    BenchError::Program { program: "ucx_perftest", cause }
}

/// A server that is ended when dropped; it ends by itself after a client has finished.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only for a child that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
