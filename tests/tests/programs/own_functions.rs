//! Programs and libraries that have functions of the C library's names themselves, and call the library's behind them.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, find_program, missing_programs};

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

/// The library's own descriptors have numbers that the program cannot have, where the limit may be raised.
#[test]
fn numbers_of_the_programs_own() {
    same_in_every_way("numbers_of_the_programs_own", &["cc", "sh"], |site, way| {
        let program = compile(site, "own_numbers", &[])?;
        let mut command = site.command(way.lifts_server(), "sh");
        command.args(["-c", r#"ulimit -Sn 300; exec "$0""#]).arg(program);
        let finished = Running::start(&mut command)?.succeed(LIMIT)?;
        let lifted = finished.stderr.contains("unread by TCP: 0");
        if lifted == way.lifts_server() {
            Ok(finished.stdout)
        } else {
            Err(format!("lifted: {lifted}").into())
        }
    });
}

/// Where it may not be raised they are among the program's, which cannot have those.
#[test]
fn numbers_of_the_librarys_own() {
    const TEST: &str = "numbers_of_the_librarys_own";
    if !missing_programs(TEST, &["cc", "sh"]).is_empty() {
        return;
    }
    let play = || -> Result<String, Failure> {
        let site = Site::new()?;
        let program = compile(&site, "own_numbers", &[])?;
        let mut command = site.command(true, "sh");
        command.args(["-c", r#"ulimit -n 300; exec "$0""#]).arg(program);
        let finished = Running::start(&mut command)?.succeed(LIMIT)?;
        assert!(finished.stderr.contains("unread by TCP: 0"), "{}", finished.stderr);
        Ok(finished.stdout)
    };
    let told = play().unwrap_or_else(|error| panic!("{TEST}: {error}"));
    assert!(told.contains("written into the file: 0\n"), "{told}");
    let refused = told.lines().filter(|line| line.ends_with("Bad file descriptor")).count();
    assert!(refused > 0, "{told}");
    let open = format!("still open: {0} of {0}\n", 150 - refused);
    assert!(told.contains(&open), "{told}");
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
