//! The examples run as they stand.

mod harness;

use std::process::Command;

use harness::{Node, vmmc_program};

/// What an example prints.
fn run(example: &str) -> String {
    let node = Node::new();
    let own = std::env::current_exe().unwrap();
    let profile = own.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "vmmc", "--example", example]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(profile.parent().unwrap());
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.env("VMMC_RUNTIME_DIR", node.path()).env("VMMC_NODE_PROGRAM", vmmc_program());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn asynchronous_transfers() {
    assert_eq!(run("asynchronous"), "\"tail\" arrived last\n");
}

#[test]
fn notifications() {
    let told = "the handler was told: 8 bytes at 16\n64 came one by one, and 6 at once\n";
    assert_eq!(run("notification"), told);
}

#[test]
fn redirection() {
    assert_eq!(run("redirection"), "\"early, then directly\", of which [7..20] directly\n");
}
