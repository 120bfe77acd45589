//! The pair on `std::net` alone: blocking reads and writes of every size, half-close, many connections.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vmmc_tests::{Connection, Running, Site, Watchdog, Way, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};

#[test]
fn ping_pong_of_every_size() {
    same_in_every_way("ping_pong_of_every_size", &[], |site, way| {
        let (server, port) = serve(site, way)?;
        let mut outcomes = Vec::new();
        for (size, count) in [(1, 3000), (7, 2000), (64, 2000), (4096, 1000), (65536, 200)] {
            let count = count.to_string();
            let size = size.to_string();
            let options = ["--size", &size, "--count", &count];
            outcomes.push(ask(site, way, "ping", port, &options)?);
        }
        drop(server);
        Ok(outcomes)
    });
}

#[test]
fn an_open_connection_is_lifted_and_its_state_is_told() {
    same_in_every_way("an_open_connection_is_lifted_and_its_state_is_told", &[], |site, way| {
        let (_server, port) = serve(site, way)?;
        let (mut client, go_on) = paused_ping(site, way, port)?;
        prove(site, way, port)?;
        drop(go_on);
        Ok(stable_lines(&client.succeed(LIMIT)?.stdout))
    });
}

#[test]
fn bulk_both_directions_with_half_close() {
    same_in_every_way("bulk_both_directions_with_half_close", &[], |site, way| {
        let (_server, port) = serve(site, way)?;
        let mut outcomes = Vec::new();
        for bytes in ["0", "1", "131073", "300000001"] {
            outcomes.push(ask(site, way, "up", port, &["--bytes", bytes])?);
            outcomes.push(ask(site, way, "down", port, &["--bytes", bytes])?);
        }
        Ok(outcomes)
    });
}

#[test]
fn many_clients_at_once() {
    same_in_every_way("many_clients_at_once", &[], |site, way| {
        let (_server, port) = serve(site, way)?;
        let start = |what| {
            let mut client = site.command(way.lifts_client(), site.built("echo-pair"));
            Running::start(
                client.arg(what).arg(address(port)).args(["--count", "1000", "--bytes", "5000000"]),
            )
        };
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.extend([start("ping")?, start("up")?, start("down")?]);
        }
        let outcomes: Result<Vec<_>, Failure> = clients
            .iter_mut()
            .map(|client| Ok(stable_lines(&client.succeed(LIMIT)?.stdout)))
            .collect();
        outcomes
    });
}

/// However few descriptors there are, the bytes are the same, and `vmmc stat` says what hinders lifting.
#[test]
fn a_client_short_of_descriptors_is_served_over_tcp() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("a_client_short_of_descriptors_is_served_over_tcp", 4 * LIMIT);
    let site = Site::new()?;
    let (_server, port) = serve(&site, Way::BothLifted)?;
    let mut outputs = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for limit in 5..=14 {
        let echo = site.built("echo-pair");
        let line = format!(
            "ulimit -n {limit}; exec {} ping {} --count 4000 --pause-at 2000",
            echo.display(),
            address(port)
        );
        let mut command = site.command(true, "/bin/sh");
        let (mut client, go_on) = pause(&site, command.args(["-c", &line]))?;
        let decided = |seen: &[Connection]| {
            seen.iter().any(|end| end.is_lifted() || end.why.starts_with("too few descriptors"))
        };
        let seen = if limit > 5 { site.connections_when(port, decided)? } else { Vec::new() };
        assert!(limit == 5 || decided(&seen), "with {limit} descriptors: {seen:?}");
        reasons.extend(seen.into_iter().filter(|end| !end.is_lifted()).map(|end| end.why));
        drop(go_on);
        outputs.insert(stable_lines(&client.succeed(LIMIT)?.stdout));
    }
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    assert!(reasons.iter().any(|why| why.starts_with("too few descriptors")), "{reasons:?}");
    Ok(())
}

/// A server of this pair and its port.
pub(crate) fn serve(site: &Site, way: Way) -> Result<(Running, u16), Failure> {
    let port = free_port();
    let mut command = site.command(way.lifts_server(), site.built("echo-pair"));
    Ok((site.serve(command.arg("serve").arg(address(port)), port)?, port))
}

/// Runs a client to its end and returns what does not depend on time.
pub(crate) fn ask(
    site: &Site,
    way: Way,
    what: &str,
    port: u16,
    options: &[&str],
) -> Result<String, Failure> {
    let mut command = site.command(way.lifts_client(), site.built("echo-pair"));
    let finished =
        Running::start(command.arg(what).arg(address(port)).args(options))?.succeed(LIMIT)?;
    Ok(stable_lines(&finished.stdout))
}

/// A client in the middle of its work, with its connection open. It goes on when the returned pipe is dropped.
pub(crate) fn paused_ping(
    site: &Site,
    way: Way,
    port: u16,
) -> Result<(Running, std::io::PipeWriter), Failure> {
    let mut command = site.command(way.lifts_client(), site.built("echo-pair"));
    command.arg("ping").arg(address(port)).args(["--count", "4000", "--pause-at", "2000"]);
    pause(site, &mut command)
}

/// Starts a client that pauses, and waits until it does.
fn pause(site: &Site, command: &mut Command) -> Result<(Running, std::io::PipeWriter), Failure> {
    let (client, mut go_on) = site.start_fed(command)?;
    go_on.flush()?;
    let end = Instant::now() + LIMIT;
    while !client.output_so_far().contains("paused") {
        if Instant::now() > end {
            return Err(format!("{client} does not reach its pause").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok((client, go_on))
}

/// `bytes` and `digest`; the rest are measurements.
pub(crate) fn stable_lines(output: &str) -> String {
    let stable = |line: &&str| line.starts_with("bytes ") || line.starts_with("digest ");
    output.lines().filter(stable).collect::<Vec<_>>().join("\n")
}

fn address(port: u16) -> String {
    format!("{}:{port}", Ipv4Addr::LOCALHOST)
}
