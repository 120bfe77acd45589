//! The project's own chores.
//!
//! `cargo xtask test` checks everything that a change must pass; `cargo xtask demo` shows unmodified programs over
//! kernel TCP and over VMMC; `cargo xtask suites` compares CPython's own tests on both; `cargo xtask fuzz` looks for inputs that
//! break something; `cargo xtask peers` brings what `vmmc bench` measures beside its own ways. All install the Debian packages that they
//! need when they may, and say what they left out when they may not.

mod demo;
mod fuzz;
mod miri;
mod packages;
mod peers;
mod sanitize;
mod suites;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's own chores", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Format, lints, build, tests, documentation: what a change must pass
    Test(test::Args),
    /// CPython's own tests of sockets and processes, plain and lifted: the same verdicts
    Suites(suites::Args),
    /// Every fuzzer for some seconds: what other processes and hosts can write
    Fuzz(fuzz::Args),
    /// The tests of who owns which memory when, under AddressSanitizer
    Sanitize,
    /// The same and more under Miri, where it is installed
    Miri(miri::Args),
    /// The programs that `vmmc bench` measures beside its own ways, installed and built
    Peers,
    /// Unmodified programs over kernel TCP, then over VMMC: same results, other figures
    Demo(demo::Args),
}

fn main() -> ExitCode {
    match Cli::parse().chore {
        Chore::Test(args) => test::run(&args),
        Chore::Suites(args) => suites::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Peers => peers::run(),
        Chore::Sanitize => sanitize::run(),
        Chore::Miri(args) => miri::run(&args),
        Chore::Demo(args) => demo::run(&args),
    }
}
