//! `cargo xtask sanitize`: the tests of who owns which memory when, under AddressSanitizer. `cargo xtask miri` says the same more exactly, of what
//! needs neither a service nor shared memory.

use std::process::ExitCode;
use std::time::Duration;

use vmmc_tests::Running;

use crate::workspace::{cargo, target};

const LIMIT: Duration = Duration::from_secs(2400);
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What another process writes, and buffers that several own one after the other.
const TESTS: &[&[&str]] = &[
    &["--package", "vmmc-shm", "--lib"],
    &["--package", "vmmc", "--lib", "--test", "asynchronous", "--test", "malice"],
    &["--package", "vmmc", "--test", "redirection", "--test", "notification"],
];

pub(crate) fn run() -> ExitCode {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("SKIPPED: the sanitizer's library is known to be there on Linux on x86-64 only");
        return ExitCode::SUCCESS;
    }
    for test in TESTS {
        println!("{}", test.join(" "));
        let mut command = cargo(&["test", "--target", TARGET]);
        // The sanitizer's flag is a nightly one, but the stable compiler knows it. What tests forget on purpose, as a crash does, is no leak.
        command.args(*test).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
        command
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("CARGO_TARGET_DIR", target().join("asan"));
        let ran = Running::start(&mut command).and_then(|mut running| running.succeed(LIMIT));
        if let Err(error) = ran {
            println!("sanitize: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
