//! The `vmmc` command: thin faces over the libraries, one module a subcommand.

/// One line to standard error, which may have no reader any more: that is no reason to fail in another way than the line says.
macro_rules! complain {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

mod becoming;
mod bench;
mod doctor;
mod node;
mod run;
mod sim;
mod stat;
mod testbed;
mod utlb;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// User-level communication between the virtual memories of processes.
#[derive(Debug, Parser)]
#[command(name = "vmmc", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an unmodified program with its TCP connections lifted
    Run(run::Args),
    /// Show which connections are lifted
    Stat(stat::Args),
    /// Start, stop or ask the node service
    Node(node::Args),
    /// Measure VMMC beside its peers
    Bench(bench::Args),
    /// Record and replay what programs look up in their translation tables
    Utlb(utlb::Args),
    /// Run the link's protocol on a network in virtual time
    Sim(sim::Args),
    /// Make several hosts on this machine, with cables to cut
    Testbed(testbed::Args),
    /// Show what this machine allows, what follows, and how to change it
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let only_prints = match &command {
        Command::Stat(_) | Command::Doctor(_) | Command::Utlb(_) | Command::Sim(_) => true,
        Command::Node(args) => !args.serves(),
        _ => false,
    };
    if only_prints {
        end_with_the_reader();
    }
    match command {
        Command::Run(args) => run::run(args),
        Command::Stat(args) => stat::run(args),
        Command::Node(args) => node::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Utlb(args) => utlb::run(args),
        Command::Sim(args) => sim::run(args),
        Command::Testbed(args) => testbed::run(args),
        Command::Doctor(args) => doctor::run(args),
    }
}

/// A command that only prints ends quietly, as others do, when nobody reads any more what it prints.
fn end_with_the_reader() {
    // SAFETY: nothing of this process has a handler for the signal, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
