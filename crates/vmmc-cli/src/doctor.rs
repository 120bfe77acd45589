//! `vmmc doctor`: what this machine allows, what follows from it, and how to change it.

mod finding;
mod kernel;
mod limits;
mod memory;
mod network;
mod service;

use std::process::ExitCode;

use finding::{Finding, State};

/// Shows what this machine allows VMMC, what follows, and how to change it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Fails only if something makes VMMC unusable here.
pub(crate) fn run(args: Args) -> ExitCode {
    let findings: Vec<Finding> = [
        limits::findings(),
        memory::findings(),
        kernel::findings(),
        network::findings(),
        service::findings(),
    ]
    .concat();
    let usable = findings.iter().all(|finding| finding.state != State::Unusable);
    if args.json {
        let report = serde_json::json!({ "doctor": { "usable": usable }, "findings": findings });
        println!("{report:#}");
    } else {
        findings.iter().for_each(|finding| print!("{finding}"));
        let verdict = if usable { "VMMC can be used here." } else { "VMMC cannot be used here." };
        println!("\n{verdict}");
    }
    if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_gives_an_answer_and_a_remedy_where_one_is_needed() {
        let findings = [
            limits::findings(),
            memory::findings(),
            kernel::findings(),
            network::findings(),
            service::findings(),
        ]
        .concat();
        let mut names: Vec<&str> = findings.iter().map(|finding| finding.name).collect();
        for finding in &findings {
            assert!(!finding.found.is_empty() && !finding.follows.is_empty(), "{finding:?}");
            assert_eq!(finding.state == State::Good, finding.change.is_none(), "{finding:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len(), "every name once");
    }
}
