//! The node service dies, or cannot be started: nobody notices but `vmmc stat`.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmmc_tests::{Running, Site, Watchdog, Way, missing_programs};

use crate::echo::{ask, paused_ping, serve, stable_lines};
use crate::in_every_way::{Failure, LIMIT, prove};
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
fn kill_service(site: &Site) -> Result<u32, Failure> {
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
