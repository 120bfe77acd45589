//! redis-server with redis-cli and redis-benchmark: epoll, pipelining, large values, and a fork in mid-work.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmmc_tests::{Running, Site, Way, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};
use crate::load::feed;

const NEEDED: [&str; 3] = ["redis-server", "redis-cli", "redis-benchmark"];

#[test]
fn redis_cli_gets_the_same_answers() {
    same_in_every_way("redis_cli_gets_the_same_answers", &NEEDED, |site, way| {
        let (_server, port) = serve(site, way)?;
        let mut command = client(site, way, "redis-cli", port);
        let (mut cli, mut input) = site.start_fed(&mut command)?;
        for number in 0..300 {
            writeln!(input, "RPUSH list value-{number}")?;
        }
        // It is asked something until it is seen.
        feed(&mut input, "PING\n", || prove(site, way, port))?;
        input.write_all(
            b"LRANGE list 0 -1\nLLEN list\nSET text \"two words\"\nGET text\nGET nothing\nINCR text\nMULTI\nINCR n\nINCR n\nEXEC\n\
              HSET h a 1 b 2\nHGETALL h\nEVAL \"return {1,2,{3,'four'}}\" 0\nSETRANGE big 300000 x\nSTRLEN big\nGETRANGE big 299990 -1\nDBSIZE\n",
        )?;
        drop(input);
        let answers = cli.succeed(LIMIT)?.stdout.replace("PONG\n", "");
        assert!(answers.contains("value-299") && answers.contains("two words"), "{answers}");
        Ok(answers)
    });
}

#[test]
fn redis_pipeline_of_large_values() {
    const VALUES: usize = 100;
    const SIZE: usize = 1_000_000;
    same_in_every_way("redis_pipeline_of_large_values", &NEEDED, |site, way| {
        let (_server, port) = serve(site, way)?;
        let mut pipeline = BufWriter::new(File::create(site.path().join("pipeline"))?);
        let mut reads = File::create(site.path().join("reads"))?;
        let mut expected = DefaultHasher::new();
        for number in 0..VALUES {
            let value = text(number, SIZE);
            write!(pipeline, "*3\r\n$3\r\nSET\r\n$6\r\nkey{number:03}\r\n${SIZE}\r\n{value}\r\n")?;
            writeln!(reads, "GET key{number:03}")?;
            value.hash(&mut expected);
        }
        pipeline.flush()?;

        let mut command = client(site, way, "redis-cli", port);
        let input = |name| File::open(site.path().join(name)).map(Stdio::from);
        let stored =
            Running::start_with_input(command.arg("--pipe"), input("pipeline")?)?.succeed(LIMIT)?;
        assert!(
            stored.stdout.contains(&format!("errors: 0, replies: {VALUES}")),
            "{}",
            stored.stdout
        );

        let mut command = client(site, way, "redis-cli", port);
        let read = Running::start_with_input(&mut command, input("reads")?)?.succeed(LIMIT)?;
        let mut got = DefaultHasher::new();
        read.stdout.lines().for_each(|value| value.hash(&mut got));
        assert_eq!(read.stdout.len(), VALUES * (SIZE + 1));
        assert_eq!(
            got.finish(),
            expected.finish(),
            "{way}: the values differ from those that were stored"
        );
        Ok(got.finish())
    });
}

#[test]
fn redis_saves_in_a_forked_process_under_load() {
    same_in_every_way("redis_saves_in_a_forked_process_under_load", &NEEDED, |site, way| {
        let (mut server, port) = serve(site, way)?;
        benchmark(site, way, port, &["-t", "set", "-r", "20000", "-n", "40000", "-d", "500"])?;
        let mut load = client(site, way, "redis-benchmark", port);
        let mut load = Running::start(
            load.args(["-t", "get,set", "-r", "20000", "-n", "60000", "-d", "500", "--csv"]),
        )?;
        cli(site, way, port, &["BGSAVE"])?;
        let end = Instant::now() + LIMIT;
        let saved = loop {
            let state = cli(site, way, port, &["INFO", "persistence"])?;
            if state.contains("rdb_bgsave_in_progress:0") {
                break state
                    .lines()
                    .find(|line| line.starts_with("rdb_last_bgsave_status"))
                    .map(str::to_owned);
            }
            if Instant::now() > end {
                return Err("the save does not end".into());
            }
            thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(tests_named(&load.succeed(LIMIT)?.stdout), ["SET", "GET"]);
        assert!(server.is_running());
        let file = site.path().join("dump.rdb");
        let check =
            Running::start(Command::new(program("redis-check-rdb")).arg(&file))?.succeed(LIMIT)?;
        assert!(check.stdout.contains("RDB looks OK"), "{}", check.stdout);
        Ok((saved, cli(site, way, port, &["PING"])?))
    });
}

#[test]
fn redis_benchmark_runs_to_its_end() {
    same_in_every_way("redis_benchmark_runs_to_its_end", &NEEDED, |site, way| {
        let (_server, port) = serve(site, way)?;
        let commands = "ping_inline,ping_mbulk,set,get,incr,lpush,rpop,hset,lrange_100,mset";
        let many = benchmark(site, way, port, &["-t", commands, "-n", "3000", "-c", "50"])?;
        let pipelined =
            benchmark(site, way, port, &["-t", commands, "-n", "20000", "-c", "20", "-P", "16"])?;
        let alone = benchmark(site, way, port, &["-t", commands, "-n", "300", "-c", "1"])?;
        let large = benchmark(
            site,
            way,
            port,
            &["-t", "set,get", "-n", "400", "-c", "4", "-d", "1000000", "-P", "2"],
        )?;
        assert!(many.len() > 9, "{many:?}");
        Ok([
            many,
            pipelined,
            alone,
            large,
            vec![cli(site, way, port, &["STRLEN", "key:__rand_int__"])?],
        ])
    });
}

/// A redis-server that keeps its files at `site`, and its port.
pub(crate) fn serve(site: &Site, way: Way) -> Result<(Running, u16), Failure> {
    let port = free_port();
    let mut command = site.command(way.lifts_server(), program("redis-server"));
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.args(["--port", &port.to_string(), "--dir"]).arg(site.path());
    Ok((site.serve(&mut command, port)?, port))
}

/// A command for one of the client programs, told where the server is.
pub(crate) fn client(site: &Site, way: Way, name: &str, port: u16) -> Command {
    let mut command = site.command(way.lifts_client(), program(name));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    command
}

fn cli(site: &Site, way: Way, port: u16, words: &[&str]) -> Result<String, Failure> {
    Ok(Running::start(client(site, way, "redis-cli", port).args(words))?.succeed(LIMIT)?.stdout)
}

fn benchmark(site: &Site, way: Way, port: u16, options: &[&str]) -> Result<Vec<String>, Failure> {
    let mut command = client(site, way, "redis-benchmark", port);
    Ok(tests_named(&Running::start(command.args(options).arg("--csv"))?.succeed(LIMIT)?.stdout))
}

/// The first column of redis-benchmark's table, without its heading.
fn tests_named(csv: &str) -> Vec<String> {
    let first = |line: &str| line.split("\",").next().map(|name| name.trim_matches('"').to_owned());
    csv.lines()
        .filter(|line| line.starts_with('"'))
        .filter_map(first)
        .filter(|name| name != "test")
        .collect()
}

fn text(seed: usize, size: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut value = String::with_capacity(size);
    while value.len() < size {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        value.push_str(&format!("{state:016x}"));
    }
    value.truncate(size);
    value
}

fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| name.into())
}
