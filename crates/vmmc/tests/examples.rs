//! The examples run as they stand.

mod harness;

use std::process::{Child, Command, Output, Stdio};

use harness::{Node, until, vmmc_program};
use serde_json::Value;

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

/// `vmmc utlb`, with these arguments.
fn utlb(arguments: &[&str]) -> Output {
    Command::new(vmmc_program()).arg("utlb").args(arguments).output().unwrap()
}

#[test]
fn a_recorded_program_is_replayed_under_limits_and_policies() {
    let node = Node::new();
    let trace = node.path().join("fft.utlb");
    let trace = trace.to_str().unwrap();
    let mut plain = example(&node, "utlb");
    plain.args(["--", "fft"]);
    let mut recorded = Command::new(vmmc_program());
    recorded.args(["utlb", "record", "-o", trace, "--"]);
    recorded.arg(plain.get_program()).args(plain.get_args());
    recorded.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    recorded.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = printed(recorded.spawn().unwrap());
    let lookups: u64 = said
        .split_once("lookups ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap();

    let replay = |limit: &str, policy: &str| {
        let output = utlb(&["replay", trace, "--limit", limit, "--policy", policy, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["lookups"], lookups);
        assert_eq!(report["policy"], policy);
        report
    };
    let roomy = replay("7M", "lru");
    assert_eq!(roomy["unpins"], 0);
    for policy in ["lru", "mru", "lfu", "fifo", "random"] {
        let tight = replay("1M", policy);
        assert!(tight["peak_pinned_bytes"].as_u64().unwrap() <= 1 << 20);
        assert!(tight["pages_pinned"].as_u64() > roomy["pages_pinned"].as_u64());
        assert!(tight["unpins"].as_u64().unwrap() > 0);
    }
    let table = utlb(&["replay", trace]);
    let table = String::from_utf8(table.stdout).unwrap();
    for row in ["host lookup hit rate", "avg pin overhead", "NI cache miss rate"] {
        assert!(table.contains(row), "{table}");
    }

    for (wrong, word) in [
        (&["replay", "no-such-trace"][..], "no-such-trace"),
        (&["replay", trace, "--limit", "0"], "limit"),
        (&["replay", trace, "--policy", "best"], "best"),
        (&["record", "--", "no-such-program"], "no-such-program"),
    ] {
        let refused = utlb(wrong);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(word), "{wrong:?}: {said}");
    }
}
