//! Two redis-servers, one the other's replica, under load: a connection between servers, a fork that streams a snapshot over it, a
//! log of every write, a change of roles, a crash.

use std::fs;

use vmmc_tests::{Running, Site, Way, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};
use crate::load::{program, wait_until};
use crate::redis::client;

#[test]
fn redis_replicates_and_survives_a_crash() {
    const NEEDED: [&str; 3] = ["redis-server", "redis-cli", "redis-benchmark"];
    same_in_every_way("redis_replicates_and_survives_a_crash", &NEEDED, |site, way| {
        let (first, second) = (free_port(), free_port());
        let mut master = serve(site, way, first, &["--save", "1 100"])?;
        benchmark(site, way, first, 10_000)?.succeed(LIMIT)?;
        let mut load = benchmark(site, way, first, 20_000)?;
        let master_address = ["--replicaof", "127.0.0.1", &first.to_string()];
        let _replica = serve(site, way, second, &master_address)?;
        load.succeed(LIMIT)?;
        let ask = |port, words: &[&str]| cli(site, way, port, words);
        let offset = |port, field: &str| -> Result<Option<String>, Failure> {
            let told = ask(port, &["INFO", "replication"])?;
            Ok(told.lines().find_map(|line| line.strip_prefix(field).map(str::to_owned)))
        };
        wait_until("the replica has all", || {
            let up =
                offset(second, "master_link_status:")?.is_some_and(|status| status.trim() == "up");
            Ok(up && offset(first, "master_repl_offset:")? == offset(second, "slave_repl_offset:")?)
        })?;
        let digests = (ask(first, &["DEBUG", "DIGEST"])?, ask(second, &["DEBUG", "DIGEST"])?);
        assert_eq!(digests.0, digests.1, "{way}: master and replica differ");

        ask(second, &["REPLICAOF", "NO", "ONE"])?;
        ask(second, &["SET", "after", "the change"])?;
        ask(first, &["REPLICAOF", "127.0.0.1", &second.to_string()])?;
        wait_until("the roles are changed", || {
            Ok(ask(first, &["GET", "after"])?.contains("the change"))
        })?;
        // A replica that took a whole snapshot writes its log anew behind it; killed before, it comes back as it was.
        let persistence = |wanted: &[&str]| -> Result<bool, Failure> {
            // Lines as a whole: beside `loading` there is `async_loading`.
            let told = ask(first, &["INFO", "persistence"])?;
            Ok(wanted.iter().all(|wanted| told.lines().any(|line| line.trim_end() == *wanted)))
        };
        wait_until("the log has all", || {
            persistence(&[
                "aof_rewrite_in_progress:0",
                "aof_rewrite_scheduled:0",
                "aof_buffer_length:0",
            ])
        })?;
        master.kill();
        let _again = serve(site, way, first, &[])?;
        wait_until("the log is read", || persistence(&["loading:0"]))?;
        let same = ask(first, &["DEBUG", "DIGEST"])? == ask(second, &["DEBUG", "DIGEST"])?;
        Ok((same, ask(first, &["GET", "after"])?))
    });
}

fn serve(site: &Site, way: Way, port: u16, more: &[&str]) -> Result<Running, Failure> {
    let directory = site.path().join(port.to_string());
    fs::create_dir_all(&directory)?;
    let mut command = site.command(way.lifts_server(), program("redis-server"));
    command.args(["--bind", "127.0.0.1", "--appendonly", "yes", "--daemonize", "no"]);
    command.args(["--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0"]);
    command.args(["--port", &port.to_string(), "--dir"]).arg(directory).args(more);
    Ok(site.serve(&mut command, port)?)
}

fn benchmark(site: &Site, way: Way, port: u16, count: u32) -> Result<Running, Failure> {
    let mut command = client(site, way, "redis-benchmark", port);
    command.args(["-t", "set,lpush,incr", "-r", "10000", "-d", "300", "-P", "4", "--csv"]);
    Ok(Running::start(command.args(["-n", &count.to_string()]))?)
}

fn cli(site: &Site, way: Way, port: u16, words: &[&str]) -> Result<String, Failure> {
    Ok(Running::start(client(site, way, "redis-cli", port).args(words))?.succeed(LIMIT)?.stdout)
}
