//! `vmmc run`: an unmodified program with its TCP connections lifted.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use vmmc_node::Policy;

use crate::becoming::become_program;

/// The program's connections to other such programs of the same user on this host (and of other users, where the host's policy
/// lets them) go over VMMC; everything else, and
/// everything about them but their bytes, stays with the kernel. The program keeps its process id, its exit status, its
/// descriptors and its signals.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Environment:
  VMMC_DISABLE=1      run the program plainly
  VMMC_SPIN=MICROS    how long a waiting call looks before it sleeps (default 50; 0: sleeps at once)
  VMMC_LIFT_AFTER=CALLS  lift a connection after so many calls that moved data (default 4; 0: before its first byte)
  VMMC_PARK_AFTER=SECONDS  take back the memory of a lifted connection that was idle so long, until it is used again
                      (default 10; 0: never)
  VMMC_PROGRAMS, VMMC_NOT_PROGRAMS=NAME:PATH...  lift only these programs; do not lift these
  VMMC_PORTS, VMMC_NOT_PORTS=PORT,FIRST-LAST...  only connections with such a port at either end; not those
  VMMC_RING=SIZE      the largest ring a direction may get: 3.5K, 64K or 2M (default)
  VMMC_SERVICE=own    use this user's own node service where the host has one too (system: only the host's)
  VMMC_RUNTIME_DIR    where the node service's socket is
  VMMC_POLICY=FILE    this user's policy, in place of ~/.config/vmmc/policy.toml; these variables go before it
  VMMC_EXPLAIN=FILE   what --explain=FILE sets; empty: standard error

Exit status: the program's own; 127 if it does not exist, 126 if it cannot be executed, 125 for an error of vmmc's own.

Examples:
  vmmc run redis-server
  vmmc run -- redis-benchmark -t get -c 50")]
pub(crate) struct Args {
    /// When the program ends by itself, tell what became of each connection, on standard error or at the end of FILE: whether
    /// it was lifted, or why not, how many bytes went over it, how often and how long calls on it slept or looked. Each
    /// process that it forks tells for itself
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    explain: Option<PathBuf>,

    /// The program and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    command: Vec<OsString>,
}

const LIBRARY: &str = "libvmmc_preload.so";
const OWN_ERROR: u8 = 125;

pub(crate) fn run(args: Args) -> ExitCode {
    let [program, arguments @ ..] = args.command.as_slice() else {
        return ExitCode::from(OWN_ERROR);
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(policy) = policy(args.explain.is_some()) {
        let library = match find_library() {
            Ok(library) => library,
            Err(message) => {
                complain!("vmmc: {message}");
                return ExitCode::from(OWN_ERROR);
            }
        };
        if let Err(message) = crate::node::ensure() {
            complain!("vmmc: {message}; connections stay on TCP");
        }
        if let (None, Ok(program)) =
            (std::env::var_os("VMMC_NODE_PROGRAM"), std::env::current_exe())
        {
            // With this the library brings the service back if it goes.
            command.env("VMMC_NODE_PROGRAM", program);
        }
        for (name, value) in policy.environment() {
            // Who sets a variable knows better.
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        if let Some(file) = args.explain {
            // The program may change its directory.
            let file = if file == Path::new("-") { PathBuf::new() } else { absolute(file) };
            command.env("VMMC_EXPLAIN", file);
        }
        command.env("LD_PRELOAD", preload(&library, std::env::var_os("LD_PRELOAD")));
    }
    let error = become_program(&mut command);
    let program = program.to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        complain!("vmmc: {program}: no such program: check its name and PATH");
        return ExitCode::from(127);
    }
    complain!("vmmc: {program}: cannot be executed: {error}");
    ExitCode::from(126)
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// What may be lifted; `None` if nothing.
fn policy(explain: bool) -> Option<Policy> {
    if disabled() {
        return None;
    }
    match Policy::of_programs() {
        Ok(policy) if policy.lift == Some(false) => {
            if explain {
                complain!(
                    "vmmc: policy: nothing is lifted (`vmmc doctor` shows which file says so)"
                );
            }
            None
        }
        Ok(policy) => Some(policy),
        Err(error) => {
            complain!("vmmc: {error}; connections stay on TCP");
            None
        }
    }
}

fn disabled() -> bool {
    std::env::var_os("VMMC_DISABLE").is_some_and(|value| !value.is_empty() && value != "0")
}

/// The library lies beside this program, or in the `lib` beside its `bin`.
fn find_library() -> Result<PathBuf, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let dir = program.parent().unwrap_or(Path::new("/"));
    let places = [
        dir.join(LIBRARY),
        dir.join("../lib").join(LIBRARY),
        dir.join("../lib/vmmc").join(LIBRARY),
    ];
    places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
        format!("{LIBRARY} is not beside {}: build it (cargo build --release --workspace) or install it there", program.display())
    })
}

/// Last of all that are loaded before the program's own: the runtime of a sanitizer insists on being the first, and whoever else
/// comes in between the program and the C library sees the calls as the program makes them.
fn preload(library: &Path, others: Option<OsString>) -> OsString {
    let mut list = others.unwrap_or_default();
    if !list.is_empty() {
        list.push(OsStr::new(":"));
    }
    list.push(library);
    list
}
