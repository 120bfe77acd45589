//! Two hosts of a testbed, with VMMC between them, and what is done to their cables. Where namespaces cannot be made the tests say so and end.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmmc::{ExportState, Import, ImportError, ImportSource, Process, TransferError};

/// Longer than anything takes on the slowest machine; only to end a test that hangs.
const FOREVER: Duration = Duration::from_secs(60);

/// A testbed whose nodes have their services running. The processes of a test need not be on the nodes themselves: whoever can reach a service's
/// directory is one of its node.
struct Hosts {
    name: String,
}

impl Hosts {
    /// `None`: namespaces are not to be had here.
    fn new(test: &str, options: &[&str]) -> Option<Self> {
        let hosts = Self { name: format!("{test}-{}", std::process::id()) };
        let up = hosts.vmmc(&[&["testbed", "up", "-n", "2"], options].concat());
        let said = String::from_utf8_lossy(&up.stderr);
        let reasons = ["needs root", "no user namespace", "install the package iproute2"];
        if reasons.iter().any(|reason| said.contains(reason)) {
            eprintln!("left out: {said}");
            return None;
        }
        assert!(up.status.success(), "{said}");
        for node in 1..=2 {
            hosts.start_service(node);
        }
        Some(hosts)
    }

    fn start_service(&self, node: u8) {
        let node = node.to_string();
        let words = ["testbed", "run", "--node", &node, "--", env!("CARGO_BIN_EXE_vmmc")];
        let started = self.vmmc(&[&words[..], &["node", "start"]].concat());
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmmc"));
        command.args(&arguments[..1]).args(["--name", &self.name]).args(&arguments[1..]);
        // The services must live as long as the test looks elsewhere.
        command.env("VMMC_NODE_IDLE_SECONDS", "60");
        command
    }

    fn vmmc(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn change_cable(&self, what: &str, arguments: &[&str]) {
        let words = [&["testbed", what, "--node", "2"], arguments].concat();
        assert!(self.vmmc(&words).status.success());
    }

    fn process(&self, node: u8) -> Process {
        let status = self.vmmc(&["testbed", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let dir = status["nodes"][usize::from(node) - 1]["runtime_dir"].as_str().unwrap();
        Process::options().runtime_dir(PathBuf::from(dir)).start_service(false).open().unwrap()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.vmmc(&["testbed", "down"]);
    }
}

/// Where packets are lost, or cables cut, an import may have to be asked for again.
fn board(process: &Process, node: &str) -> Import {
    let start = Instant::now();
    loop {
        match process.import(ImportSource::Name("board".to_owned())).node(node).open() {
            Err(ImportError::Unreachable | ImportError::Timeout) if start.elapsed() < FOREVER => {}
            opened => return opened.unwrap(),
        }
    }
}

/// Sends patterns and compares what is there, by both sides' eyes, until `enough`.
fn exchange(export: &vmmc::Export, import: &Import, mut enough: impl FnMut(u64) -> bool) {
    let start = Instant::now();
    let mut found = vec![0; 40_000];
    for round in 1.. {
        if enough(round) {
            return;
        }
        assert!(start.elapsed() < FOREVER, "too slow");
        let bytes: Vec<u8> = (0..40_000).map(|at| (at as u64 * 3 + round) as u8).collect();
        patiently(|| import.send_signal(0, &bytes, 40_000, round));
        assert_eq!(export.load_signal(40_000), Ok(round));
        export.read(0, &mut found).unwrap();
        assert!(found == bytes, "round {round}");
        found.fill(0);
        patiently(|| import.fetch(0, &mut found));
        assert!(found == bytes, "round {round}");
    }
}

/// A call waits two seconds for the service; with a cable cut it may have to be made again.
fn patiently(mut call: impl FnMut() -> Result<(), TransferError>) {
    let start = Instant::now();
    loop {
        match call() {
            Err(TransferError::Timeout) if start.elapsed() < FOREVER => {}
            result => return result.unwrap(),
        }
    }
}

#[test]
fn bytes_arrive_exactly_through_a_wire_that_loses() {
    let Some(hosts) = Hosts::new("lossy", &["--loss", "2%"]) else { return };
    let (exporter, importer) = (hosts.process(2), hosts.process(1));
    let export = exporter.export(65_536).name("board").create().unwrap();
    exchange(&export, &board(&importer, "node2"), |round| round > 50);
}

#[test]
fn a_cable_cut_and_healed_under_load_loses_nothing() {
    let Some(hosts) = Hosts::new("healed", &[]) else { return };
    let (exporter, importer) = (hosts.process(2), hosts.process(1));
    let export = exporter.export(65_536).name("board").create().unwrap();
    let import = board(&importer, "node2");
    std::thread::scope(|scope| {
        let cutter = scope.spawn(|| {
            for _ in 0..3 {
                hosts.change_cable("cut", &[]);
                std::thread::sleep(Duration::from_millis(300));
                hosts.change_cable("heal", &[]);
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        exchange(&export, &import, |round| round > 50 && cutter.is_finished());
    });
}

#[test]
fn with_two_rails_one_is_enough() {
    let Some(hosts) = Hosts::new("rails", &["--rails", "2"]) else { return };
    let (exporter, importer) = (hosts.process(2), hosts.process(1));
    let export = exporter.export(65_536).name("board").create().unwrap();
    let import = board(&importer, "node2");
    exchange(&export, &import, |round| round > 20);
    hosts.change_cable("cut", &["--rail", "2"]);
    exchange(&export, &import, |round| round > 20);
    // The first may be asked for imports too: once its cable is gone, that has to wait, but bytes need not.
    hosts.change_cable("heal", &["--rail", "2"]);
    exchange(&export, &import, |round| round > 20);
    hosts.change_cable("cut", &["--rail", "1"]);
    exchange(&export, &import, |round| round > 20);
}

#[test]
fn a_cable_that_stays_cut_is_a_dead_node() {
    let Some(hosts) = Hosts::new("dead", &[]) else { return };
    let (exporter, importer) = (hosts.process(2), hosts.process(1));
    let export = exporter.export(65_536).name("board").create().unwrap();
    let import = board(&importer, "node2");
    import.signal(0, 1).unwrap();
    hosts.change_cable("cut", &[]);
    let start = Instant::now();
    while import.state() == ExportState::Live {
        assert!(start.elapsed() < FOREVER);
        let _ = import.signal(0, 2);
    }
    assert_eq!(import.signal(0, 3), Err(TransferError::Dead));
    hosts.change_cable("heal", &[]);
    // The exporter lives: it is only imported anew.
    board(&importer, "node2").signal(0, 4).unwrap();
    assert_eq!(export.load_signal(0), Ok(4));
}

/// Ended with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn measurements_run_between_nodes() {
    let Some(hosts) = Hosts::new("bench", &[]) else { return };
    let run = |node, arguments: &[&str]| {
        let words = ["testbed", "run", "--node", node, "--", env!("CARGO_BIN_EXE_vmmc"), "bench"];
        let mut command = hosts.command(&[&words[..], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let _server = Background(run("2", &["--serve"]).spawn().unwrap());
    for name in ["send-latency", "fetch-latency", "send-bandwidth", "fetch-bandwidth", "send-rate"]
    {
        let words = [
            name,
            "--node",
            "node2",
            "--json",
            "--sizes",
            "8,64K",
            "--rounds",
            "1",
            "--seconds",
            "0.3",
        ];
        let start = Instant::now();
        let report = loop {
            let output = run("1", &words).output().unwrap();
            if output.status.success() {
                break output.stdout;
            }
            // The server may not listen yet.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("refused") && start.elapsed() < FOREVER, "{said}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        let rows = report["rows"].as_array().unwrap();
        let paths: Vec<_> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
        let mut expected = vec!["vmmc", "tcp-spinning", "tcp-blocking"];
        match name {
            "send-latency" => expected.insert(1, "vmmc-waiting"),
            "send-bandwidth" | "fetch-bandwidth" => expected.insert(1, "vmmc-async"),
            "send-rate" => expected = vec!["vmmc-async", "vmmc"],
            _ => {}
        }
        assert_eq!(paths, expected.repeat(2), "{name}");
        assert!(rows.iter().all(|row| row["p50"].as_f64().unwrap() > 0.0));
    }
    let words = ["congestion", "--node", "node2", "--json", "--rounds", "1", "--seconds", "1"];
    let output = run("1", &words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let parts = |path: &str| rows.iter().filter(|row| row["path"] == path).count();
    // Alone, and beside each kind of TCP that this kernel has.
    assert_eq!((parts("vmmc") - 1) * 2, rows.len() - parts("vmmc"));
    assert!(rows.iter().all(|row| row["p50"].as_f64().unwrap() > 0.0), "{rows:?}");
}

#[test]
fn a_service_tells_of_its_paths_to_other_nodes() {
    let Some(hosts) = Hosts::new("paths", &[]) else { return };
    let run = |node, arguments: &[&str]| {
        let words = ["testbed", "run", "--node", node, "--", env!("CARGO_BIN_EXE_vmmc")];
        hosts.command(&[&words[..], arguments].concat())
    };
    let _server = Background(run("2", &["bench", "--serve"]).spawn().unwrap());
    let measure = ["bench", "send-latency", "--node", "node2", "--sizes", "8", "--seconds", "1"];
    let start = Instant::now();
    // The service's own, and those of the processes that measure.
    let (mut path, mut own) = (None, None);
    while path.is_none() || own.is_none() {
        let mut command = run("1", &measure);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut bench = Background(command.spawn().unwrap());
        while bench.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < FOREVER, "nothing is told of node2");
            let told = |arguments: &[&str]| -> serde_json::Value {
                let output = run("1", arguments).output().unwrap();
                serde_json::from_slice(&output.stdout).unwrap()
            };
            let (status, stat) = (told(&["node", "status", "--json"]), told(&["stat", "--json"]));
            let mut paths = status["paths"].as_array().into_iter().flatten();
            path = path.or(paths.find(|path| path["node"] == "node2").cloned());
            let programs = stat["processes"].as_array().into_iter().flatten();
            let mut paths = programs.filter_map(|program| program["paths"].as_array()).flatten();
            own = own.or(paths.next().cloned());
        }
    }
    let (path, own) = (path.unwrap(), own.unwrap());
    assert!(own["mtu"].as_u64().unwrap() >= 1200 && own["up"] == true, "{own}");
    assert_eq!((&path["path"], &path["up"]), (&0.into(), &true.into()), "{path}");
    assert!(path["mtu"].as_u64().unwrap() >= 1200, "{path}");
}
