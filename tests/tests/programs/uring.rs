//! Programs that use io_uring: whose queues may carry bytes past every hook has its bytes in the kernel; who changes epoll objects by
//! them and no more is lifted.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Connection, Running, Site, Way, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way, seen};
use crate::load::until_it_says;

#[test]
fn a_server_goes_over_to_liburing() {
    same_and("a_server_goes_over_to_liburing", "serve", prove);
}

#[test]
fn a_server_whose_ring_changes_its_epoll_object_is_lifted() {
    same_and("a_server_whose_ring_changes_its_epoll_object_is_lifted", "loop", prove);
}

#[test]
fn why_a_program_with_a_ring_is_not_lifted_is_told() {
    same_and("why_a_program_with_a_ring_is_not_lifted_is_told", "ring", |site, way, port| {
        if way.lifts_server() {
            let told = |seen: &[Connection]| seen.iter().any(|end| end.why.contains("io_uring"));
            let seen = seen(site, LIMIT, port, told)?;
            assert!(!seen.iter().any(Connection::is_lifted), "{seen:?}");
        }
        Ok(())
    });
}

/// Plays the server's `role` with a client in every way, and looks by `look` while the client goes on.
fn same_and(test: &str, role: &str, look: impl Fn(&Site, Way, u16) -> Result<(), Failure>) {
    if !Path::new("/usr/include/liburing.h").exists() {
        // Past the capture of the test harness.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: not installed: liburing-dev");
        return;
    }
    same_in_every_way(test, &["cc"], |site, way| {
        let program = compile(site)?;
        let port = free_port();
        let mut server = site.command(way.lifts_server(), &program);
        let server = server.arg(role).arg(port.to_string());
        let _server = site.serve_when_it_says(server, "listening")?;
        let mut client = site.command(way.lifts_client(), &program);
        let (mut client, go_on) = site.start_fed(client.arg("ask").arg(port.to_string()))?;
        until_it_says(&mut client, "half")?;
        look(site, way, port)?;
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
