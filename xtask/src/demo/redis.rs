//! redis-server with redis-cli and redis-benchmark.

use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::Duration;

use vmmc_tests::{Finished, Running, RunningError, Site, Way, find_program, free_port};

use super::table::{Better, Figure};
use super::{DemoError, LIMIT, Pair, cpu_each};

/// What redis-cli asks; the answers may not depend on the way.
const QUESTIONS: &str = "SET text \"two words\"\nGET text\nGET nothing\nINCR text\nMULTI\nINCR n\nINCR n\nEXEC\nHSET h a 1 b 2\n\
    HGETALL h\nEVAL \"return {1,2,{3,'four'}}\" 0\nSETRANGE big 300000 x\nGETRANGE big 299000 -1\nLRANGE list 0 -1\nDBSIZE\n";

pub(crate) struct Redis;

impl Pair for Redis {
    const NAME: &'static str = "redis, unmodified";

    fn outcome(site: &Site, way: Way) -> Result<String, DemoError> {
        let (_server, port) = serve(site, way)?;
        let (mut cli, mut questions) = site.start_fed(&mut client(site, way, "redis-cli", port))?;
        let list: String = (0..500).map(|number| format!("RPUSH list value-{number}\n")).collect();
        let told = questions.write_all(list.as_bytes()).and_then(|()| questions.flush());
        if way == Way::BothLifted && told.is_ok() {
            // A few more, so that there is traffic while the connection is being lifted.
            thread::sleep(Duration::from_millis(100));
            site.lifted_at_both_ends(port, 1)?;
        }
        let told = told.and_then(|()| questions.write_all(QUESTIONS.as_bytes()));
        drop(questions);
        let answers = cli.succeed(LIMIT)?.stdout;
        told.map_err(|cause| RunningError::Start { name: "redis-cli".to_owned(), cause })?;
        Ok(answers)
    }

    fn measure(site: &Site, way: Way) -> Result<Vec<Figure>, DemoError> {
        let faster = if way == Way::BothLifted { 10 } else { 1 };
        let (many, many_cpu) = benchmark(site, way, 50, 60_000 * faster)?;
        let (one, one_cpu) = benchmark(site, way, 1, 10_000 * faster)?;
        let figure =
            |what, unit, better, value, headline| Figure { what, unit, better, value, headline };
        let rate = |what, from: &Finished, test, headline| {
            Ok::<_, DemoError>(figure(
                what,
                "requests/s",
                Better::More,
                column(from, test, 1)?,
                headline,
            ))
        };
        let latency = |what, from: &Finished, at| {
            Ok::<_, DemoError>(figure(
                what,
                "us",
                Better::Less,
                column(from, "GET", at)? * 1000.0,
                None,
            ))
        };
        Ok(vec![
            rate("redis GET, 50 connections", &many, "GET", Some("redis GET"))?,
            rate("redis SET, 50 connections", &many, "SET", None)?,
            latency("redis GET, 50 connections: 99 %", &many, 6)?,
            figure(
                "redis, 50 connections: CPU per request",
                "us",
                Better::Less,
                many_cpu,
                Some("redis CPU per request"),
            ),
            rate("redis GET, 1 connection", &one, "GET", Some("redis GET at one connection"))?,
            rate("redis SET, 1 connection", &one, "SET", None)?,
            figure("redis, 1 connection: CPU per request", "us", Better::Less, one_cpu, None),
        ])
    }
}

/// GET and SET, `requests` of each. Returns the report, and the CPU time of a request in microseconds.
fn benchmark(
    site: &Site,
    way: Way,
    connections: u64,
    requests: u64,
) -> Result<(Finished, f64), DemoError> {
    let (mut server, port) = serve(site, way)?;
    let mut command = client(site, way, "redis-benchmark", port);
    command.args([
        "--csv",
        "-t",
        "get,set",
        "-c",
        &connections.to_string(),
        "-n",
        &requests.to_string(),
    ]);
    let report = Running::start(&mut command)?.succeed(LIMIT)?;
    let cpu = cpu_each(server.stop().cpu, report.cpu, 2 * requests);
    Ok((report, cpu))
}

fn serve(site: &Site, way: Way) -> Result<(Running, u16), DemoError> {
    let port = free_port();
    let mut command =
        site.command(way.lifts_server(), find_program("redis-server").unwrap_or_default());
    command.args([
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--port",
        &port.to_string(),
    ]);
    Ok((site.serve(&mut command, port)?, port))
}

fn client(site: &Site, way: Way, program: &str, port: u16) -> Command {
    let mut command = site.command(way.lifts_client(), find_program(program).unwrap_or_default());
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    command
}

/// A column of redis-benchmark's table: 1 is requests per second, 4 and 6 are the median and the 99 % latency in
/// milliseconds.
fn column(report: &Finished, test: &str, at: usize) -> Result<f64, DemoError> {
    let row = report.stdout.lines().find(|line| line.starts_with(&format!("\"{test}\"")));
    let value = row.and_then(|row| row.split(',').nth(at)?.trim_matches('"').parse().ok());
    value.ok_or_else(|| DemoError::Form {
        program: "redis-benchmark",
        wanted: test.to_owned(),
        output: report.stdout.chars().take(200).collect(),
    })
}
