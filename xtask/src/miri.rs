//! `cargo xtask miri`: the tests of who may touch which bytes when, under Miri, which finds uses of freed or foreign memory, races, and
//! orders that a processor need not keep, whether or not this one shows them.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use vmmc_tests::Running;

use crate::workspace::{cargo, root};

/// What `cargo xtask miri` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// So many schedules and memory layouts of each test
    #[arg(long, default_value_t = 4)]
    seeds: u32,
}

/// What needs neither a service nor shared memory, sockets or assembly; single tests that do say so. Where provenance is strict no pointer may be
/// made out of a number; `rustix` makes one when it calls a futex.
const TESTS: &[(&[&str], &str)] = &[
    (&["--package", "vmmc", "--lib"], "permissive"),
    (&["--package", "vmmc-shm", "--lib", "--test", "threads"], "strict"),
    (&["--package", "vmmc-ni", "--lib", "--test", "utlb"], "strict"),
    (&["--package", "vmmc-proto", "--test", "decoding"], "strict"),
    (&["--package", "vmmc-link", "--lib"], "strict"),
];

/// Random inputs are few, and those that fail are not kept in files, of which Miri shows none.
const FLAGS: &str =
    "-Zmiri-env-set=PROPTEST_CASES=1 -Zmiri-env-set=PROPTEST_DISABLE_FAILURE_PERSISTENCE=1";

const LIMIT: Duration = Duration::from_secs(3600);

pub(crate) fn run(args: &Args) -> ExitCode {
    let Some(miri) = find() else {
        println!("SKIPPED: {NOT_INSTALLED}");
        return ExitCode::SUCCESS;
    };
    for (test, provenance) in TESTS {
        println!("{}", test.join(" "));
        let mut command = miri();
        command.arg("test").args(*test);
        let seeds = format!("-Zmiri-many-seeds=0..{}", args.seeds);
        command.env("MIRIFLAGS", format!("{FLAGS} -Zmiri-{provenance}-provenance {seeds}"));
        let start = Instant::now();
        match Running::start(&mut command).and_then(|mut running| running.succeed(LIMIT)) {
            Ok(finished) => print!("{}", finished.stdout),
            Err(error) => {
                println!("miri: {error}");
                return ExitCode::FAILURE;
            }
        }
        println!("{:.0} s", start.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}

/// Why nothing runs where there is no Miri, and what helps.
pub(crate) const NOT_INSTALLED: &str = "Miri is not installed (rustup +nightly component add miri)";

/// How to call `cargo miri`: that of this toolchain, or of the nightly one.
pub(crate) fn find() -> Option<fn() -> Command> {
    let own = || cargo(&["miri"]);
    let nightly = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "miri"]).current_dir(root());
        command
    };
    let ways: [fn() -> Command; 2] = [own, nightly];
    ways.into_iter().find(|way| {
        Running::start(way().arg("--version"))
            .and_then(|mut running| running.succeed(Duration::from_secs(60)))
            .is_ok()
    })
}
