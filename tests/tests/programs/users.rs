//! Programs of different users: one service for all of them, a policy that says who may meet whom, and a user who means harm.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use vmmc_tests::{Connection, Running, Site, Watchdog, find_program, free_port, missing_programs};

use crate::in_every_way::{Failure, LIMIT, seen};

/// Users without a name: nothing on the host belongs to them.
const SERVER: u32 = 917_001;
const CLIENT: u32 = 917_002;
const OTHER: u32 = 917_003;

const REDIS: [&str; 3] = ["redis-server", "redis-cli", "redis-benchmark"];

/// A site for all users, and a watchdog for the test; `None`, with a line, where the test cannot be made.
fn host(test: &str, programs: &[&str], policy: &str) -> Result<Option<(Site, Watchdog)>, Failure> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("{test}: skipped: only root can run programs of several users");
        return Ok(None);
    }
    if !missing_programs(test, programs).is_empty() {
        return Ok(None);
    }
    let watchdog = Watchdog::new(test, 4 * LIMIT);
    Ok(Some((Site::of_host(policy)?, watchdog)))
}

/// `program` as `uid`, lifted.
fn command(site: &Site, uid: u32, program: &str) -> Command {
    let mut command = site.command(true, find_program(program).unwrap_or_else(|| program.into()));
    command.uid(uid).gid(uid);
    command
}

fn redis(site: &Site, uid: u32, port: u16) -> Result<Running, Failure> {
    let mut server = command(site, uid, "redis-server");
    server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
    Ok(site.serve(server.arg(port.to_string()), port)?)
}

/// A load that goes on until it is dropped.
fn load(site: &Site, uid: u32, port: u16) -> Result<Running, Failure> {
    let mut load = command(site, uid, "redis-benchmark");
    load.args(["-p", &port.to_string(), "-c", "2", "-t", "get", "-l", "-q"]);
    Ok(Running::start(&mut load)?)
}

fn both_lifted(connections: &[Connection]) -> bool {
    let lifted = connections.iter().filter(|end| end.is_lifted() && end.sent > 1000);
    lifted.map(|end| end.pid).collect::<std::collections::BTreeSet<_>>().len() > 1
}

/// Plainly, over TCP.
fn ping(site: &Site, port: u16) -> Result<String, Failure> {
    let mut cli = site.command(false, find_program("redis-cli").unwrap_or("redis-cli".into()));
    Ok(Running::start(cli.args(["-p", &port.to_string(), "ping"]))?.succeed(LIMIT)?.stdout)
}

fn signal(program: &Running, signal: Signal) -> Result<(), Failure> {
    let pid = Pid::from_raw(program.pid().cast_signed()).ok_or("no number")?;
    Ok(kill_process(pid, signal)?)
}

#[test]
fn users_are_lifted_to_each_other_as_the_policy_says() -> Result<(), Failure> {
    let (open, closed) = (free_port(), free_port());
    let policy = format!("[[between]]\nusers = [{SERVER}, {CLIENT}]\nports = [{open}]\n");
    let test = "users_are_lifted_to_each_other_as_the_policy_says";
    let Some((site, _watchdog)) = host(test, &REDIS, &policy)? else { return Ok(()) };
    let _servers = (redis(&site, SERVER, open)?, redis(&site, SERVER, closed)?);
    {
        let _load = load(&site, CLIENT, open)?;
        seen(&site, LIMIT, open, both_lifted)?;
    }
    let refused = |connections: &[Connection]| {
        connections.iter().any(|end| end.why.starts_with("policy: the other end is another user's"))
    };
    {
        let _load = load(&site, CLIENT, closed)?;
        let found = seen(&site, LIMIT, closed, refused)?;
        assert!(!found.iter().any(Connection::is_lifted), "{found:?}");
    }
    // A user that no rule names, on the port that is open to others.
    let _load = load(&site, OTHER, open)?;
    let found = seen(&site, LIMIT, open, refused)?;
    assert!(!found.iter().any(Connection::is_lifted), "{found:?}");
    // One's own programs need no rule.
    let _own = load(&site, SERVER, closed)?;
    seen(&site, LIMIT, closed, both_lifted)?;
    Ok(())
}

#[test]
fn a_user_sees_no_programs_of_others_and_cannot_stop_the_service() -> Result<(), Failure> {
    let port = free_port();
    let test = "a_user_sees_no_programs_of_others_and_cannot_stop_the_service";
    let Some((site, _watchdog)) = host(test, &REDIS, "")? else { return Ok(()) };
    let _server = redis(&site, SERVER, port)?;
    let _load = load(&site, SERVER, port)?;
    seen(&site, LIMIT, port, both_lifted)?;
    let mut stat = site.vmmc();
    let mut stat = Running::start(stat.args(["stat", "--json"]).uid(CLIENT).gid(CLIENT))?;
    assert_eq!(stat.wait(LIMIT)?.stdout.trim(), r#"{"processes":[]}"#);
    let mut stop = site.vmmc();
    let stop = Running::start(stop.args(["node", "stop"]).uid(CLIENT).gid(CLIENT))?.wait(LIMIT)?;
    assert!(!stop.status.success() && stop.stderr.contains("only root"), "{stop:?}");
    assert!(site.service_pid().is_some());
    Ok(())
}

/// Makes each bell that it finds block: first empty, so that whoever silences it waits; then full, so that whoever rings it does.
const HOSTILE: &str = r#"
import fcntl, os, socket, struct, sys, threading, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def ping():
    connection.sendall(b"PING\r\n")
    assert connection.recv(64) == b"+PONG\r\n"
def is_bell(number):
    try:
        return "eventfd" in os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False
def bells():
    return [int(number) for number in os.listdir("/proc/self/fd") if is_bell(number)]
while len(bells()) < 2:
    ping()
for bell in bells():
    fcntl.fcntl(bell, fcntl.F_SETFL, 0)
print("blocking", flush=True)
for _ in range(300):
    ping()
    time.sleep(0.001)
def fill(bell):
    while True:
        os.write(bell, struct.pack("Q", 2**62))
for bell in bells():
    threading.Thread(target=fill, args=[bell], daemon=True).start()
print("full", flush=True)
for _ in range(300):
    ping()
    time.sleep(0.001)
print("served", flush=True)
os._exit(0)
"#;

#[test]
fn a_hostile_user_holds_up_nobody() -> Result<(), Failure> {
    let port = free_port();
    let policy = format!("[[between]]\nusers = [{SERVER}, {CLIENT}]\n");
    let test = "a_hostile_user_holds_up_nobody";
    let programs = ["redis-server", "redis-cli", "python3"];
    let Some((site, _watchdog)) = host(test, &programs, &policy)? else { return Ok(()) };
    let mut server = redis(&site, SERVER, port)?;
    let mut hostile = command(&site, CLIENT, "python3");
    let mut hostile = Running::start(hostile.args(["-c", HOSTILE, &port.to_string()]))?;
    let end = Instant::now() + LIMIT;
    while hostile.is_running() {
        assert_eq!(ping(&site, port)?, "PONG\n");
        assert!(Instant::now() < end, "the hostile user itself waits: {}", hostile.output_so_far());
    }
    let hostile = hostile.succeed(LIMIT)?;
    assert_eq!(hostile.stdout, "blocking\nfull\nserved\n");
    assert!(server.is_running());
    Ok(())
}

#[test]
fn the_hosts_service_may_be_killed_and_comes_back() -> Result<(), Failure> {
    let port = free_port();
    let policy = format!("[[between]]\nusers = [{SERVER}, {CLIENT}]\n");
    let test = "the_hosts_service_may_be_killed_and_comes_back";
    let Some((site, _watchdog)) = host(test, &REDIS, &policy)? else { return Ok(()) };
    let mut server = redis(&site, SERVER, port)?;
    let mut first = load(&site, CLIENT, port)?;
    seen(&site, LIMIT, port, both_lifted)?;
    let service = site.service_pid().ok_or("no service")?;
    let service = Pid::from_raw(service.cast_signed()).ok_or("no number")?;
    kill_process(service, Signal::KILL)?;
    assert_eq!(ping(&site, port)?, "PONG\n");
    // No program starts another: that is the administrator's business.
    let _second = load(&site, CLIENT, port)?;
    assert_eq!(ping(&site, port)?, "PONG\n");
    assert_eq!(site.service_pid(), None);
    site.start_host()?;
    seen(&site, LIMIT, port, both_lifted)?;
    assert!(first.is_running() && server.is_running());
    Ok(())
}

#[test]
fn a_stopped_program_of_another_user_holds_up_neither_service_nor_others() -> Result<(), Failure> {
    let (port, beside) = (free_port(), free_port());
    let policy = format!("[[between]]\nusers = [{SERVER}, {CLIENT}]\n");
    let test = "a_stopped_program_of_another_user_holds_up_neither_service_nor_others";
    let Some((site, _watchdog)) = host(test, &REDIS, &policy)? else { return Ok(()) };
    let server = redis(&site, SERVER, port)?;
    let mut client = load(&site, CLIENT, port)?;
    seen(&site, LIMIT, port, both_lifted)?;
    signal(&server, Signal::STOP)?;
    let _beside = redis(&site, SERVER, beside)?;
    let _load = load(&site, CLIENT, beside)?;
    seen(&site, LIMIT, beside, both_lifted)?;
    assert!(client.is_running());
    signal(&server, Signal::CONT)?;
    assert_eq!(ping(&site, port)?, "PONG\n");
    Ok(())
}

#[test]
fn one_user_cannot_have_all_of_the_service() -> Result<(), Failure> {
    let (port, other) = (free_port(), free_port());
    let test = "one_user_cannot_have_all_of_the_service";
    let policy = "[limits]\nprocesses = 2\n";
    let Some((site, _watchdog)) = host(test, &REDIS, policy)? else { return Ok(()) };
    let _server = redis(&site, CLIENT, port)?;
    let _first = load(&site, CLIENT, port)?;
    seen(&site, LIMIT, port, both_lifted)?;
    // The third program works, over TCP; the other user has what it needs.
    let mut third = load(&site, CLIENT, port)?;
    let _server = redis(&site, OTHER, other)?;
    let _load = load(&site, OTHER, other)?;
    seen(&site, LIMIT, other, both_lifted)?;
    assert!(third.is_running());
    let found = site.connections(port)?;
    let pids: std::collections::BTreeSet<u32> = found.iter().map(|end| end.pid).collect();
    assert_eq!(pids.len(), 2, "{found:?}");
    Ok(())
}

#[test]
fn a_policy_names_programs_and_ports_and_says_why() -> Result<(), Failure> {
    let test = "a_policy_names_programs_and_ports_and_says_why";
    if !missing_programs(test, &REDIS).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, 4 * LIMIT);
    let site = Site::new()?;
    let port = free_port();
    let file = site.path().join("own.toml");
    let tell = |policy: &str| -> Result<String, Failure> {
        std::fs::write(&file, policy)?;
        let mut client = site.vmmc();
        client.env("VMMC_POLICY", &file).env("VMMC_SYSTEM_POLICY", site.path().join("none"));
        client.args(["run", "--explain", "--"]);
        client.arg(find_program("redis-benchmark").unwrap_or("redis-benchmark".into()));
        client.args(["-p", &port.to_string(), "-c", "1", "-n", "3000", "-t", "get", "-q"]);
        Ok(Running::start(&mut client)?.succeed(LIMIT)?.stderr)
    };
    let mut server =
        site.command(true, find_program("redis-server").unwrap_or("redis-server".into()));
    server.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]);
    let _server = site.serve(&mut server, port)?;
    let told = tell(&format!("not_ports = [{port}]"))?;
    assert!(told.contains("policy: connections with these ports"), "{told}");
    let told = tell("programs = ['redis-server']")?;
    assert!(told.contains("policy: this program is not to be lifted"), "{told}");
    let told = tell("lift = false")?;
    assert!(told.contains("policy: nothing is lifted"), "{told}");
    let told = tell("spin = 5\nring = 'huge'\n")?;
    assert!(told.contains("own.toml\", line 2") && told.contains("stay on TCP"), "{told}");
    Ok(())
}

#[test]
fn a_wrong_policy_keeps_the_hosts_service_from_starting() -> Result<(), Failure> {
    let test = "a_wrong_policy_keeps_the_hosts_service_from_starting";
    let Some((site, _watchdog)) = host(test, &[], "")? else { return Ok(()) };
    Running::start(site.vmmc().args(["node", "stop", "--system"]))?.succeed(LIMIT)?;
    std::fs::write(site.path().join("policy.toml"), "[[between]]\nusers = [1]\nport = 6379\n")?;
    let mut start = site.vmmc();
    let started = Running::start(start.args(["node", "start", "--system"]))?.wait(LIMIT)?;
    assert!(!started.status.success() && started.stderr.contains("line 3"), "{started:?}");
    Ok(())
}
