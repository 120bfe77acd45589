//! What `vmmc run` itself promises: exit statuses, one clear line, the program's own output untouched.

use std::process::Command;

use vmmc_tests::{Finished, Running, Site, Watchdog, missing_programs};

use crate::in_every_way::{Failure, LIMIT};
use crate::load::{program, until_it_says, wait_until};
use crate::service_lost::kill_service;

#[test]
fn a_program_that_does_not_exist() -> Result<(), Failure> {
    let finished = run(&["no-such-program-anywhere", "argument"])?;
    assert_eq!(finished.status.code(), Some(127), "{finished:?}");
    assert_eq!(finished.stdout, "");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("no-such-program-anywhere"), "{}", finished.stderr);
    Ok(())
}

/// A program runs although nobody reads that its connections stay on TCP; nor does a service fail in another way for that, which complains that another runs
/// when whoever started it has long gone.
#[test]
fn nobody_has_to_read_complaints() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("nobody_has_to_read_complaints", 2 * LIMIT);
    let site = Site::new()?;
    let mut command = site.vmmc();
    command.args(["run", "--", "true"]).env("VMMC_RUNTIME_DIR", "/proc/vmmc-cannot-be-here");
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let status = command.stderr(writer).status()?;
    assert!(status.success(), "{status:?}");
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

/// Nor has it one when the library has started the service anew, because it was killed.
#[test]
fn a_program_has_no_child_when_the_service_is_started_anew() -> Result<(), Failure> {
    let test = "a_program_has_no_child_when_the_service_is_started_anew";
    if !missing_programs(test, &["python3"]).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, 3 * LIMIT);
    let site = Site::new()?;
    let (mut program, enough) = site
        .start_fed(site.command(true, program("python3")).args(["-c", CONNECTIONS_AND_CHILDREN]))?;
    until_it_says(&mut program, "busy")?;
    let killed = kill_service(&site)?;
    wait_until("another service", || {
        Ok(site.service_pid().is_some_and(|service| service != killed))
    })?;
    drop(enough);
    let finished = program.succeed(LIMIT)?;
    assert_eq!(finished.stdout, "busy\nchildren: none, signals: 0\n", "{finished:?}");
    Ok(())
}

/// Makes connections until its input ends, and is told of its children.
const CONNECTIONS_AND_CHILDREN: &str = r#"
import os, select, signal, socket, sys

signals = 0
def on_child(*_):
    global signals
    signals += 1

signal.signal(signal.SIGCHLD, on_child)
listener = socket.create_server(('127.0.0.1', 0))
print('busy', flush=True)
while not select.select([0], [], [], .02)[0]:
    near = socket.create_connection(listener.getsockname())
    far = listener.accept()[0]
    for _ in range(20):
        near.sendall(b'ping')
        far.sendall(far.recv(4))
        near.recv(4)
try:
    children = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    children = 'none'
print(f'children: {children}, signals: {signals}')
"#;

/// A shell leaves a signal ignored, or a stream closed; systemd ignores broken pipes for its services.
#[test]
fn a_program_finds_signals_and_streams_as_they_were_left() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("vmmc run", 4 * LIMIT);
    const SHOW: &str = "grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd";
    let site = Site::new()?;
    let told = |run: &str, left: &str| -> Result<String, Failure> {
        let line = format!("{left}; exec {run} /bin/sh -c \"{SHOW}\"");
        let mut shell = site.vmmc();
        let vmmc = shell.get_program().to_owned();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &line]).env("VMMC", vmmc);
        for (name, value) in shell.env_remove("VMMC_DISABLE").get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        Ok(Running::start(&mut command)?.succeed(LIMIT)?.stdout)
    };
    for left in
        ["true", "trap '' PIPE", "trap '' PIPE USR1 HUP", "exec 0<&-", "trap '' PIPE; exec 0<&-"]
    {
        assert_eq!(told("$VMMC run --", left)?, told("", left)?, "after {left}");
    }
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
