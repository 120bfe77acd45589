//! A ping-pong over iceoryx2, where `cargo xtask peers` has built it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::BenchError;
use crate::machine::Machine;
use crate::options::Options;

const PROGRAM: &str = "vmmc-bench-iceoryx2";

pub(crate) const MISSING: &str =
    "iceoryx2's ping-pong is not built (`cargo xtask peers` in the project's directory)";

/// The program beside `vmmc`, or the one that the shell would find.
pub(crate) fn program(options: &Options) -> Option<PathBuf> {
    let beside = options.vmmc.parent().map(|directory| directory.join(PROGRAM));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|directory| directory.join(PROGRAM));
    beside.into_iter().chain(in_path).find(|program| program.is_file())
}

/// One way of `size` bytes, in microseconds: the median of batches.
pub(crate) fn latency(
    machine: &Machine,
    options: &Options,
    size: usize,
    count: u64,
) -> Result<f64, BenchError> {
    let failed = |cause: String| BenchError::Program { program: PROGRAM, cause };
    let program = program(options).ok_or_else(|| failed(MISSING.to_owned()))?;
    let [first, second] = machine.pinned;
    let output = Command::new(program)
        .args([size.to_string(), count.to_string(), first.to_string(), second.to_string()])
        .env("VMMC_DISABLE", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| failed(cause.to_string()))?;
    let nanoseconds = String::from_utf8_lossy(&output.stdout).trim().parse::<f64>();
    match nanoseconds {
        Ok(nanoseconds) if output.status.success() => Ok(nanoseconds / 1000.0),
        _ => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
