//! A runtime directory for one test, and other processes to play with.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod dice;
pub(crate) mod stranger;

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use vmmc::{OpenOptions, Process};

/// Longer than anything takes on the slowest machine; only to end a test that hangs.
pub(crate) const FOREVER: Duration = Duration::from_secs(120);

/// A node of its own: a runtime directory that nobody else uses. The service in it ends with the last that names it.
pub(crate) struct Node {
    dir: Arc<tempfile::TempDir>,
    runtime: PathBuf,
}

impl Node {
    pub(crate) fn new() -> Self {
        // The library finds it where cargo puts it.
        vmmc_program();
        let dir = tempfile::Builder::new().prefix("vmmc-test-").tempdir().unwrap();
        let runtime = dir.path().join("run");
        Self { dir: Arc::new(dir), runtime }
    }

    /// In an actor: the node that it was started in. Whoever started it ends the service.
    pub(crate) fn of_environment() -> std::mem::ManuallyDrop<Self> {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let runtime = std::env::var_os("VMMC_RUNTIME_DIR").unwrap().into();
        std::mem::ManuallyDrop::new(Self { dir, runtime })
    }

    /// The same node under another name.
    pub(crate) fn same(&self) -> Self {
        Self { dir: Arc::clone(&self.dir), runtime: self.runtime.clone() }
    }

    /// Nodes that know each other by these names, each at a loopback address of its own.
    pub(crate) fn cluster<const N: usize>(names: [&str; N]) -> [Self; N] {
        let key = "5a".repeat(32);
        let addresses = names.map(|_| format!("{}:7411", loopback_address()));
        std::array::from_fn(|own| {
            let node = Self::new();
            std::fs::DirBuilder::new().mode(0o700).create(&node.runtime).unwrap();
            let mut toml = String::new();
            for (index, (name, address)) in names.iter().zip(&addresses).enumerate() {
                let head = if index == own { "" } else { "[[node]]\n" };
                let entry = format!("{head}name = \"{name}\"\naddresses = [\"{address}\"]\n");
                // What is the node's own has to come before the tables.
                toml = if index == own { entry + &toml } else { toml + &entry };
            }
            node.configure(&format!("key_file = \"cluster.key\"\n{toml}"), &key);
            node
        })
    }

    /// Writes `node.toml` and `cluster.key`, for the next service.
    pub(crate) fn configure(&self, toml: &str, key: &str) {
        std::fs::write(self.runtime.join("node.toml"), toml).unwrap();
        let path = self.runtime.join("cluster.key");
        std::fs::write(&path, key).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        &self.runtime
    }

    pub(crate) fn options(&self) -> OpenOptions {
        Process::options().runtime_dir(self.path())
    }

    pub(crate) fn open(&self) -> Process {
        self.options().open().unwrap()
    }

    /// A process in polled mode.
    pub(crate) fn open_polled(&self) -> Process {
        self.options().watcher(false).open().unwrap()
    }

    /// Runs `vmmc node ...` here.
    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(vmmc_program())
            .arg("node")
            .args(arguments)
            .env("VMMC_RUNTIME_DIR", self.path())
            .output()
            .unwrap()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.command(&["status", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn service_pid(&self) -> Option<i32> {
        self.status()["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap())
    }

    /// Starts another process that runs the test `actor` of this program, with `role` and `argument`.
    pub(crate) fn actor(&self, role: &str, argument: &str) -> Actor {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "actor", "--nocapture", "--test-threads=1"])
            .env("VMMC_RUNTIME_DIR", self.path())
            .env("VMMC_TEST_ROLE", role)
            .env("VMMC_TEST_ARGUMENT", argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Actor::of(child)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if Arc::strong_count(&self.dir) > 1 {
            return;
        }
        if let Some(pid) = self.service_pid_quietly() {
            kill(pid, libc::SIGCONT);
        }
        self.command(&["stop"]);
    }
}

impl Node {
    fn service_pid_quietly(&self) -> Option<i32> {
        let output = self.command(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())
    }
}

/// A loopback address that nobody else uses: the process's number is in it.
fn loopback_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert_ne!(next, 0, "this test program has used all its addresses");
    // 127.0.x.x belongs to those who think of localhost.
    Ipv4Addr::new(127, high.max(1), low, next)
}

/// Another process; killed when dropped.
pub(crate) struct Actor {
    pub(crate) child: Child,
    lines: BufReader<ChildStdout>,
    input: Option<ChildStdin>,
}

impl Actor {
    /// Of a program that was started with pipes.
    pub(crate) fn of(mut child: Child) -> Self {
        let lines = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take();
        Self { child, lines, input }
    }

    /// What it said next with [`say`].
    pub(crate) fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the actor has ended");
            // The test program's own output may stand before it on the line.
            if let Some(at) = line.find('@') {
                return line[at + 1..].trim().to_owned();
            }
        }
    }

    /// Lets it go on from [`listen`].
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended by itself, and well.
    pub(crate) fn finish(mut self) {
        self.input = None;
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In an actor: its role and argument; `None` in the ordinary run of the test program.
pub(crate) fn role() -> Option<(String, String)> {
    let role = std::env::var("VMMC_TEST_ROLE").ok()?;
    Some((role, std::env::var("VMMC_TEST_ARGUMENT").unwrap()))
}

/// In an actor: says a line to the test.
pub(crate) fn say(line: impl std::fmt::Display) {
    println!("@{line}");
    std::io::stdout().flush().unwrap();
}

/// In an actor: waits for a line from the test; empty when it wants the actor to end.
pub(crate) fn listen() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the tests only name processes that they started.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + FOREVER;
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The `vmmc` command: the one that `VMMC_NODE_PROGRAM` names, or that of this build, brought up to date.
pub(crate) fn vmmc_program() -> PathBuf {
    static BUILD: Once = Once::new();
    if let Some(named) = std::env::var_os("VMMC_NODE_PROGRAM") {
        return named.into();
    }
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    let program = profile.join("vmmc");
    BUILD.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "vmmc-cli", "--bin", "vmmc"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().unwrap().success(), "cannot build the vmmc command");
    });
    program
}
