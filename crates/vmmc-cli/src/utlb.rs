//! `vmmc utlb`: recording what a program looks up in its translation table, and replaying it under other limits and policies.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Subcommand;
use vmmc::utlb::trace::{Trace, VARIABLE};
use vmmc::utlb::{Options, Policy, Replay, Replayed};

use crate::becoming::become_program;

/// The user-managed translation table: which pages programs look up, and what it costs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a program that uses the library, and write down what it looks up
    #[command(after_help = "\
The first process of the program writes to the file, others to the file's name with their process number behind it.

Example:
  vmmc utlb record -o fft.utlb -- ./fft && vmmc utlb replay fft.utlb --limit 4M --policy lru")]
    Record {
        /// Where to write the trace
        #[arg(short, long, value_name = "TRACE", default_value = "trace.utlb")]
        output: PathBuf,
        /// The program and its arguments
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "PROGRAM"
        )]
        command: Vec<OsString>,
    },
    /// Look up the same again, with real memory and pins: the rows of the paper's tables 3 and 4
    Replay {
        /// What `record` has written
        trace: PathBuf,
        /// Most bytes pinned, such as 4M (default: what the system lets this process pin)
        #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
        limit: Option<u64>,
        /// Which page goes first
        #[arg(long, default_value_t = Policy::Lru, value_name = "lru|mru|lfu|fifo|random")]
        policy: Policy,
        /// Entries of the network interface's cache
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
        ni_entries: u32,
        /// Print one JSON object on standard output
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: Args) -> ExitCode {
    let result = match args.action {
        Action::Record { output, command } => record(output, &command),
        Action::Replay { trace, limit, policy, ni_entries, json } => {
            // Without bounce buffers, which lookups of single pages never need: all of the limit is for the trace's pages.
            let options =
                Options::default().policy(policy).ni_entries(ni_entries as usize).bounce(0);
            let options = limit.into_iter().fold(options, |options, limit| options.limit(limit));
            replay(&trace, options).map(|(trace, found)| {
                let text = if json {
                    as_json(&trace, policy, &found)
                } else {
                    as_table(&trace, policy, &found)
                };
                print!("{text}");
            })
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain!("vmmc utlb: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A number of bytes, or of K, M or G (powers of 1024).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit = text.chars().last().and_then(|last| "KMG".find(last.to_ascii_uppercase()));
    let digits = if unit.is_some() { &text[..text.len() - 1] } else { text };
    let unit = unit.map_or(1, |unit| 1024u64.pow(unit as u32 + 1));
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| "give bytes, such as 65536, 64K or 4M".to_owned())
}

/// Replaces this process by the program; returns only if that fails.
fn record(output: PathBuf, command: &[OsString]) -> Result<(), String> {
    let output = std::path::absolute(&output).map_err(|cause| {
        format!("cannot find the current directory ({cause}): give a full path")
    })?;
    // The program creates it anew: it never writes into a file that is there.
    match std::fs::remove_file(&output) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!(
                "cannot replace {} ({cause}): give another name",
                output.display()
            ));
        }
        _ => {}
    }
    let [program, arguments @ ..] = command else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, output);
    if let (None, Ok(own)) = (std::env::var_os("VMMC_NODE_PROGRAM"), std::env::current_exe()) {
        command.env("VMMC_NODE_PROGRAM", own);
    }
    let cause = become_program(&mut command);
    Err(format!(
        "{}: cannot be executed: {cause}: check its name and PATH",
        program.to_string_lossy()
    ))
}

fn replay(path: &PathBuf, options: Options) -> Result<(Trace, Replayed), String> {
    let trace = Trace::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let found = Replay { options }.run(&trace).map_err(|error| error.to_string())?;
    Ok((trace, found))
}

fn as_table(trace: &Trace, policy: Policy, found: &Replayed) -> String {
    let megabytes = |bytes: u64| format!("{:.2} MB", bytes as f64 / 1e6);
    let percent = |rate: f64| format!("{:.2} %", 100.0 * rate);
    let micros = |nanoseconds: f64| format!("{:.3} µs", nanoseconds / 1000.0);
    let counters = &found.counters;
    let rows = [
        ("memory footprint", megabytes(found.footprint)),
        ("memory constraint", megabytes(found.limit)),
        ("host lookups", counters.lookups.to_string()),
        ("host lookup hit rate", percent(found.hit_rate)),
        ("host pin-page rate", percent(found.pin_rate)),
        ("host unpin-page rate", percent(found.unpin_rate)),
        ("avg lookup hit cost", micros(found.hit_ns)),
        ("avg lookup pages", format!("{:.2}", found.lookup_pages)),
        ("avg pin overhead", micros(found.pin_ns)),
        ("avg pages per pin", format!("{:.2}", found.pages_per_pin)),
        ("avg unpin overhead", micros(found.unpin_ns)),
        ("avg miss overhead", micros(found.miss_ns)),
        ("predicted miss overhead", micros(found.predicted_miss_ns)),
        ("avg host overhead", micros(found.host_ns)),
        ("predicted host overhead", micros(found.predicted_host_ns)),
        ("NI cache miss rate", percent(found.ni_miss_rate)),
        ("peak pinned", megabytes(counters.peak_pinned_bytes)),
    ];
    let mut text = format!("{} (process {}), policy {policy}\n", trace.program, trace.pid);
    for (name, value) in rows {
        let _ = writeln!(text, "{name:24} {value:>14}");
    }
    text
}

fn as_json(trace: &Trace, policy: Policy, found: &Replayed) -> String {
    let counters = &found.counters;
    let report = serde_json::json!({
        "program": trace.program,
        "pid": trace.pid,
        "policy": policy.name(),
        "memory_footprint": found.footprint,
        "memory_constraint": found.limit,
        "lookups": counters.lookups,
        "hits": counters.hits(),
        "check_misses": counters.check_misses,
        "ni_lookups": counters.ni_lookups,
        "ni_misses": counters.ni_misses,
        "pins": counters.pins,
        "pages_pinned": counters.pages_pinned,
        "unpins": counters.unpins,
        "pages_unpinned": counters.pages_unpinned,
        "peak_pinned_bytes": counters.peak_pinned_bytes,
        "without_room": counters.without_room,
        "hit_rate": found.hit_rate,
        "pin_rate": found.pin_rate,
        "unpin_rate": found.unpin_rate,
        "ni_miss_rate": found.ni_miss_rate,
        "lookup_pages": found.lookup_pages,
        "pages_per_pin": found.pages_per_pin,
        "hit_ns": found.hit_ns,
        "pin_ns": found.pin_ns,
        "unpin_ns": found.unpin_ns,
        "miss_ns": found.miss_ns,
        "predicted_miss_ns": found.predicted_miss_ns,
        "host_ns": found.host_ns,
        "predicted_host_ns": found.predicted_host_ns,
    });
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("3M"), Ok(3 << 20));
        assert_eq!(parse_bytes("2g"), Ok(2 << 30));
        for wrong in ["", "K", "-1", "1.5M", "99999999999G", "3µ"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
