//! Running `ip` and `tc`.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

/// Why a tool did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ToolError {
    /// {0} is not there: install the package iproute2
    Missing(&'static str),
    /// {tool} cannot be run ({cause}): check its permissions
    Unusable {
        /// The program.
        tool: &'static str,
        /// What the system said.
        cause: String,
    },
    /// `{command}` failed: {said}
    Failed {
        /// With its arguments.
        command: String,
        /// The first line on its standard error.
        said: String,
    },
}

/// Runs a tool with the words of `arguments`, which are separated by blanks; what it said.
pub(crate) fn run(tool: &'static str, arguments: &str) -> Result<String, ToolError> {
    converse(tool, arguments.split_whitespace(), "")
}

/// As [`run`], with one more argument that may have blanks.
pub(crate) fn run_with(tool: &'static str, arguments: &str, last: &str) -> Result<(), ToolError> {
    converse(tool, arguments.split_whitespace().chain([last]), "").map(drop)
}

/// Has `ip` do all lines in one namespace, or none after the first that fails.
pub(crate) fn batch(namespace: &str, lines: &str) -> Result<(), ToolError> {
    converse("ip", ["-n", namespace, "-batch", "-"], lines).map(drop)
}

fn converse(
    tool: &'static str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &str,
) -> Result<String, ToolError> {
    let mut command = Command::new(tool);
    // Tools of the system's administration are not on everybody's path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.args(arguments).env("PATH", path).env_remove("LD_PRELOAD");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let unusable = |cause: std::io::Error| ToolError::Unusable { tool, cause: cause.to_string() };
    let mut child = command.spawn().map_err(|cause| match cause.kind() {
        ErrorKind::NotFound => ToolError::Missing(tool),
        _ => unusable(cause),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(unusable)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> = std::iter::once(tool.into())
        .chain(command.get_args().map(OsStr::to_string_lossy))
        .collect();
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("no reason given").trim_start_matches("Error: ");
    Err(ToolError::Failed { command: words.join(" "), said: said.to_owned() })
}
