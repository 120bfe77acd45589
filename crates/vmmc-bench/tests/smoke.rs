//! Every measurement once, with hardly any time: it ends, has all its rows, and they are figures.
//!
//! No harness: the measurements start this very program again as their other processes.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use vmmc_bench::{Bench, Options, PeerProgram, Report, Unit, run, serve_peer};

const COMPARED: [&str; 7] = [
    "vmmc",
    "shared-memory",
    "tcp-blocking",
    "tcp-spinning",
    "unix-blocking",
    "unix-spinning",
    "memcpy",
];

/// A name and what it does.
type Test = (&'static str, fn(&Place));

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, role] = &arguments[..]
        && flag == "--peer"
    {
        return serve_peer(role);
    }
    let tests: [Test; 13] = [
        ("latencies", latencies),
        ("bandwidths", bandwidths),
        ("send_rate", send_rate),
        ("notify", notify),
        ("redirection", redirection),
        ("scale", scale),
        ("setup", setup),
        ("utlb", utlb),
        ("sockets", sockets),
        ("connections", connections),
        ("loans", loans),
        ("idle", idle),
        ("no_peer", no_peer),
    ];
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let place = Place::new();
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if wanted.is_none_or(|wanted| name.contains(wanted.as_str())) {
            test(&place);
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// A runtime directory of our own, and the `vmmc` program.
struct Place {
    vmmc: PathBuf,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::Builder::new().prefix("vmmc-bench-").tempdir().unwrap();
        let vmmc = vmmc_program();
        // SAFETY: this program has one thread.
        unsafe {
            std::env::set_var("VMMC_RUNTIME_DIR", directory.path().join("vmmc"));
            std::env::set_var("VMMC_NODE_PROGRAM", &vmmc);
        }
        Place { vmmc, directory }
    }

    fn options(&self, sizes: &[usize]) -> Options {
        Options {
            sizes: sizes.to_vec(),
            seconds: Some(0.1),
            rounds: Some(2),
            connections: 200,
            progress: false,
            peer: PeerProgram { program: std::env::current_exe().unwrap(), arguments: Vec::new() },
            vmmc: self.vmmc.clone(),
            ..Options::default()
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut stop = Command::new(&self.vmmc);
        stop.args(["node", "stop"]).env("VMMC_RUNTIME_DIR", self.directory.path().join("vmmc"));
        let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// `vmmc` beside its library: from `$VMMC_TEST_PROGRAMS` if that is set, else built in this profile. It has to be built even if it is
/// there, for `cargo test` does not build the library anew.
fn vmmc_program() -> PathBuf {
    if let Some(directory) = std::env::var_os("VMMC_TEST_PROGRAMS") {
        return Path::new(&directory).join("vmmc");
    }
    let deps = std::env::current_exe().unwrap();
    let profile = deps.ancestors().nth(2).unwrap();
    let release = profile.file_name().is_some_and(|name| name == "release");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", "vmmc-cli", "-p", "vmmc-preload"]);
    build.args(release.then_some("--release"));
    build.arg("--target-dir").arg(profile.parent().unwrap());
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    assert!(build.status().unwrap().success(), "vmmc cannot be built");
    profile.join("vmmc")
}

fn check(report: &Report, expected: &[(&str, usize)]) {
    for (path, size) in expected {
        let rows = report.rows.iter().filter(|row| row.path == *path && row.size == *size);
        assert!(rows.count() >= 1, "no row {path} {size}");
    }
    for row in &report.rows {
        assert!(row.p50 > 0.0 && row.p50.is_finite(), "{row:?}");
        // Programs of others that tell one figure only.
        if ["libfabric-shm", "iceoryx2", "ucx-cma"].contains(&row.path.as_str()) {
            continue;
        }
        let (p99, p999) = (row.p99.unwrap(), row.p999.unwrap());
        let ordered = match row.unit {
            Unit::Nanoseconds | Unit::Microseconds | Unit::Kibibytes => p99 <= p999,
            Unit::GigabytesPerSecond | Unit::MillionsPerSecond => p99 >= p999,
        };
        assert!(ordered && row.samples > 0, "{row:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["bench"], report.bench.name());
    assert_eq!(json["rows"].as_array().unwrap().len(), report.rows.len());
}

fn all_paths(sizes: &[usize]) -> Vec<(&'static str, usize)> {
    let of_size = |size: usize| COMPARED.map(|path| (path, size));
    sizes.iter().flat_map(|size| of_size(*size)).chain([("line", 64)]).collect()
}

fn latencies(place: &Place) {
    let sizes = [4, 8, 100, 65536];
    for bench in [Bench::SendLatency, Bench::FetchLatency] {
        check(&run(bench, &place.options(&sizes)).unwrap(), &all_paths(&sizes));
    }
}

fn bandwidths(place: &Place) {
    let sizes = [4, 1000, 1 << 20];
    for bench in [Bench::SendBandwidth, Bench::FetchBandwidth] {
        let report = run(bench, &place.options(&sizes)).unwrap();
        check(&report, &all_paths(&sizes));
        assert_eq!(report.rows[0].unit, Unit::GigabytesPerSecond);
        let unread = report.rows.iter().any(|row| row.path == "vmmc-unread");
        assert_eq!(unread, bench == Bench::SendBandwidth);
    }
}

fn send_rate(place: &Place) {
    let report = run(Bench::SendRate, &place.options(&[])).unwrap();
    let paths = ["vmmc", "vmmc-sync", "shared-memory", "vmmc-write-only", "vmmc-write-only-sync"];
    check(&report, &paths.map(|path| (path, 8)));
    check(&report, &paths.map(|path| (path, 64)));
    assert!(report.rows.iter().all(|row| row.unit == Unit::MillionsPerSecond));
}

fn notify(place: &Place) {
    let report = run(Bench::Notify, &place.options(&[])).unwrap();
    let ways = ["vmmc", "vmmc-wait", "vmmc-awake", "eventfd", "futex"];
    check(&report, &ways.map(|way| (way, 8)));
    let parts = |path: &str| {
        let rows = report.rows.iter().filter(|row| row.path == path);
        rows.map(|row| row.part.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(parts("vmmc"), ["total", "post", "wake", "run"]);
    assert_eq!(parts("vmmc-busy"), ["total", "post", "wake", "run", "return"]);
}

fn redirection(place: &Place) {
    let report = run(Bench::Redirection, &place.options(&[5000, 1 << 20])).unwrap();
    let ways = ["vmmc-redirected", "copied", "vmmc-redirectable", "not-redirectable"];
    check(&report, &ways.map(|way| (way, 1 << 20)));
    check(&report, &[("vmmc-redirectable", 8), ("not-redirectable", 8)]);
    assert_eq!(report.rows.len(), 2 + 2 * 4, "8 bytes, and sizes by ways");
}

fn scale(place: &Place) {
    let options = Options { processes: 20, imports: 1010, ..place.options(&[]) };
    let report = run(Bench::Scale, &options).unwrap();
    check(&report, &[("vmmc-loaded", 4096), ("empty", 4096)]);
    assert_eq!(
        report.rows.len(),
        2 * 9,
        "eight operations and the memory, with the crowd and without"
    );
    let told = |note: &String| note.contains("20 processes, 1010 imports");
    assert!(report.notes.iter().any(told), "{:?}", report.notes);
}

fn setup(place: &Place) {
    let report = run(Bench::Setup, &place.options(&[4096, 65536])).unwrap();
    check(&report, &[("vmmc", 4096), ("shared-memory", 65536)]);
    assert_eq!(report.rows.len(), 2 * 2 * 4, "sizes, paths, parts");
    assert!(report.rows.iter().all(|row| row.first.is_some()));
}

fn utlb(place: &Place) {
    let report = run(Bench::Utlb, &place.options(&[4096, 65536])).unwrap();
    check(&report, &[("vmmc", 8), ("vmmc", 4096), ("system-call", 65536)]);
    let parts = |path: &str| {
        let rows = report.rows.iter().filter(|row| row.path == path && row.size == 4096);
        rows.map(|row| row.part.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(parts("vmmc"), ["pin", "unpin", "miss-with-eviction"]);
    assert_eq!(parts("system-call"), ["pin", "unpin", "miss-with-eviction"]);
    assert!(report.rows.iter().all(|row| row.unit == Unit::Nanoseconds));
}

fn sockets(place: &Place) {
    let report = run(Bench::Sockets, &place.options(&[8, 4096])).unwrap();
    let paths = ["tcp-blocking", "tcp-spinning", "lifted", "lifted-spinning"];
    check(&report, &paths.map(|path| (path, 8)));
}

fn connections(place: &Place) {
    let report = run(Bench::Connections, &place.options(&[64, 1024])).unwrap();
    check(
        &report,
        &[("tcp-blocking", 64), ("lifted", 64), ("tcp-blocking", 1024), ("lifted", 1024)],
    );
    assert!(report.rows.iter().all(|row| row.part == Some("connection")));
}

fn loans(place: &Place) {
    let report = run(Bench::Loans, &place.options(&[64, 4096])).unwrap();
    let paths = ["tcp-blocking", "tcp-in-place", "lifted", "lifted-in-place"];
    check(&report, &paths.map(|path| (path, 64)));
}

fn idle(place: &Place) {
    let report = run(Bench::Idle, &place.options(&[])).unwrap();
    let parts = |path: &str| {
        let rows = report.rows.iter().filter(|row| row.path == path && row.size == 200);
        rows.map(|row| row.part.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(parts("tcp"), ["processes", "kernel", "all"]);
    assert_eq!(parts("lifted"), ["processes", "kernel", "all"]);
    // Two rings of a page each belong to a lifted connection: it was lifted, and they are counted. What the programs
    // give back meanwhile is less.
    let lifted = report.rows.iter().find(|row| row.path == "lifted").unwrap();
    assert!(lifted.p50 > 4.0, "{lifted:?}");
    // Parked, they have given these back.
    assert_eq!(parts("parked"), ["processes", "kernel", "all"]);
    let parked = report.rows.iter().find(|row| row.path == "parked").unwrap();
    assert!(parked.p50 < lifted.p50 - 4.0, "{parked:?} {lifted:?}");
}

fn no_peer(place: &Place) {
    let mut options = place.options(&[8]);
    options.peer.program = "/nonexistent/vmmc".into();
    let message = run(Bench::SendLatency, &options).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/vmmc") && message.contains("installed"), "{message}");
    options.peer.program = "/bin/false".into();
    assert!(run(Bench::SendLatency, &options).is_err());
}
