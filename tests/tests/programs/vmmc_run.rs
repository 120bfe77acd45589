//! What `vmmc run` itself promises: exit statuses, one clear line, the program's own output untouched.

use std::process::Command;

use vmmc_tests::{Finished, Running, Site, Watchdog};

use crate::in_every_way::{Failure, LIMIT};

#[test]
fn a_program_that_does_not_exist() -> Result<(), Failure> {
    let finished = run(&["no-such-program-anywhere", "argument"])?;
    assert_eq!(finished.status.code(), Some(127), "{finished:?}");
    assert_eq!(finished.stdout, "");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("no-such-program-anywhere"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn the_status_and_output_are_the_programs_own() -> Result<(), Failure> {
    let finished = run(&["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!(finished.status.code(), Some(7));
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    Ok(())
}

/// The service was started for it just before: a server that waits for all its children would wait for that one.
#[test]
fn a_program_has_no_child_that_it_did_not_start() -> Result<(), Failure> {
    let program = "import os\ntry: print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError: print('none')";
    let finished = run(&["python3", "-c", program])?;
    assert_eq!(finished.stdout, "none\n", "{finished:?}");
    Ok(())
}

#[test]
fn options_of_the_program_are_left_to_it() -> Result<(), Failure> {
    let finished = run(&["/bin/echo", "--json", "-h", "--"])?;
    assert_eq!(finished.stdout, "--json -h --\n");
    Ok(())
}

#[test]
fn a_runtime_directory_that_cannot_be_made_is_named_in_one_line() -> Result<(), Failure> {
    let _watchdog =
        Watchdog::new("a_runtime_directory_that_cannot_be_made_is_named_in_one_line", 2 * LIMIT);
    let site = Site::new()?;
    let mut command: Command = site.vmmc();
    command.args(["node", "start"]).env("VMMC_RUNTIME_DIR", "/proc/vmmc-cannot-be-here");
    let finished = Running::start(&mut command)?.wait(LIMIT)?;
    assert!(!finished.status.success());
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("/proc/vmmc-cannot-be-here"), "{}", finished.stderr);
    Ok(())
}

fn run(words: &[&str]) -> Result<Finished, Failure> {
    let _watchdog = Watchdog::new("vmmc run", 2 * LIMIT);
    let site = Site::new()?;
    Ok(Running::start(site.vmmc().args(["run", "--"]).args(words))?.wait(LIMIT)?)
}
