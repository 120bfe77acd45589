//! The node service dies, or cannot be started: nobody notices but `vmmc stat`.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmmc_tests::{Running, Site, Watchdog, Way, free_port, missing_programs};

use crate::echo::{ask, paused_ping, serve, stable_lines};
use crate::handed::listens;
use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};
use crate::load::{program, wait_until};
use crate::redis;

#[test]
fn lifted_connections_survive_the_death_of_the_service() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("lifted_connections_survive_the_death_of_the_service", 2 * LIMIT);
    let site = Site::new()?;
    let (_plain_server, port) = serve(&site, Way::Plain)?;
    let expected = ask(&site, Way::Plain, "ping", port, &["--count", "4000"])?;

    let (_server, port) = serve(&site, Way::BothLifted)?;
    let (mut client, go_on) = paused_ping(&site, Way::BothLifted, port)?;
    prove(&site, Way::BothLifted, port)?;
    kill_service(&site)?;
    drop(go_on);
    assert_eq!(stable_lines(&client.succeed(LIMIT)?.stdout), expected);
    // Programs and connections that come later work too, with or without a new service.
    assert_eq!(ask(&site, Way::BothLifted, "ping", port, &["--count", "4000"])?, expected);
    Ok(())
}

#[test]
fn bulk_in_both_directions_survives_the_death_of_the_service() -> Result<(), Failure> {
    let _watchdog =
        Watchdog::new("bulk_in_both_directions_survives_the_death_of_the_service", 2 * LIMIT);
    let site = Site::new()?;
    let (_server, port) = serve(&site, Way::BothLifted)?;
    let start = |what| {
        let mut command = site.command(true, site.built("echo-pair"));
        Running::start(
            command.arg(what).arg(format!("127.0.0.1:{port}")).args(["--bytes", "3000000000"]),
        )
    };
    let (mut up, mut down) = (start("up")?, start("down")?);
    kill_service(&site)?;
    assert_eq!(
        stable_lines(&up.succeed(LIMIT)?.stdout),
        stable_lines(&down.succeed(LIMIT)?.stdout)
    );
    Ok(())
}

#[test]
fn redis_under_load_survives_the_death_of_the_service() -> Result<(), Failure> {
    let test = "redis_under_load_survives_the_death_of_the_service";
    if !missing_programs(test, &["redis-server", "redis-benchmark", "redis-cli"]).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, 3 * LIMIT);
    let site = Site::new()?;
    let (mut server, port) = redis::serve(&site, Way::BothLifted)?;
    let mut load = redis::client(&site, Way::BothLifted, "redis-benchmark", port);
    let mut load = Running::start(load.args(["-t", "get,set", "-n", "300000", "-c", "20", "-q"]))?;
    kill_service(&site)?;
    let load = load.succeed(2 * LIMIT)?;
    assert_eq!(load.stdout.matches("requests per second").count(), 2, "{}", load.stdout);
    let mut ping = redis::client(&site, Way::BothLifted, "redis-cli", port);
    assert_eq!(Running::start(ping.arg("ping"))?.succeed(LIMIT)?.stdout, "PONG\n");
    assert!(server.is_running());
    Ok(())
}

/// A server that, once there is a file `lost`, gives up what it has not read to the kernel (what stands under a standard number is
/// the kernel's), and a client that closes after that, before it, or before the service is lost.
const LEAVE: &str = r#"
import os, socket, sys, time

def await_file(name):
    while not os.path.exists(name):
        time.sleep(.001)

def client(port, when):
    connection = socket.create_connection(('127.0.0.1', port))
    while not os.path.exists('enough'):
        connection.sendall(b'ping')
        assert connection.recv(4) == b'ping'
        time.sleep(.001)
    connection.sendall(b'last' + bytes(range(250)) * 20)
    if when == 'before':
        connection.close()
    open('sent', 'w').close()
    await_file('lost')
    if when == 'early':
        connection.close()
    open('left', 'w').close()
    await_file('lowered')

def server(port):
    listener = socket.create_server(('127.0.0.1', port))
    connection, _ = listener.accept()
    while (message := connection.recv(4)) == b'ping':
        connection.sendall(message)
    assert message == b'last'
    await_file('left')
    os.dup2(connection.fileno(), 0)
    open('lowered', 'w').close()
    data = b''
    while piece := connection.recv(100000):
        data += piece
    print(data == bytes(range(250)) * 20, len(data))

if sys.argv[1] == 'client':
    client(int(sys.argv[2]), sys.argv[3])
else:
    server(int(sys.argv[2]))
"#;

#[test]
fn unread_bytes_survive_the_death_of_the_service_and_lowering() {
    for when in ["late", "early", "before"] {
        let test = format!("unread bytes of a client that closes {when} without a service");
        same_in_every_way(&test, &["python3"], |site, way| {
            let port = free_port();
            fs::write(site.path().join("leave.py"), LEAVE)?;
            let start = |lifted, arguments: &[&str]| {
                let mut command = site.command(lifted, program("python3"));
                Running::start(command.arg("leave.py").args(arguments))
            };
            let port_text = port.to_string();
            let mut server = start(way.lifts_server(), &["server", &port_text])?;
            wait_until("the server", || Ok(listens(port)))?;
            let mut client = start(way.lifts_client(), &["client", &port_text, when])?;
            prove(site, way, port)?;
            fs::write(site.path().join("enough"), "")?;
            wait_until("the client", || Ok(site.path().join("sent").exists()))?;
            if way != Way::Plain {
                kill_service(site)?;
            }
            fs::write(site.path().join("lost"), "")?;
            client.succeed(LIMIT)?;
            Ok(server.succeed(LIMIT)?.stdout)
        });
    }
}

#[test]
fn without_a_service_programs_use_tcp() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("without_a_service_programs_use_tcp", 2 * LIMIT);
    let site = Site::new()?;
    let (_plain_server, port) = serve(&site, Way::Plain)?;
    let expected = ask(&site, Way::Plain, "ping", port, &["--count", "500"])?;
    let mut client = site.command(true, site.built("echo-pair"));
    // No service can be reached or started there.
    client.env("VMMC_RUNTIME_DIR", "/proc/vmmc-cannot-be-here");
    client.args(["ping", &format!("127.0.0.1:{port}"), "--count", "500"]);
    assert_eq!(stable_lines(&Running::start(&mut client)?.succeed(LIMIT)?.stdout), expected);
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("nothing_is_left_behind", 2 * LIMIT);
    let site = Site::new()?;
    let (mut server, port) = serve(&site, Way::BothLifted)?;
    let (mut client, _go_on) = paused_ping(&site, Way::BothLifted, port)?;
    prove(&site, Way::BothLifted, port)?;
    client.kill();
    server.kill();
    let left = site.connections_when(port, |seen| seen.is_empty())?;
    assert_eq!(left, [], "killed processes are still listed");
    let service = kill_service(&site)?;
    assert!(!fs::exists(format!("/proc/{service}/exe"))?);
    let named: Vec<_> = fs::read_dir("/dev/shm")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains("vmmc"))
        .collect();
    assert!(named.is_empty(), "left in /dev/shm: {named:?}");
    Ok(())
}

/// Kills the site's service with SIGKILL and waits until it is gone.
pub(crate) fn kill_service(site: &Site) -> Result<u32, Failure> {
    let end = Instant::now() + LIMIT;
    let number = loop {
        match site.service_pid() {
            Some(pid) => break pid,
            None if Instant::now() > end => return Err("no node service runs at this site".into()),
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let pid = Pid::from_raw(number.cast_signed()).ok_or("the status gives process id 0")?;
    kill_process(pid, Signal::KILL)?;
    // Its new parent may be slow to collect it: an entry without an executable is a dead process.
    while fs::read_link(format!("/proc/{number}/exe")).is_ok() {
        if Instant::now() > end {
            return Err(format!("the service (pid {number}) survives SIGKILL").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(number)
}
