//! Programs and libraries that have functions of the C library's names themselves, and call the library's behind them.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, find_program};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

#[test]
fn a_program_with_functions_of_its_own() {
    same_in_every_way("a_program_with_functions_of_its_own", &["cc"], |site, way| {
        let program = compile(site, "own_functions", &[])?;
        let mut command = site.command(way.lifts_server(), program);
        Ok(Running::start(&mut command)?.succeed(LIMIT)?.stdout)
    });
}

#[test]
fn functions_by_handle_with_a_library_between() {
    same_in_every_way("functions_by_handle_with_a_library_between", &["cc"], |site, way| {
        let program = compile(site, "by_handle_program", &[])?;
        let library = compile(site, "by_handle_library", &["-shared", "-fPIC"])?;
        let mut output = String::new();
        for preload in [None, Some(library)] {
            let mut command = site.command(way.lifts_server(), &program);
            command.envs(preload.map(|library| ("LD_PRELOAD", library)));
            output += &Running::start(&mut command)?.succeed(LIMIT)?.stdout;
        }
        Ok(output)
    });
}

#[test]
fn memory_of_the_programs_own() {
    same_in_every_way("memory_of_the_programs_own", &["cc"], |site, way| {
        let program = compile(site, "own_memory", &[])?;
        let mut command = site.command(way.lifts_server(), program);
        Ok(Running::start(&mut command)?.succeed(LIMIT)?.stdout)
    });
}

/// Valgrind has another view of the process than the kernel, and does not know its newest calls.
#[test]
fn a_program_under_valgrind() {
    same_in_every_way("a_program_under_valgrind", &["cc", "valgrind"], |site, way| {
        let program = compile(site, "own_memory", &[])?;
        let mut command = site.command(way.lifts_server(), "valgrind");
        command.args(["-q", "--error-exitcode=9"]).arg(program);
        Ok(Running::start(&mut command)?.succeed(LIMIT)?.stdout)
    });
}

fn compile(site: &Site, source: &str, options: &[&str]) -> Result<PathBuf, Failure> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c");
    let program = site.path().join(source);
    let mut command = Command::new(find_program("cc").unwrap_or_else(|| PathBuf::from("cc")));
    command.args(["-O1", "-rdynamic", "-Wall", "-Werror", "-o"]).arg(&program);
    command.arg(sources.join(source).with_extension("c")).args(options);
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
