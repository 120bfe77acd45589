//! The examples run as they stand.

mod harness;

use std::process::Command;

use harness::{Node, vmmc_program};

#[test]
fn asynchronous_transfers() {
    let node = Node::new();
    let own = std::env::current_exe().unwrap();
    let profile = own.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "vmmc", "--example", "asynchronous"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(profile.parent().unwrap());
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.env("VMMC_RUNTIME_DIR", node.path()).env("VMMC_NODE_PROGRAM", vmmc_program());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "\"tail\" arrived last\n");
}
