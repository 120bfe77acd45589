//! A program that goes over to io_uring in mid-connection: its queues carry bytes past every hook, so from then on they are
//! the kernel's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use vmmc_tests::{Running, Site, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};

#[test]
fn a_server_goes_over_to_liburing() {
    let test = "a_server_goes_over_to_liburing";
    if !Path::new("/usr/include/liburing.h").exists() {
        // Past the capture of the test harness.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: not installed: liburing-dev");
        return;
    }
    same_in_every_way(test, &["cc"], |site, way| {
        let program = compile(site)?;
        let port = free_port();
        let mut server = site.command(way.lifts_server(), &program);
        let server = server.arg("serve").arg(port.to_string());
        let _server = site.serve_when_it_says(server, "listening")?;
        let mut client = site.command(way.lifts_client(), &program);
        let (mut client, go_on) = site.start_fed(client.arg("ask").arg(port.to_string()))?;
        let end = Instant::now() + LIMIT;
        while !client.output_so_far().contains("half") {
            if Instant::now() > end || !client.is_running() {
                return Err(client.wait(LIMIT)?.stderr.into());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        prove(site, way, port)?;
        drop(go_on);
        Ok(client.succeed(LIMIT)?.stdout)
    });
}

fn compile(site: &Site) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/uring_echo.c");
    let program = site.path().join("uring_echo");
    let compiler = find_program("cc").unwrap_or_else(|| PathBuf::from("cc"));
    let mut command = Command::new(compiler);
    command.arg("-O1").arg("-o").arg(&program).arg(source).arg("-luring");
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
