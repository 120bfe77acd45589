//! A program that has functions of the C library's names itself, and calls the library's behind them.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, find_program};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

#[test]
fn a_program_with_functions_of_its_own() {
    same_in_every_way("a_program_with_functions_of_its_own", &["cc"], |site, way| {
        let program = compile(site)?;
        let mut command = site.command(way.lifts_server(), program);
        Ok(Running::start(&mut command)?.succeed(LIMIT)?.stdout)
    });
}

fn compile(site: &Site) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/own_functions.c");
    let program = site.path().join("own_functions");
    let mut command = Command::new(find_program("cc").unwrap_or_else(|| PathBuf::from("cc")));
    command.args(["-O1", "-rdynamic", "-Wall", "-Werror", "-o"]).arg(&program).arg(source);
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
