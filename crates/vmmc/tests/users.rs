//! Processes of different users at the host's service. Only root can make them.

mod harness;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Actor, FOREVER, listen, role, say, vmmc_program};
use vmmc::{Allow, ImportError, ImportSource, Notify, PairingEvent, Process};

/// Users without a name.
const EXPORTER: u32 = 917_011;
const IMPORTER: u32 = 917_012;
const HOSTILE: u32 = 917_013;

#[test]
fn actor() {
    match role() {
        Some((role, importer)) if role == "exporter" => exporter(importer.parse().unwrap()),
        Some((role, ids)) if role == "importer" => importer(&ids),
        Some((role, id)) if role == "spoiler" => spoiler(&id),
        Some((role, _)) if role == "linger" => linger(),
        Some((role, socket)) if role == "linger beside nonsense" => linger_beside_nonsense(&socket),
        Some((role, _)) if role == "outlives" => outlive(),
        Some((role, port)) if role == "ends" => end(&port),
        Some((role, _)) if role == "opens" => {
            Process::open().unwrap();
            say("open");
        }
        _ => {}
    }
}

/// The host's service, for one test.
struct Host(tempfile::TempDir);

impl Host {
    /// `None`, with a line, for those who are not root.
    fn new(test: &str) -> Option<Self> {
        // SAFETY: plain system call.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("{test}: skipped: only root can run processes of several users");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("vmmc-host-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = Self(dir);
        let started = host.command(&["node", "start", "--system"]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        Some(host)
    }

    fn command(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(vmmc_program());
        self.surround(command.args(arguments)).output().unwrap()
    }

    fn surround<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env_remove("VMMC_RUNTIME_DIR").env("VMMC_SYSTEM_DIR", self.0.path().join("run"));
        command.env("VMMC_SYSTEM_POLICY", self.0.path().join("none"))
    }

    fn actor(&self, uid: u32, role: &str, argument: &str) -> Actor {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "actor", "--nocapture", "--test-threads=1"]);
        command.env("VMMC_TEST_ROLE", role).env("VMMC_TEST_ARGUMENT", argument);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).uid(uid).gid(uid).current_dir("/");
        Actor::of(self.surround(&mut command).spawn().unwrap())
    }

    /// The number of its process.
    fn service(&self) -> i32 {
        let status = self.command(&["node", "status", "--system", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["pid"].as_i64().unwrap() as i32
    }

    /// Whatever a hostile process does, others are answered.
    fn serves_others(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        for _ in 0..3 {
            while !self.command(&["node", "status", "--system"]).status.success() {
                assert!(Instant::now() < end, "the service waits");
            }
            assert_eq!(self.actor(IMPORTER, "opens", "").hear(), "open");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.command(&["node", "stop", "--system"]);
    }
}

/// Exports one buffer to its own user and one to another; tells of the notifications that come.
fn exporter(importer: u32) {
    let process = Process::open().unwrap();
    let own = process.export(4096).name("own").create().unwrap();
    let granted = process.export(4096).name("granted").allow(Allow::User(importer));
    let granted = granted.notify(Notify::Event).create().unwrap();
    say(format!("{} {}", own.id(), granted.id()));
    while let Ok(notification) = granted.wait(FOREVER) {
        say(notification.last_word);
    }
}

/// Imports what it may, and rings.
fn importer(ids: &str) {
    let process = Process::open().unwrap();
    let (own, granted) = ids.split_once(' ').unwrap();
    let import = |source| process.import(source).open();
    let denied = import(ImportSource::Id(own.parse().unwrap())).unwrap_err();
    assert_eq!(denied, ImportError::NotAllowed);
    // A name alone means one's own user's.
    let unknown = import(ImportSource::Name("granted".into())).unwrap_err();
    assert_eq!(unknown, ImportError::UnknownExport);
    let shown: Vec<String> =
        process.exports().unwrap().into_iter().map(|export| export.name).collect();
    assert_eq!(shown, ["granted"]);
    assert!(process.processes().unwrap().iter().all(|found| found.uid == IMPORTER));
    let import = import(ImportSource::Id(granted.parse().unwrap())).unwrap();
    say("imported");
    while let Ok(word @ 1..) = listen().parse::<u64>() {
        import.send_notify(0, &word.to_ne_bytes()).unwrap();
        say("sent");
    }
}

/// Accepts a connection, pairs, and tells how the peer left it.
fn outlive() {
    let process = Process::options().watcher(false).open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    say(listener.local_addr().unwrap().port());
    let (socket, _) = listener.accept().unwrap();
    process.pair_offer(socket.as_fd()).unwrap();
    assert!(matches!(next(&process), PairingEvent::Matched { .. }));
    match next(&process) {
        PairingEvent::Broken { why, .. } => say(format!("{why:?}")),
        other => panic!("{other:?}"),
    }
}

/// Connects, pairs, and ends with much to be looked at before what it says last.
fn end(port: &str) {
    let process = Process::options().watcher(false).open().unwrap();
    let socket = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    process.pair_offer(socket.as_fd()).unwrap();
    let PairingEvent::Matched { pair, .. } = next(&process) else { panic!("not matched") };
    say("paired");
    listen();
    for _ in 0..20 {
        process.pair_hold(pair, socket.as_fd()).unwrap();
    }
    process.pair_drop(pair).unwrap();
    std::process::exit(0);
}

fn next(process: &Process) -> PairingEvent {
    let deadline = Instant::now() + FOREVER;
    loop {
        if let Some(event) = process.poll() {
            return event;
        }
        assert!(Instant::now() < deadline, "no event");
        std::thread::yield_now();
    }
}

/// Makes the event of an import block and keeps it full.
fn spoiler(id: &str) {
    let process = Process::open().unwrap();
    let import = process.import(ImportSource::Id(id.parse().unwrap())).open().unwrap();
    let event = import.notify_fd().unwrap();
    // SAFETY: a plain system call on a descriptor of this process's.
    assert_eq!(unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let _ = rustix::io::write(event, &(1u64 << 62).to_ne_bytes());
            }
        });
        say("spoiled");
        listen();
        std::process::exit(0);
    });
}

#[test]
fn exports_go_to_another_user_by_grant_only_and_a_spoiled_event_holds_up_nobody() {
    let test = "exports_go_to_another_user_by_grant_only_and_a_spoiled_event_holds_up_nobody";
    let Some(host) = Host::new(test) else { return };
    let mut exporter = host.actor(EXPORTER, "exporter", &IMPORTER.to_string());
    let ids = exporter.hear();
    let mut importer = host.actor(IMPORTER, "importer", &ids);
    assert_eq!(importer.hear(), "imported");
    let mut ring = |words: std::ops::Range<u64>| {
        for word in words {
            importer.tell(&word.to_string());
            assert_eq!(importer.hear(), "sent");
            assert_eq!(exporter.hear(), word.to_string());
        }
    };
    ring(1..20);
    let granted = ids.split_once(' ').unwrap().1;
    let mut spoiler = host.actor(IMPORTER, "spoiler", granted);
    assert_eq!(spoiler.hear(), "spoiled");
    ring(20..200);
    drop(spoiler);
    ring(200..220);
}

/// A socket whose last close takes minutes, and its peer.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    let option = libc::linger { l_onoff: 1, l_linger: 120 };
    let size = libc::socklen_t::try_from(size_of_val(&option)).unwrap();
    // SAFETY: the kernel reads the option.
    let set = unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const option).cast(), size)
    };
    assert_eq!(set, 0);
    (socket, peer)
}

/// Sends such sockets to the service along with nothing, with nonsense, and more than belong to any message, and leaves the last close to it.
fn linger_beside_nonsense(service: &str) {
    let mut peers = Vec::new();
    for (bytes, count) in [(&b""[..], 1), (b"nonsense", 1), (b"nonsense", 20), (b"", 253)] {
        let (socket, peer) = lingering();
        peers.push(peer);
        let packets = vmmc_os::connect_packets(Path::new(service)).unwrap();
        vmmc_os::send(&packets, bytes, &vec![socket.as_fd(); count]).unwrap();
        std::mem::forget(packets);
    }
    say("sent");
    listen();
    std::process::exit(0);
}

/// Shows sockets whose last close takes minutes, and closes its own.
fn linger() {
    let process = Process::options().watcher(false).open().unwrap();
    let mut peers = Vec::new();
    for _ in 0..20 {
        let (socket, peer) = lingering();
        peers.push(peer);
        while process.pair_offer(socket.as_fd()).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Whoever of the two closes last waits; here a thread may.
        std::thread::spawn(move || drop(socket));
    }
    say("shown");
    listen();
    std::process::exit(0);
}

#[test]
fn a_socket_that_takes_long_to_close_holds_up_its_user_only() {
    let test = "a_socket_that_takes_long_to_close_holds_up_its_user_only";
    let Some(host) = Host::new(test) else { return };
    let mut hostile = host.actor(HOSTILE, "linger", "");
    assert_eq!(hostile.hear(), "shown");
    host.serves_others();
}

#[test]
fn a_socket_that_comes_along_with_nonsense_holds_up_its_user_only() {
    let test = "a_socket_that_comes_along_with_nonsense_holds_up_its_user_only";
    let Some(host) = Host::new(test) else { return };
    let socket = host.0.path().join("run").join("node.sock");
    // Who closes last waits, and that shall be the service.
    let service = host.service();
    harness::kill(service, libc::SIGSTOP);
    let mut hostile = host.actor(HOSTILE, "linger beside nonsense", socket.to_str().unwrap());
    assert_eq!(hostile.hear(), "sent");
    harness::kill(service, libc::SIGCONT);
    host.serves_others();
}

#[test]
fn what_a_process_handed_over_before_its_end_is_looked_at() {
    let Some(host) = Host::new("what_a_process_handed_over_before_its_end_is_looked_at") else {
        return;
    };
    let mut outlives = host.actor(EXPORTER, "outlives", "");
    let mut ends = host.actor(EXPORTER, "ends", &outlives.hear());
    assert_eq!(ends.hear(), "paired");
    let service = host.service();
    harness::kill(service, libc::SIGSTOP);
    ends.tell("end");
    ends.finish();
    harness::kill(service, libc::SIGCONT);
    assert_eq!(outlives.hear(), "PeerDropped");
}
