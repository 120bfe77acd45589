//! The examples run as they stand.

mod harness;

use std::process::{Child, Command, Stdio};

use harness::{Node, until, vmmc_program};

/// An example as it would be started by hand.
fn example(node: &Node, name: &str) -> Command {
    let own = std::env::current_exe().unwrap();
    let profile = own.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "vmmc", "--example", name]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(profile.parent().unwrap());
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.env("VMMC_RUNTIME_DIR", node.path()).env("VMMC_NODE_PROGRAM", vmmc_program());
    cargo.stdout(Stdio::piped()).stderr(Stdio::piped());
    cargo
}

fn printed(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What an example prints.
fn run(name: &str) -> String {
    let node = Node::new();
    printed(example(&node, name).spawn().unwrap())
}

#[test]
fn export_and_send_in_two_processes() {
    let node = Node::new();
    let exporter = example(&node, "export").spawn().unwrap();
    let process = node.open();
    until("the board is exported", || {
        process.exports().unwrap().iter().any(|export| export.name == "board")
    });
    assert!(printed(example(&node, "send").spawn().unwrap()).starts_with("sent to "));
    assert!(printed(exporter).ends_with("received \"hello\"\n"));
}

#[test]
fn rights() {
    let said = "written by the engine\nand nothing after it was taken back\n";
    assert_eq!(run("rights"), said);
}

#[test]
fn pinning() {
    let said = "8 lookups, 4 hits, 4 pages pinned\n32768 bytes pinned, 8 pages unpinned\n";
    assert_eq!(run("pinning"), said);
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
