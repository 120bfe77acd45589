//! The Debian packages that the tests and the demo want, installed when that is allowed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vmmc_tests::{Running, find_program};

/// A program (or `python3 -m MODULE`, or the path of a file), the package that brings it (or several, ` | ` between them, as in
/// Debian's control files: the first that there is), and what is left out without it.
pub(crate) struct Wanted {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) without_it: &'static str,
}

const fn wanted(program: &'static str, package: &'static str, without_it: &'static str) -> Wanted {
    Wanted { program, package, without_it }
}

/// Not every mirror has the first.
const CPYTHON_TESTS: &str = "libpython3-testsuite | libpython3.11-testsuite";

/// What `cargo xtask demo` runs besides the workspace's own programs.
pub(crate) const FOR_DEMO: &[Wanted] = &[
    wanted("redis-server", "redis-server", "the redis rows"),
    wanted("redis-benchmark", "redis-tools", "the redis rows"),
];

/// What `cargo xtask test` runs besides cargo.
pub(crate) const FOR_TEST: &[Wanted] = &[
    wanted("redis-server", "redis-server", "the redis tests"),
    wanted("redis-benchmark", "redis-tools", "the redis tests"),
    wanted("iperf3", "iperf3", "the iperf3 tests"),
    wanted("sockperf", "sockperf", "the sockperf test"),
    wanted("nginx", "nginx-light", "the nginx tests"),
    wanted("curl", "curl", "the tests of nginx with curl"),
    wanted("wrk", "wrk", "the test of nginx with wrk"),
    wanted("python3", "python3", "the Python tests"),
    wanted("python3 -m test", CPYTHON_TESTS, "CPython's own tests"),
    wanted("apache2", "apache2", "the Apache tests"),
    wanted("ab", "apache2-utils", "the tests with ab"),
    wanted("haproxy", "haproxy", "the haproxy tests"),
    wanted("sshd", "openssh-server", "the OpenSSH tests"),
    wanted("ssh", "openssh-client", "the OpenSSH tests"),
    wanted("rsync", "rsync", "the rsync test"),
    wanted("git", "git", "the git test"),
    wanted("openssl", "openssl", "the tests with TLS"),
    wanted("h2load", "nghttp2-client", "the test of nginx with HTTP/2"),
    wanted("node", "nodejs", "the node test"),
    wanted("java", "default-jdk-headless", "the Java test"),
    wanted("memcached", "memcached", "the memcached test"),
    wanted("postgres", "postgresql", "the PostgreSQL test"),
    wanted("pgbench", "postgresql", "the PostgreSQL test"),
    wanted("mariadbd", "mariadb-server", "the MariaDB test"),
    wanted("mariadb-slap", "mariadb-client", "the MariaDB test"),
    wanted("mosquitto", "mosquitto", "the mosquitto test"),
    wanted("mosquitto_sub", "mosquitto-clients", "the mosquitto test"),
    wanted("lighttpd", "lighttpd", "the test of Varnish and lighttpd"),
    wanted("varnishd", "varnish", "the test of Varnish and lighttpd"),
    wanted("mpirun", "openmpi-bin", "the Open MPI test"),
    wanted("mpicc", "libopenmpi-dev", "the Open MPI test"),
    wanted("socat", "socat", "the socat test"),
    wanted("gunicorn", "gunicorn", "the gunicorn test"),
    wanted("/usr/lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio", "the gRPC test"),
    wanted("ip", "iproute2", "the tests between several hosts"),
    wanted("tc", "iproute2", "the tests between several hosts"),
    wanted("unshare", "util-linux", "the tests between several hosts"),
    wanted("nft", "nftables", "the test of containers behind address translation"),
    wanted("cc", "gcc", "the tests that compile small C programs"),
    wanted("valgrind", "valgrind", "the test of a program under valgrind"),
    wanted("/usr/include/liburing.h", "liburing-dev", "the test of a program with liburing"),
];

/// What `cargo xtask suites` runs.
pub(crate) const FOR_SUITES: &[Wanted] = &[
    wanted("python3", "python3", "CPython's tests"),
    wanted("python3 -m test", CPYTHON_TESTS, "CPython's tests"),
];

/// What `cargo xtask fuzz` builds the fuzzers with.
pub(crate) const FOR_FUZZ: &[Wanted] = &[wanted("c++", "g++", "the fuzzers")];

/// What `vmmc bench` measures beside its own ways.
pub(crate) const FOR_BENCH: &[Wanted] = &[
    wanted("ucx_perftest", "ucx-utils", "the rows of UCX"),
    wanted("fi_pingpong", "libfabric-bin", "the rows of libfabric"),
    wanted("cc", "gcc", "the row of UCX's registration cache"),
];

/// Packages that start a service, and its name.
const SERVICES: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("nginx-light", "nginx"),
    ("apache2", "apache2"),
    ("haproxy", "haproxy"),
    ("memcached", "memcached"),
    ("openssh-server", "ssh"),
    ("postgresql", "postgresql"),
    ("mariadb-server", "mariadb"),
    ("mosquitto", "mosquitto"),
    ("lighttpd", "lighttpd"),
    ("varnish", "varnish"),
];

/// How long apt may take.
const APT: Duration = Duration::from_secs(300);

/// Installs the packages of missing programs if we are root or `sudo` asks for no password.
/// Returns the programs that are still missing. `say` gets a line for everything that is done or left out.
pub(crate) fn install(wanted: &'static [Wanted], say: &dyn Fn(&str)) -> Vec<&'static Wanted> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return missing;
    }
    let mut names: Vec<_> = missing.iter().map(|wanted| wanted.package).collect();
    names.dedup();
    match privilege() {
        Some(prefix) => apt(&prefix, &names, say),
        None => say(&format!(
            "not installed, and neither root nor sudo without a password: run  sudo apt-get install {}",
            names.join(" ")
        )),
    }
    let still = self::missing(wanted);
    for wanted in &still {
        say(&format!(
            "{} is missing (Debian package {}): left out: {}",
            wanted.program, wanted.package, wanted.without_it
        ));
    }
    still
}

fn missing(wanted: &'static [Wanted]) -> Vec<&'static Wanted> {
    wanted.iter().filter(|wanted| !is_there(wanted.program)).collect()
}

fn is_there(program: &str) -> bool {
    match program.strip_prefix("python3 -m ") {
        Some("test") => vmmc_tests::cpython::tested_interpreter().is_some(),
        _ if program.starts_with('/') => Path::new(program).exists(),
        _ => find_program(program).is_some(),
    }
}

/// What to write before a command to run it as root.
fn privilege() -> Option<Vec<&'static str>> {
    if !Path::new("/usr/bin/apt-get").exists() {
        return None;
    }
    if rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    let mut sudo = Command::new("sudo");
    let may = Running::start(sudo.args(["-n", "true"]))
        .and_then(|mut sudo| sudo.succeed(Duration::from_secs(10)));
    may.is_ok().then(|| vec!["sudo", "-n"])
}

fn apt(prefix: &[&str], names: &[&str], say: &dyn Fn(&str)) {
    let call = |words: &[&str]| {
        let words: Vec<_> = prefix.iter().chain(words).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
        Running::start_with_input(&mut command, Stdio::null()).and_then(|mut apt| apt.succeed(APT))
    };
    say(&format!("installing the Debian packages {}", names.join(" ")));
    if let Err(error) = call(&["apt-get", "update", "-q"]) {
        say(&format!(
            "apt-get update failed, installing from the lists that are there: {}",
            first_line(&error.to_string())
        ));
    }
    let install = ["apt-get", "install", "-y", "-q", "--no-install-recommends"];
    // One by one: a package that this release does not have must not keep the others out.
    for name in names {
        let mut failed = None;
        let installed = name.split(" | ").find(|package| {
            failed = call(&[&install[..], &[*package]].concat()).err();
            failed.is_none()
        });
        let Some(package) = installed else {
            let error = failed.map(|error| error.to_string()).unwrap_or_default();
            say(&format!("{name} could not be installed: {}", first_line(&error)));
            continue;
        };
        // We start our own servers on our own ports; the packages' services would only hold theirs.
        let service =
            SERVICES.iter().find(|(name, _)| *name == package).map(|(_, service)| *service);
        if let Some(service) = service.filter(|_| Path::new("/run/systemd/system").exists())
            && call(&["systemctl", "disable", "--now", service]).is_ok()
        {
            say(&format!(
                "the system service {service}, started by its package, was stopped and disabled"
            ));
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
