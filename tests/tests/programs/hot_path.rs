//! The system calls of the hot paths, counted: `docs/hot-path.md` says how many each may make, and a single one more would be seen
//! in no other test, only in a benchmark.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, Way, find_program};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

const ROUNDS: u32 = 1000;

/// Listeners and what is not lifted are looked after now and then on the way, by time, which the counting makes long.
const NOW_AND_THEN: u32 = ROUNDS / 10;

#[test]
fn hot_paths_make_no_system_call() {
    same_in_every_way("hot_paths_make_no_system_call", &["cc"], |site, way| {
        let mut command = site.command(way == Way::BothLifted, compile(site)?);
        let counted = Running::start(command.arg(ROUNDS.to_string()))?.succeed(LIMIT)?.stdout;
        let mut paths = Vec::new();
        for line in counted.lines() {
            let (path, calls) = line.split_once(": ").ok_or("a line without a count")?;
            let calls: u32 = calls.parse()?;
            if way == Way::BothLifted {
                assert!(
                    calls <= NOW_AND_THEN,
                    "{ROUNDS} rounds of {path} make {calls} system calls"
                );
            } else {
                assert!(calls >= ROUNDS, "{path} is counted wrong: {calls}");
            }
            paths.push(path.to_owned());
        }
        Ok(paths)
    });
}

fn compile(site: &Site) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/hot_path.c");
    let program = site.path().join("hot_path");
    let mut command = Command::new(find_program("cc").unwrap_or_else(|| PathBuf::from("cc")));
    command.args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source);
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
