//! Running one step: progress, a bound on its time, its output kept and shown when it fails.

use std::io::IsTerminal;
use std::process::Command;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vmmc_tests::{Running, interrupted};

use super::count::{Count, skipped_lines};

/// Lines shown at most of a step that failed.
const SHOWN: usize = 200;

/// One thing to run.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
    /// After this much time the step is killed and has failed.
    pub(crate) limit: Duration,
    /// A step without which this one makes no sense.
    pub(crate) needs: Option<&'static str>,
}

/// What a step does.
pub(crate) enum Action {
    /// Succeeds with exit status 0.
    Check(Command),
    /// As `Check`, and its output tells of single tests.
    Tests(Command),
    /// Cannot be run here, for this reason.
    Skip(String),
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Skipped,
    Interrupted,
}

/// What a step found.
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) detail: String,
    pub(crate) time: Duration,
    pub(crate) count: Count,
    pub(crate) skipped: Vec<String>,
}

/// Runs a step to its end, to its limit, or to the first SIGINT or SIGTERM.
pub(crate) fn run(step: &mut Step) -> Report {
    let (command, has_tests) = match &mut step.action {
        Action::Check(command) => (command, false),
        Action::Tests(command) => (command, true),
        Action::Skip(why) => return Report::skipped(step.name, why),
    };
    let start = Instant::now();
    let mut running = match Running::start(command) {
        Ok(running) => running,
        Err(error) => return Report::failed(step.name, start.elapsed(), &error.to_string()),
    };
    let stopped = watch(&mut running, start + step.limit);
    let finished = running.kill();
    let output = finished.stdout + &finished.stderr;
    let ok = finished.status.success() && stopped.is_none();
    let outcome = match stopped {
        _ if ok => Outcome::Passed,
        Some(Outcome::Interrupted) => Outcome::Interrupted,
        _ => Outcome::Failed,
    };
    let detail = match outcome {
        Outcome::Failed if stopped.is_some() => format!("killed after {} s", step.limit.as_secs()),
        Outcome::Failed => finished.status.to_string(),
        _ => String::new(),
    };
    if outcome == Outcome::Failed {
        show(&output);
    }
    let tests = Count::of_tests(&output);
    let count = match has_tests {
        false => Count::one(ok),
        true if ok || tests.failed > 0 => tests,
        // It did not compile, was killed or died: the step itself is what failed.
        true => tests + Count::one(false),
    };
    let skipped = skipped_lines(&output);
    Report { name: step.name, outcome, detail, time: start.elapsed(), count, skipped }
}

/// Shows progress until the program ends; tells if it has to be ended instead.
fn watch(running: &mut Running, end: Instant) -> Option<Outcome> {
    let progress = ProgressBar::new_spinner();
    if !std::io::stderr().is_terminal() {
        progress.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("      {spinner} {elapsed} {wide_msg}") {
        progress.set_style(style);
    }
    let mut stopped = None;
    while stopped.is_none() && running.is_running() {
        if interrupted() {
            stopped = Some(Outcome::Interrupted);
        } else if Instant::now() > end {
            stopped = Some(Outcome::Failed);
        }
        progress.set_message(running.last_error_line());
        progress.tick();
        std::thread::sleep(Duration::from_millis(100));
    }
    progress.finish_and_clear();
    stopped
}

/// What says why a step failed: what its failed tests printed, else the end of its output.
fn show(output: &str) {
    let mut failures = Vec::new();
    let mut among_failures = false;
    for line in output.lines() {
        // libtest prints what failed between these two.
        among_failures =
            (among_failures || line == "failures:") && !line.starts_with("test result");
        if among_failures {
            failures.push(line);
        }
    }
    // A test program that died names no failures: what it said last stands among what cargo said of all the others.
    let lines = match failures.is_empty() {
        true => output.lines().filter(|line| !is_usual(line)).collect(),
        false => failures,
    };
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        eprintln!("      | {line}");
    }
}

/// Whether it is said of every test program, whatever happens.
fn is_usual(line: &str) -> bool {
    let line = line.trim_start();
    let begins = ["Running ", "Compiling ", "Finished ", "running ", "test result: ok"];
    line.is_empty()
        || begins.iter().any(|begin| line.starts_with(begin))
        || (line.starts_with("test ") && line.ends_with(" ... ok"))
}

impl Outcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
            Outcome::Interrupted => "interrupted",
        }
    }
}

impl Report {
    /// A step that was left out because an earlier one failed: that is a failure too.
    pub(crate) fn not_run(name: &'static str, why: &str) -> Report {
        Report::failed(name, Duration::ZERO, why)
    }

    /// One line for the progress display.
    pub(crate) fn line(&self) -> String {
        format!("{} in {:.1} s", self.summary(), self.time.as_secs_f64())
    }

    /// The result, its cause, and the number of tests if there were several.
    pub(crate) fn summary(&self) -> String {
        let mut text = self.outcome.word().to_owned();
        let Count { passed, failed, skipped } = self.count;
        if passed + failed + skipped > 1 {
            text += &format!(" ({passed} passed, {failed} failed, {skipped} skipped)");
        }
        if !self.detail.is_empty() {
            text += &format!(": {}", self.detail);
        }
        text
    }

    fn failed(name: &'static str, time: Duration, why: &str) -> Report {
        let detail = why.to_owned();
        Report {
            name,
            outcome: Outcome::Failed,
            detail,
            time,
            count: Count::one(false),
            skipped: Vec::new(),
        }
    }

    fn skipped(name: &'static str, why: &str) -> Report {
        Report {
            name,
            outcome: Outcome::Skipped,
            detail: why.to_owned(),
            time: Duration::ZERO,
            count: Count::one_skipped(),
            skipped: Vec::new(),
        }
    }
}
