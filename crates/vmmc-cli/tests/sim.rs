//! `vmmc sim` from outside.

use std::process::{Command, Output};

use serde_json::Value;

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmmc")).arg("sim").args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = sim(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn seeds_pass_and_are_counted() {
    let report = json(&["--seeds", "20", "--first", "1000", "--jobs", "2"]);
    assert_eq!(report["seeds"], 20);
    assert_eq!(report["failed"].as_array().unwrap().len(), 0);
    assert!(report["commands"].as_u64().unwrap() > 100);
}

#[test]
fn a_network_of_ones_choice_is_measured() {
    let points = json(&[
        "--loss",
        "1%",
        "--burst",
        "20",
        "--rate",
        "1gbit",
        "--delay",
        "1ms",
        "--jitter",
        "200us",
        "--duplicate",
        "1%",
        "--corrupt",
        "0.1%",
        "--cut",
        "10ms-20ms",
        "--mtu",
        "1300",
        "--paths",
        "2",
        "--stall",
        "20ms-1ms",
        "--queue",
        "512K",
        "--time",
        "200ms",
    ]);
    let point = &points["goodput"][0];
    assert_eq!(point["loss"], 0.01);
    assert!(point["selective"].as_f64().unwrap() > point["go_back_n"].as_f64().unwrap());
    let share = json(&["--beside-tcp", "--rate", "100mbit", "--time", "2s"])["share"].clone();
    assert!((0.01..0.99).contains(&share.as_f64().unwrap()), "{share}");
    let many = json(&["--incast", "16", "--rate", "1gbit", "--time", "50ms"]);
    assert!(many["goodput"].as_f64().unwrap() > 0.7e9, "{many}");
}

#[test]
fn the_plot_is_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plot.svg");
    let words = ["--plot", path.to_str().unwrap(), "--rate", "100mbit", "--time", "10ms"];
    assert!(sim(&words).status.success());
    let drawn = std::fs::read_to_string(path).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.matches("<polyline").count() == 2);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for words in [
        &["--burst", "20"][..],
        &["--loss", "100%"],
        &["--loss", "1%", "--rate", "fast"],
        &["--loss", "1%", "--cut", "5ms"],
        &["--loss", "1%", "--stall", "0ms-1ms"],
        &["--incast", "0"],
    ] {
        let refused = sim(words);
        assert!(!refused.status.success() && !refused.stderr.is_empty(), "{words:?}");
    }
}
