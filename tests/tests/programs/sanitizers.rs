//! Programs whose compiler has put a sanitizer into them, whose runtime insists on being the first library that is loaded.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};
use crate::load::until_it_says;

#[test]
fn a_pair_with_address_sanitizer() {
    let test = "a_pair_with_address_sanitizer";
    let Some(runtime) = runtime("libasan.so") else {
        // Past the capture of the test harness.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: not installed: libasan");
        return;
    };
    same_in_every_way(test, &["cc"], |site, way| {
        let program = compile(site)?;
        let port = free_port();
        let preload = |mut command: Command| {
            command.env("LD_PRELOAD", &runtime);
            command
        };
        let mut server = preload(site.command(way.lifts_server(), &program));
        let server = server.arg("serve").arg(port.to_string());
        let _server = site.serve_when_it_says(server, "listening")?;
        let mut client = preload(site.command(way.lifts_client(), &program));
        let (mut client, go_on) = site.start_fed(client.arg("ask").arg(port.to_string()))?;
        until_it_says(&mut client, "half")?;
        prove(site, way, port)?;
        drop(go_on);
        Ok(client.succeed(LIMIT)?.stdout)
    });
}

/// Where the compiler has this library of its own.
fn runtime(name: &str) -> Option<PathBuf> {
    let asked = Command::new(find_program("cc")?).arg(format!("-print-file-name={name}")).output();
    let path = PathBuf::from(String::from_utf8(asked.ok()?.stdout).ok()?.trim());
    // What it does not have it names as it was asked.
    path.is_absolute().then_some(path)
}

fn compile(site: &Site) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/heap_echo.c");
    let program = site.path().join("heap_echo");
    let compiler = find_program("cc").unwrap_or_else(|| PathBuf::from("cc"));
    let mut command = Command::new(compiler);
    command.args(["-O1", "-fsanitize=address,undefined", "-o"]).arg(&program).arg(source);
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
