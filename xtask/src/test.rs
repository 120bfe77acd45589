//! `cargo xtask test`: every step that a change must pass, one after the other, with a bound on each.

mod count;
mod step;
mod steps;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use self::count::Count;
use self::step::{Outcome, Report};
use crate::packages;

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only format, lints, and the tests (no release build, real programs, documentation, loom or cargo deny)
    #[arg(long)]
    quick: bool,
    /// One JSON object on standard output; everything else goes to standard error
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let start = Instant::now();
    let say = |line: &str| eprintln!("      {line}");
    if !args.quick {
        packages::install(packages::FOR_TEST, &say);
    }
    let mut steps = steps::steps(args.quick);
    let total = steps.len();
    vmmc_tests::note_interrupts();
    let mut reports: Vec<Report> = Vec::new();
    for (number, step) in steps.iter_mut().enumerate() {
        eprintln!("[{}/{}] {}", number + 1, total, step.name);
        let blocked = step.needs.filter(|needed| !passed(&reports, needed));
        let report = match blocked {
            Some(needed) => Report::not_run(step.name, &format!("needs '{needed}', which failed")),
            None => step::run(step),
        };
        eprintln!("      {}", report.line());
        let interrupted = report.outcome == Outcome::Interrupted;
        reports.push(report);
        if interrupted {
            break;
        }
    }
    let count = reports.iter().fold(Count::default(), |all, report| all + report.count);
    print_table(&reports, start.elapsed());
    let closing =
        format!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if args.json {
        println!("{}", as_json(&reports, count, start.elapsed()));
        eprintln!("{closing}");
    } else {
        println!("{closing}");
    }
    if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passed(reports: &[Report], name: &str) -> bool {
    reports.iter().any(|report| report.name == name && report.outcome == Outcome::Passed)
}

fn print_table(reports: &[Report], total: Duration) {
    eprintln!("\n{:<24} {:>8}  result", "step", "seconds");
    for report in reports {
        eprintln!("{:<24} {:>8.1}  {}", report.name, report.time.as_secs_f64(), report.summary());
        for skipped in &report.skipped {
            eprintln!("{:<24} {:>8}  {skipped}", "", "");
        }
    }
    eprintln!("{:<24} {:>8.1}\n", "all", total.as_secs_f64());
}

fn as_json(reports: &[Report], count: Count, total: Duration) -> serde_json::Value {
    let steps: Vec<_> = reports
        .iter()
        .map(|report| {
            json!({
                "step": report.name,
                "seconds": report.time.as_secs_f64(),
                "result": report.outcome.word(),
                "detail": report.detail,
                "passed": report.count.passed,
                "failed": report.count.failed,
                "skipped": report.count.skipped,
                "skipped_because": report.skipped,
            })
        })
        .collect();
    json!({
        "steps": steps,
        "seconds": total.as_secs_f64(),
        "passed": count.passed,
        "failed": count.failed,
        "skipped": count.skipped,
    })
}
