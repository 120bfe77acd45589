//! A C program that knows of loans: the example of `vmmc-loan`, compiled as its readers would.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, Way, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};

#[test]
fn messages_in_place() {
    same_in_every_way("messages_in_place", &["cc"], |site, way| {
        let mut outcomes = Vec::new();
        for (size, count) in [("100", "5000"), ("300000", "200")] {
            outcomes.push(play(site, way, size, count)?);
        }
        Ok(outcomes)
    });
}

fn play(site: &Site, way: Way, size: &str, count: &str) -> Result<String, Failure> {
    let program = compile(site)?;
    let port = free_port();
    let mut server = site.command(way.lifts_server(), &program);
    let server = server.args(["serve", &port.to_string(), size]);
    let mut server = site.serve_when_it_says(server, "listening")?;
    let mut client = site.command(way.lifts_client(), &program);
    let client = client.args(["send", &port.to_string(), size, count]);
    // Until the end of its input it keeps the connection busy.
    let (mut client, go_on) = site.start_fed(client)?;
    prove(site, way, port)?;
    drop(go_on);
    let (client, server) = (client.succeed(LIMIT)?, server.succeed(LIMIT)?);
    // The connection was lifted before the first message that counts.
    let wanted = if way == Way::BothLifted { count } else { "0" };
    for said in [&client.stderr, &server.stderr] {
        let lent = said.split(' ').next().unwrap_or_default();
        if lent != wanted {
            return Err(format!("{lent} of {count} messages were in place").into());
        }
    }
    Ok(server.stdout)
}

fn compile(site: &Site) -> Result<PathBuf, Failure> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/vmmc-loan");
    let program = site.path().join("in_place");
    let compiler = find_program("cc").unwrap_or_else(|| PathBuf::from("cc"));
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-I"]);
    command.arg(sources.join("include")).arg("-o").arg(&program);
    command.arg(sources.join("examples/in_place.c"));
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
