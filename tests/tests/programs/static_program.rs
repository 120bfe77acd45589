//! A static program cannot be preloaded: it works over TCP, under `vmmc run` or not, with a lifted peer or not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, Watchdog, Way, free_port};

use crate::echo::{ask, serve, stable_lines};
use crate::in_every_way::{Failure, LIMIT, prove_not_lifted};

#[test]
fn a_static_client_and_a_lifted_server() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("a_static_client_and_a_lifted_server", 3 * LIMIT);
    let site = Site::new()?;
    let program = compile_static(site.path())?;
    let (_server, port) = serve(&site, Way::ServerLifted)?;
    let expected = ask(&site, Way::Plain, "ping", port, &["--count", "4000"])?;
    for under_vmmc_run in [false, true] {
        let mut command = site.command(under_vmmc_run, &program);
        command.args([
            "ping",
            &format!("127.0.0.1:{port}"),
            "--count",
            "4000",
            "--pause-at",
            "2000",
        ]);
        let (mut client, go_on) = site.start_fed(&mut command)?;
        prove_not_lifted(&site, port)?;
        drop(go_on);
        assert_eq!(
            stable_lines(&client.succeed(LIMIT)?.stdout),
            expected,
            "under vmmc run: {under_vmmc_run}"
        );
    }
    Ok(())
}

#[test]
fn a_lifted_client_and_a_static_server() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("a_lifted_client_and_a_static_server", 3 * LIMIT);
    let site = Site::new()?;
    let program = compile_static(site.path())?;
    let port = free_port();
    let mut command = site.command(true, &program);
    let _server = site.serve(command.args(["serve", &format!("127.0.0.1:{port}")]), port)?;
    for what in ["up", "down"] {
        let options = ["--bytes", "20000000"];
        assert_eq!(
            ask(&site, Way::ClientLifted, what, port, &options)?,
            ask(&site, Way::Plain, what, port, &options)?,
        );
    }
    Ok(())
}

/// Builds the echo pair once more, without a dynamic loader in it.
fn compile_static(directory: &Path) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/echo/src/main.rs");
    let program = directory.join("static-echo-pair");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
        "--crate-name",
        "echo_pair",
        "-o",
    ]);
    Running::start(command.arg(&program).arg(source))?.succeed(2 * LIMIT)?;
    let headers = Running::start(Command::new("ldd").arg(&program))?.wait(LIMIT)?;
    assert!(!headers.stdout.contains("libc.so"), "not static: {}", headers.stdout);
    Ok(program)
}
