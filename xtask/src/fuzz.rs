//! `cargo xtask fuzz`: every fuzzer in `fuzz/` for some seconds, on inputs that it makes itself and those of earlier runs.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use vmmc_tests::{Running, find_program};

use crate::packages;
use crate::workspace::{cargo, root, target};

/// What `cargo xtask fuzz` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which fuzzers (default: all)
    targets: Vec<String>,
    /// Time for each of them, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

const INSTALL: Duration = Duration::from_secs(600);
const BUILD: Duration = Duration::from_secs(900);

pub(crate) fn run(args: &Args) -> ExitCode {
    let say = |line: &str| println!("{line}");
    if !packages::install(packages::FOR_FUZZ, &say).is_empty() {
        println!("SKIPPED: the fuzzers need a C++ compiler");
        return ExitCode::SUCCESS;
    }
    match fuzz(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            println!("fuzz: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz(args: &Args) -> Result<(), String> {
    let fuzzer = cargo_fuzz()?;
    let call = |words: &[&str]| {
        let mut command = Command::new(&fuzzer);
        command.arg("fuzz").args(words).current_dir(root());
        // The sanitizer's flag is a nightly one, but the stable compiler knows it.
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", target().join("fuzz"));
        command
    };
    println!("building the fuzzers");
    succeed(&mut call(&["build"]), BUILD)?;
    let all = succeed(&mut call(&["list"]), INSTALL)?;
    let wanted = |name: &&str| args.targets.is_empty() || args.targets.iter().any(|n| n == name);
    let seconds = format!("-max_total_time={}", args.seconds);
    let limit = Duration::from_secs(args.seconds + 120);
    println!("{:14} {:>12}  {:>8}", "fuzzer", "inputs", "branches");
    for name in all.stdout.lines().filter(wanted) {
        let found = succeed(&mut call(&["run", name, "--", &seconds, "-max_len=4096"]), limit)?;
        println!(
            "{name:14} {:>12}  {:>8}",
            number(&found.stderr, "Done "),
            number(&found.stderr, "cov: ")
        );
    }
    Ok(())
}

/// `cargo-fuzz`, built into the target directory if it is not installed.
fn cargo_fuzz() -> Result<PathBuf, String> {
    let tools = target().join("tools");
    let own = tools.join("bin/cargo-fuzz");
    if let Some(installed) =
        find_program("cargo-fuzz").or_else(|| own.exists().then(|| own.clone()))
    {
        return Ok(installed);
    }
    println!("building cargo-fuzz");
    let mut install = cargo(&["install", "cargo-fuzz", "--version", "^0.13", "--locked", "--root"]);
    succeed(install.arg(&tools), INSTALL)?;
    Ok(own)
}

fn succeed(command: &mut Command, limit: Duration) -> Result<vmmc_tests::Finished, String> {
    let running = Running::start(command).and_then(|mut running| running.succeed(limit));
    running.map_err(|error| error.to_string())
}

/// The number behind the last `label` in what a fuzzer printed.
fn number(output: &str, label: &str) -> u64 {
    let behind = output.rsplit_once(label).map_or("", |(_, rest)| rest);
    behind.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
