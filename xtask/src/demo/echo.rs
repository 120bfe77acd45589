//! The echo pair on `std::net` alone.

use vmmc_tests::{Finished, Running, Site, Way, free_port};

use super::table::{Better, Figure};
use super::{DemoError, LIMIT, Pair, cpu_each};

const BULK: u64 = 2_000_000_000;
/// The digest of the first `BULK` bytes of the pattern that the pair sends: what arrived is checked against it.
const BULK_DIGEST: &str = "6631ed29af5d7f62";

pub(crate) struct Echo;

impl Pair for Echo {
    const NAME: &'static str = "echo on std::net";

    fn outcome(site: &Site, way: Way) -> Result<String, DemoError> {
        let (_server, port) = serve(site, way)?;
        let mut outcome = String::new();
        for (size, count) in [("1", "2000"), ("64", "2000"), ("16384", "500")] {
            outcome +=
                &stable(&ask(site, way, "ping", port, &["--size", size, "--count", count])?.stdout);
        }
        for what in ["up", "down"] {
            outcome += &stable(&ask(site, way, what, port, &["--bytes", "100000001"])?.stdout);
        }
        if way == Way::BothLifted {
            let mut open = client(site, way, "ping", port);
            open.args(["--count", "4000", "--pause-at", "2000"]);
            let (mut open, go_on) = site.start_fed(&mut open)?;
            site.lifted_at_both_ends(port, 64)?;
            drop(go_on);
            open.succeed(LIMIT)?;
        }
        Ok(outcome)
    }

    fn measure(site: &Site, way: Way) -> Result<Vec<Figure>, DemoError> {
        let (mut server, port) = serve(site, way)?;
        let trial = ask(site, way, "ping", port, &["--count", "500"])?;
        server.stop();
        // About half a second, whatever a round trip costs.
        let count = (500_000.0 / value(&trial, "p50_us")?).clamp(2000.0, 1_000_000.0) as u64;

        let (mut server, port) = serve(site, way)?;
        let ping = ask(site, way, "ping", port, &["--count", &count.to_string()])?;
        let ping_cpu = cpu_each(server.stop().cpu, ping.cpu, count);

        let (mut server, port) = serve(site, way)?;
        let bulk =
            ask(site, way, "up", port, &["--bytes", &BULK.to_string(), "--expect", BULK_DIGEST])?;
        let bulk_cpu = cpu_each(server.stop().cpu, bulk.cpu, BULK / 1_000_000);

        let figure =
            |what, unit, better, value, headline| Figure { what, unit, better, value, headline };
        Ok(vec![
            figure(
                "echo, 64 bytes: round trip, median",
                "us",
                Better::Less,
                value(&ping, "p50_us")?,
                Some("echo latency"),
            ),
            figure(
                "echo, 64 bytes: round trip, 99 %",
                "us",
                Better::Less,
                value(&ping, "p99_us")?,
                None,
            ),
            figure("echo, 64 bytes: CPU per round trip", "us", Better::Less, ping_cpu, None),
            figure(
                "bulk stream, with digest: throughput",
                "GB/s",
                Better::More,
                value(&bulk, "gigabytes_per_second")?,
                Some("bulk throughput"),
            ),
            figure(
                "bulk stream, with digest: CPU per megabyte",
                "us",
                Better::Less,
                bulk_cpu,
                None,
            ),
        ])
    }
}

fn serve(site: &Site, way: Way) -> Result<(Running, u16), DemoError> {
    let port = free_port();
    let mut command = site.command(way.lifts_server(), site.built("echo-pair"));
    Ok((site.serve(command.args(["serve", &format!("127.0.0.1:{port}")]), port)?, port))
}

fn client(site: &Site, way: Way, what: &str, port: u16) -> std::process::Command {
    let mut command = site.command(way.lifts_client(), site.built("echo-pair"));
    command.args([what, &format!("127.0.0.1:{port}")]);
    command
}

fn ask(
    site: &Site,
    way: Way,
    what: &str,
    port: u16,
    options: &[&str],
) -> Result<Finished, DemoError> {
    Ok(Running::start(client(site, way, what, port).args(options))?.succeed(LIMIT)?)
}

fn stable(output: &str) -> String {
    let stable =
        output.lines().filter(|line| line.starts_with("bytes ") || line.starts_with("digest "));
    stable.map(|line| format!("{line}\n")).collect()
}

fn value(finished: &Finished, key: &str) -> Result<f64, DemoError> {
    let found =
        finished.stdout.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    found.ok_or_else(|| DemoError::Form {
        program: "echo-pair",
        wanted: key.to_owned(),
        output: finished.stdout.chars().take(200).collect(),
    })
}
