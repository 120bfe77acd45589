//! `vmmc testbed` from outside. Where namespaces cannot be made the tests say so and end.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A user without rights; there need not be one of that number.
const SOMEBODY: &str = "54321";

/// One testbed, removed when the test ends, however it ends.
struct Testbed {
    vmmc: Vec<PathBuf>,
    name: String,
}

impl Testbed {
    /// Made by the user who runs the tests; `None` if that user may not.
    fn new(test: &str, options: &[&str]) -> Option<Self> {
        Self::made_by(vec![env!("CARGO_BIN_EXE_vmmc").into()], test, options)
    }

    fn made_by(vmmc: Vec<PathBuf>, test: &str, options: &[&str]) -> Option<Self> {
        let name = format!("{test}-{}", std::process::id());
        let testbed = Self { vmmc, name };
        let up = testbed.vmmc(&[&["up"], options].concat());
        let said = String::from_utf8_lossy(&up.stderr);
        let reasons = ["needs root", "no user namespace", "install the package iproute2"];
        if reasons.iter().any(|reason| said.contains(reason)) {
            eprintln!("left out: {said}");
            return None;
        }
        assert!(up.status.success(), "{said}");
        Some(testbed)
    }

    fn vmmc(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.vmmc[0]);
        command.args(&self.vmmc[1..]).args(["testbed", "--name", &self.name]).args(arguments);
        command.output().unwrap()
    }

    /// As [`Self::vmmc`], and it has to succeed; what was printed.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.vmmc(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn on(&self, node: u8, command: &[&str]) -> String {
        self.said(&[&["run", "--node", &node.to_string(), "--"], command].concat())
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.said(&["status", "--json"])).unwrap()
    }

    fn has_carrier(&self, node: u8, device: &str) -> bool {
        self.on(node, &["ip", "-br", "link", "show", device]).contains("LOWER_UP")
    }

    /// UDP packets that came to a node and to no socket there.
    fn strays(&self, node: u8) -> u64 {
        let counters = self.on(node, &["cat", "/proc/net/snmp"]);
        let values = counters.lines().filter(|line| line.starts_with("Udp:")).nth(1).unwrap();
        values.split_whitespace().nth(2).unwrap().parse().unwrap()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.vmmc(&["down"]);
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn nodes_have_their_addresses_and_directories_and_down_leaves_nothing() {
    let options = ["-n", "3", "--rails", "2", "--mtu", "9000"];
    let Some(testbed) = Testbed::new("nodes", &options) else { return };
    let addresses = testbed.on(3, &["ip", "-br", "address"]);
    for address in ["10.77.1.3/24", "10.77.2.3/24", "fd76:6d63:0:1::3/64", "fd76:6d63:0:2::3/64"] {
        assert!(addresses.contains(address), "{addresses}");
    }
    assert!(testbed.on(1, &["ip", "link", "show", "rail2"]).contains("mtu 9000"));
    if is_root() {
        assert!(testbed.on(1, &["ls", "/sys/class/net"]).contains("rail2"));
    }
    assert_eq!(testbed.on(2, &["sh", "-c", "echo $VMMC_TESTBED_NODE"]), "2\n");
    let status = testbed.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    let runtime_dir = status["nodes"][1]["runtime_dir"].as_str().unwrap();
    assert_eq!(testbed.on(2, &["sh", "-c", "echo $VMMC_RUNTIME_DIR"]).trim(), runtime_dir);
    assert!(Path::new(runtime_dir).is_dir());

    // A program that would stay for ever goes with its node.
    let mut sleeper = Command::new(&testbed.vmmc[0])
        .args(["testbed", "--name", &testbed.name, "run", "--node", "1", "--", "sleep", "1000"])
        .spawn()
        .unwrap();
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    while network(&sleeper.id().to_string()) == network("self") {
        assert!(sleeper.try_wait().unwrap().is_none(), "it never got there");
        std::thread::yield_now();
    }
    assert_eq!(testbed.said(&["down"]), "down\n");
    assert!(!sleeper.wait().unwrap().success());
    assert_eq!(testbed.status()["up"], false);
    assert!(!Path::new(runtime_dir).exists());
    let namespaces = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&namespaces.stdout).contains(&testbed.name));
    assert_eq!(testbed.said(&["down"]), "no testbed was up\n");
}

#[test]
fn a_cut_cable_has_no_carrier_until_it_is_healed() {
    let Some(testbed) = Testbed::new("cut", &["--rails", "2"]) else { return };
    assert!(testbed.has_carrier(2, "rail1") && testbed.has_carrier(2, "rail2"));
    testbed.said(&["cut", "--node", "2", "--rail", "1"]);
    assert!(!testbed.has_carrier(2, "rail1") && testbed.has_carrier(2, "rail2"));
    let rails = &testbed.status()["nodes"][1]["rails"];
    assert_eq!((&rails[0]["plugged"], &rails[1]["plugged"]), (&false.into(), &true.into()));
    testbed.said(&["heal", "--node", "2"]);
    assert!(testbed.has_carrier(2, "rail1"));
    for wrong in [["cut", "--node", "3"], ["heal", "--node", "0"]] {
        let refused = testbed.vmmc(&wrong);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("2 nodes and 2 rails"));
    }
}

#[test]
fn packets_are_lost_one_by_one_and_slowed_down() {
    let options = ["--loss", "50%", "--rate", "100mbit"];
    let Some(testbed) = Testbed::new("loss", &options) else { return };
    let shape = testbed.on(1, &["tc", "qdisc", "show", "dev", "rail1"]);
    assert!(shape.contains("tbf") && shape.contains("100Mbit"), "{shape}");
    assert!(testbed.on(1, &["ip", "-d", "link", "show", "rail1"]).contains("gso_max_segs 1"));
    // The neighbour is told, as the question for it may get lost.
    let link = testbed.on(2, &["ip", "-br", "link", "show", "rail1"]);
    let address = link.split_whitespace().nth(2).unwrap();
    let words = ["neigh", "replace", "10.77.1.2", "lladdr", address, "dev", "rail1"];
    testbed.on(1, &[&["ip"], &words[..]].concat());
    let before = testbed.strays(2);
    testbed.on(1, &["bash", "-c", "for i in {1..1000}; do echo > /dev/udp/10.77.1.2/9; done"]);
    let arrived = testbed.strays(2) - before;
    // Nine standard deviations to either side.
    assert!((350..650).contains(&arrived), "{arrived} of 1000");
}

#[test]
fn a_cable_with_a_delay_takes_that_time_and_can_be_cut() {
    let options = ["--delay", "30ms", "--mtu", "9000"];
    let Some(testbed) = Testbed::new("delay", &options) else { return };
    // Nobody listens: the answer is there after one round trip.
    let ask = || {
        let start = Instant::now();
        let words = ["bash", "-c", "exec 3<>/dev/tcp/10.77.1.2/9"];
        let refused = testbed.vmmc(&[&["run", "--node", "1", "--"], &words[..]].concat());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("refused"));
        start.elapsed()
    };
    ask();
    assert!(ask() >= Duration::from_millis(60));
    assert!(testbed.on(2, &["ip", "link", "show", "rail1"]).contains("mtu 9000"));
    testbed.said(&["cut", "--node", "2"]);
    assert!(!testbed.has_carrier(2, "rail1") && testbed.has_carrier(1, "rail1"));
    testbed.said(&["heal", "--node", "2"]);
    assert!(testbed.has_carrier(2, "rail1"));
    ask();
    if !is_root() {
        return;
    }
    // Whoever passes the packets on is killed: the next one is made anew.
    let switch = format!("vmmc-{}-switch", testbed.name);
    let pids = Command::new("ip").args(["netns", "pids", &switch]).output().unwrap();
    let pid = String::from_utf8(pids.stdout).unwrap();
    assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    while Path::new(&format!("/proc/{}/ns/mnt", pid.trim())).exists() {
        std::thread::yield_now();
    }
    testbed.said(&[&["up"], &options[..]].concat());
    ask();
}

#[test]
fn a_second_up_is_refused_and_one_that_lost_a_part_is_repaired() {
    let Some(testbed) = Testbed::new("repair", &[]) else { return };
    let again = testbed.vmmc(&["up"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is up already"));
    if is_root() {
        let lost = format!("vmmc-{}-2", testbed.name);
        assert!(Command::new("ip").args(["netns", "delete", &lost]).status().unwrap().success());
        testbed.said(&["up", "-n", "1"]);
        assert_eq!(testbed.status()["nodes"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_user_without_rights_gets_a_testbed_in_a_user_namespace() {
    if !is_root() {
        eprintln!(
            "left out: only root can become somebody else; the other tests try it without rights"
        );
        return;
    }
    // Where anybody may read and run it.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("vmmc");
    std::fs::copy(env!("CARGO_BIN_EXE_vmmc"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let words = ["setpriv", "--reuid", SOMEBODY, "--regid", SOMEBODY, "--clear-groups"];
    let vmmc = words.iter().map(PathBuf::from).chain([program.clone()]).collect();
    // A delay needs a device that is for everybody on most systems.
    let tun = std::fs::metadata("/dev/net/tun").is_ok_and(|tun| tun.mode() & 0o666 == 0o666);
    let delay: &[&str] = if tun { &["--delay", "1ms"] } else { &[] };
    let testbed = Testbed::made_by(vmmc, "somebody", &[&["-n", "2"], delay].concat());
    let Some(testbed) = testbed else { return };
    assert!(testbed.on(2, &["ip", "-br", "address"]).contains("10.77.1.2/24"));

    // Its keeper killed: everything is gone, and the next one comes up.
    let noted = format!("/tmp/vmmc-testbed-{SOMEBODY}/{}.keeper", testbed.name);
    let keeper = std::fs::read_to_string(&noted).unwrap();
    let pid = keeper.split(' ').next().unwrap();
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    while Path::new(&format!("/proc/{pid}/ns/mnt")).exists() {
        std::thread::yield_now();
    }
    assert_eq!(testbed.status()["up"], false);
    testbed.said(&["up", "-n", "1"]);
    assert!(testbed.on(1, &["ip", "-br", "address"]).contains("10.77.1.1/24"));
    assert_eq!(testbed.said(&["down"]), "down\n");
    assert!(!Path::new(&noted).exists());
    // Nobody of that number will use it again.
    let _ = std::fs::remove_dir(format!("/tmp/vmmc-testbed-{SOMEBODY}"));
}
