//! The steps of `cargo xtask test`, in order.

use std::num::NonZero;
use std::process::Command;
use std::time::Duration;

use vmmc_tests::{Running, find_program};

use super::step::{Action, Step};
use crate::miri;
use crate::workspace::{cargo, release, target};

const RELEASE_BUILD: &str = "release build";

/// Everything, or what `--quick` keeps.
pub(crate) fn steps(quick: bool) -> Vec<Step> {
    let fast = [format(), lints(), quick_tests()];
    if quick {
        return fast.into();
    }
    let [format, lints, _] = fast;
    vec![
        format,
        lints,
        release_build(),
        tests(),
        semantics(),
        real_programs(),
        doc_tests(),
        documentation(),
        loom(),
        fuzzers(),
        miri(),
        licences(),
    ]
}

fn format() -> Step {
    let action = component("fmt", "rustfmt")
        .unwrap_or_else(|| Action::Check(cargo(&["fmt", "--all", "--check"])));
    step("rustfmt", 2, action)
}

fn lints() -> Step {
    let action = component("clippy", "clippy").unwrap_or_else(|| {
        Action::Check(cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    });
    step("clippy", 10, action)
}

fn release_build() -> Step {
    step(RELEASE_BUILD, 15, Action::Check(cargo(&["build", "--workspace", "--release"])))
}

/// Unit and integration tests with debug assertions on; scenarios and real programs have steps of their own.
fn tests() -> Step {
    let mut command = cargo(&[
        "test",
        "--workspace",
        "--exclude",
        "vmmc-semantics",
        "--exclude",
        "vmmc-tests",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
        "--no-fail-fast",
    ]);
    with_release_programs(&mut command);
    Step { needs: Some(RELEASE_BUILD), ..step("tests", 15, Action::Tests(command)) }
}

fn quick_tests() -> Step {
    let command = cargo(&[
        "test",
        "--workspace",
        "--exclude",
        "vmmc-tests",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
        "--no-fail-fast",
    ]);
    step("tests", 15, Action::Tests(command))
}

/// Every scenario in every way. Most of the time they sleep: twice as many at a time as there are processors.
fn semantics() -> Step {
    let mut command = cargo(&["test", "--package", "vmmc-semantics", "--no-fail-fast"]);
    with_release_programs(&mut command);
    let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
    command.env("RUST_TEST_THREADS", (2 * processors).to_string());
    Step { needs: Some(RELEASE_BUILD), ..step("socket semantics", 10, Action::Tests(command)) }
}

fn real_programs() -> Step {
    let mut command =
        cargo(&["test", "--package", "vmmc-tests", "--all-targets", "--no-fail-fast"]);
    with_release_programs(&mut command);
    Step { needs: Some(RELEASE_BUILD), ..step("real programs", 12, Action::Tests(command)) }
}

fn doc_tests() -> Step {
    let mut command = cargo(&["test", "--workspace", "--doc", "--no-fail-fast"]);
    with_release_programs(&mut command);
    Step { needs: Some(RELEASE_BUILD), ..step("doc tests", 8, Action::Tests(command)) }
}

fn documentation() -> Step {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    step("documentation", 6, Action::Check(command))
}

/// The shared-memory structures under every interleaving that loom finds. In a target directory of its own, because
/// the flag would otherwise have everything built anew.
fn loom() -> Step {
    let packages = ["--package", "vmmc-shm", "--package", "vmmc-ni"];
    let mut command = cargo(&["test", "--release", "--test", "loom_*"]);
    command.args(packages);
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target().join("loom"));
    command.env("LOOM_MAX_PREEMPTIONS", "3");
    step("loom", 8, Action::Tests(command))
}

/// Every fuzzer for a moment; longer by hand.
fn fuzzers() -> Step {
    step("fuzzers", 20, chore(&["fuzz", "--seconds", "5"], Action::Check))
}

/// Memory and order under Miri, with one seed; with more by hand.
fn miri() -> Step {
    let action = match miri::find() {
        Some(_) => chore(&["miri", "--seeds", "1"], Action::Tests),
        None => Action::Skip(miri::NOT_INSTALLED.to_owned()),
    };
    step("miri", 15, action)
}

/// Another chore of this program.
fn chore(arguments: &[&str], action: fn(Command) -> Action) -> Action {
    match std::env::current_exe() {
        Ok(xtask) => {
            let mut command = Command::new(xtask);
            command.args(arguments);
            action(command)
        }
        Err(error) => Action::Skip(format!("this program cannot be found: {error}")),
    }
}

fn licences() -> Step {
    let action = match find_program("cargo-deny").is_some() || runs(cargo(&["deny", "--version"])) {
        true => {
            Action::Check(cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"]))
        }
        false => Action::Skip("cargo deny is not installed (cargo install cargo-deny)".to_owned()),
    };
    step("cargo deny", 3, action)
}

/// Tells tests where the programs lie that the release build just made, so that none tries older ones.
fn with_release_programs(command: &mut Command) {
    command.env("VMMC_TEST_PROGRAMS", release()).env("VMMC_NODE_PROGRAM", release().join("vmmc"));
}

/// `Skip` if a part of the toolchain is not there and cannot be added.
fn component(subcommand: &str, name: &str) -> Option<Action> {
    let there = || runs(cargo(&[subcommand, "--version"]));
    if there() {
        return None;
    }
    let mut rustup = Command::new("rustup");
    runs({
        rustup.args(["component", "add", name]);
        rustup
    });
    (!there()).then(|| Action::Skip(format!("not installed (rustup component add {name})")))
}

fn runs(mut command: Command) -> bool {
    Running::start(&mut command)
        .and_then(|mut running| running.succeed(Duration::from_secs(120)))
        .is_ok()
}

fn step(name: &'static str, minutes: u64, action: Action) -> Step {
    Step { name, action, limit: Duration::from_secs(60 * minutes), needs: None }
}
