//! The service as seen from outside: one for each directory, safe, leaving by itself, hard to hurt.

mod harness;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use harness::stranger::Stranger;
use harness::{Node, listen, role, say, until, vmmc_program};
use vmmc::{ExportError, ImportSource, OpenError, Process, RuntimeDirError};
use vmmc_os::{Descriptor, OsError, send};
use vmmc_proto::{Request, encode_request};

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    match role.as_str() {
        "goes-on" => go_on(argument.parse().unwrap()),
        "few-descriptors" => few_descriptors(),
        "leaves-its-socket" => leave_socket(),
        "descriptors" => {
            let open = || {
                let fds = std::fs::read_dir("/proc/self/fd").unwrap();
                let numbers = fds.map(|fd| fd.unwrap().file_name().into_string().unwrap());
                let mut fds: Vec<i32> = numbers.map(|fd| fd.parse().unwrap()).collect();
                fds.retain(|fd| *fd < 500);
                fds.sort_unstable();
                fds
            };
            say(format!("{:?}", open()));
            let process = Process::options().descriptor_floor(500).open().unwrap();
            let export = process.export(1).notify(vmmc::Notify::Event).create().unwrap();
            let import = process.import(ImportSource::Id(export.id())).open().unwrap();
            say(format!("{:?}", open()));
            assert!(process.owned_fds().iter().all(|fd| *fd >= 500));
            drop(import);
        }
        _ => {}
    }
}

/// With no descriptor left every call says so, and with some again every call works.
fn few_descriptors() {
    let process = Process::options().watcher(false).open().unwrap();
    let kept = process.export(1).create().unwrap();
    let mut fill = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fill.push(file);
    }
    let export = process.export(1).create();
    assert!(matches!(export, Err(ExportError::Exhausted(_))), "{export:?}");
    let import = process.import(ImportSource::Id(kept.id())).open();
    assert!(matches!(import, Err(vmmc::ImportError::Exhausted(_))), "{import:?}");
    let other = Process::options().watcher(false).open();
    assert!(matches!(other, Err(OpenError::Exhausted(_))), "{other:?}");
    drop(fill);
    let import = process.import(ImportSource::Id(kept.id())).open().unwrap();
    import.signal(0, 1).unwrap_err();
    import.send(0, b"x").unwrap();
    let _ = process.export(1).create().unwrap();
    say("done");
}

/// Leaves its connection with the service to a child.
fn leave_socket() {
    let stranger = Stranger::new(&Node::of_environment());
    let socket = stranger.socket.as_raw_fd();
    // SAFETY: a plain system call on a descriptor of this process's.
    assert_eq!(unsafe { libc::fcntl(socket, libc::F_SETFD, 0) }, 0);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "actor", "--nocapture", "--test-threads=1"]);
    command.env("VMMC_TEST_ROLE", "goes-on").env("VMMC_TEST_ARGUMENT", socket.to_string());
    say(command.stdout(Stdio::null()).spawn().unwrap().id());
    listen();
}

/// Says something by a connection as long as the service has it.
fn go_on(socket: i32) {
    // SAFETY: it was inherited, and nothing else here knows of it.
    let socket = Descriptor::from(unsafe { OwnedFd::from_raw_fd(socket) });
    let harmless = encode_request(&Request::Ring).unwrap();
    while let Ok(()) | Err(OsError::AGAIN) = send(&socket, &harmless, &[]) {}
}

#[test]
fn nobody_goes_on_in_the_name_of_a_process_that_has_ended() {
    let node = Node::new();
    let _process = node.open();
    let mut actor = node.actor("leaves-its-socket", "");
    let child = actor.hear();
    until("two", || node.status()["processes"] == 2);
    actor.tell("end");
    actor.finish();
    until("one", || node.status()["processes"] == 1);
    until("refused", || std::fs::read_link(format!("/proc/{child}/exe")).is_err());
}

#[test]
fn a_second_service_is_refused() {
    let node = Node::new();
    let _process = node.open();
    let pid = node.service_pid().unwrap();
    let second = node.command(&["serve"]);
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("another service already runs"), "{message}");
    assert_eq!(message.lines().count(), 1);
    assert!(node.command(&["start"]).status.success());
    assert_eq!(node.service_pid(), Some(pid));
}

#[test]
fn a_stale_socket_is_replaced() {
    let node = Node::new();
    drop(node.open());
    harness::kill(node.service_pid().unwrap(), libc::SIGKILL);
    until("dead", || node.service_pid().is_none());
    assert!(node.path().join("node.sock").exists());
    assert!(node.open().processes().is_ok());
}

#[test]
fn many_that_open_at_once_find_one_service() {
    let node = Node::new();
    let options = node.options();
    let processes: Vec<Process> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| options.clone().open().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let pid = processes[0].info().service_pid;
    assert!(processes.iter().all(|process| process.info().service_pid == pid));
    assert_eq!(processes[0].processes().unwrap().len(), 8);
}

#[test]
fn it_leaves_when_idle_and_on_signals() {
    let node = Node::new();
    for signal in [None, Some(libc::SIGTERM), Some(libc::SIGINT)] {
        let idle = if signal.is_some() { "1000" } else { "0.05" };
        let mut service = Command::new(vmmc_program())
            .args(["node", "serve"])
            .env("VMMC_RUNTIME_DIR", node.path())
            .env("VMMC_NODE_IDLE_SECONDS", idle)
            .spawn()
            .unwrap();
        if let Some(signal) = signal {
            until("up", || node.service_pid().is_some());
            harness::kill(service.id() as i32, signal);
        }
        assert!(service.wait().unwrap().success());
        assert_eq!(std::fs::read_dir(node.path()).unwrap().count(), 0);
    }
}

#[test]
fn it_does_not_leave_while_somebody_is_there() {
    let node = Node::new();
    let mut service = Command::new(vmmc_program())
        .args(["node", "serve"])
        .env("VMMC_RUNTIME_DIR", node.path())
        .env("VMMC_NODE_IDLE_SECONDS", "0.2")
        .spawn()
        .unwrap();
    until("up", || node.service_pid().is_some());
    let process = node.options().start_service(false).open().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(process.processes().is_ok());
    drop(process);
    assert!(service.wait().unwrap().success());
}

#[test]
fn insecure_directories_are_refused() {
    let node = Node::new();
    std::fs::create_dir(node.path()).unwrap();
    std::fs::set_permissions(node.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let open = || node.options().open().unwrap_err();
    assert!(
        matches!(open(), OpenError::RuntimeDir(RuntimeDirError::Insecure { mode: 0o755, .. })),
        "{}",
        open()
    );
    let started = node.command(&["start"]);
    assert!(!started.status.success());
    assert!(String::from_utf8_lossy(&started.stderr).contains("chmod 700"));
    std::fs::remove_dir(node.path()).unwrap();
    std::fs::write(node.path(), b"").unwrap();
    assert!(matches!(open(), OpenError::RuntimeDir(RuntimeDirError::NotDirectory { .. })));
    std::fs::remove_file(node.path()).unwrap();
    std::os::unix::fs::symlink("/tmp", node.path()).unwrap();
    assert!(matches!(open(), OpenError::RuntimeDir(RuntimeDirError::NotDirectory { .. })));
    std::fs::remove_file(node.path()).unwrap();
    let nowhere = node.path().join("missing/run");
    let missing = Process::options().runtime_dir(nowhere).open().unwrap_err();
    assert!(matches!(missing, OpenError::RuntimeDir(RuntimeDirError::Create { .. })));
    let none = node.options().start_service(false).open().unwrap_err();
    assert!(matches!(none, OpenError::RuntimeDir(RuntimeDirError::Missing { .. })));
}

#[test]
fn another_users_directory_and_service_are_refused() {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("left out: giving files away needs root");
        return;
    }
    let node = Node::new();
    drop(node.open());
    std::os::unix::fs::chown(node.path(), Some(1), None).unwrap();
    let open = node.options().open().unwrap_err();
    assert!(
        matches!(open, OpenError::RuntimeDir(RuntimeDirError::Foreign { owner: 1, .. })),
        "{open}"
    );
    std::os::unix::fs::chown(node.path(), Some(0), None).unwrap();
}

#[test]
fn exhausted_descriptors_are_told_and_nothing_is_lost() {
    let node = Node::new();
    let _starts_the_service = node.open();
    let limited = format!(
        "ulimit -n 40; exec {} --exact actor --nocapture --test-threads=1",
        std::env::current_exe().unwrap().display()
    );
    let output = Command::new("sh")
        .args(["-c", &limited])
        .env("VMMC_RUNTIME_DIR", node.path())
        .env("VMMC_TEST_ROLE", "few-descriptors")
        .env("VMMC_TEST_ARGUMENT", "")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("@done"), "{said}");
    until("all given back", || node.status()["imports"] == 0 && node.status()["exports"] == 0);
}

#[test]
fn descriptors_stay_above_the_floor() {
    let node = Node::new();
    let mut actor = node.actor("descriptors", "");
    let before = actor.hear();
    assert_eq!(actor.hear(), before);
}

#[test]
fn nonsense_disconnects_only_its_sender() {
    let node = Node::new();
    let process = node.open();
    let socket = node.path().join("node.sock");
    for packet in [&b"\xff\xff\xff\xff"[..], b"\x00", &[7; 5000], &[0; 60_000], b"\x01\x01\x05"] {
        let stranger = connect(&socket);
        let mut answer = [0; 64];
        // SAFETY: plain system calls on our own socket and buffers.
        let left = unsafe {
            libc::send(stranger, packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL);
            libc::recv(stranger, answer.as_mut_ptr().cast(), answer.len(), 0)
        };
        assert!(left <= 0, "the stranger was answered: {answer:?}");
        // SAFETY: our own descriptor.
        unsafe { libc::close(stranger) };
    }
    assert_eq!(process.processes().unwrap().len(), 1);
}

fn connect(path: &std::path::Path) -> i32 {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: an all-zero address is valid; the path is shorter than its field (checked by the slice); plain system calls.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        for (to, from) in address.sun_path[..bytes.len()].iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        assert_eq!(libc::connect(fd, (&raw const address).cast(), len), 0);
        fd
    }
}
