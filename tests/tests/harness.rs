//! The harness itself: what it starts ends, what it waits for is bounded.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vmmc_tests::{Running, RunningError, find_program};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn output_status_and_processor_time_are_kept() {
    let script =
        "echo out; echo err >&2; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 3";
    let finished =
        Running::start(Command::new("sh").args(["-c", script])).unwrap().wait(LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(3));
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    assert!(finished.cpu > Duration::ZERO);
}

#[test]
fn a_program_that_fails_is_an_error_with_its_last_words() {
    let error = Running::start(Command::new("sh").args(["-c", "echo why; exit 1"]))
        .unwrap()
        .succeed(LIMIT)
        .unwrap_err();
    assert!(matches!(&error, RunningError::Failed { tail, .. } if tail == "why"), "{error}");
}

#[test]
fn a_program_that_does_not_end_is_killed_at_its_limit() {
    let mut endless =
        Running::start(Command::new("sh").args(["-c", "echo begun; sleep 1000"])).unwrap();
    let pid = endless.pid();
    let error = endless.wait(Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, RunningError::TimedOut { .. }), "{error}");
    assert_gone(pid);
}

#[test]
fn dropping_a_program_ends_its_whole_group() {
    let parent =
        Running::start(Command::new("sh").args(["-c", "sleep 1000 & echo $!; wait"])).unwrap();
    let end = Instant::now() + LIMIT;
    let child = loop {
        if let Ok(pid) = parent.output_so_far().trim().parse() {
            break pid;
        }
        assert!(Instant::now() < end, "no process id was printed");
        thread::sleep(Duration::from_millis(5));
    };
    let pid = parent.pid();
    drop(parent);
    assert_gone(pid);
    assert_gone(child);
}

#[test]
fn a_missing_program_is_not_found() {
    assert!(find_program("sh").is_some());
    assert_eq!(find_program("no-such-program"), None);
}

/// Waits until no process with that id runs; its entry may stay until its new parent collects it.
fn assert_gone(pid: u32) {
    let end = Instant::now() + LIMIT;
    while fs::read_link(format!("/proc/{pid}/exe")).is_ok() {
        assert!(Instant::now() < end, "process {pid} is still there");
        thread::sleep(Duration::from_millis(5));
    }
}
