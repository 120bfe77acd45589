//! The system calls of the hot paths, counted: `docs/hot-path.md` says how many each may make, and a single one more would be seen
//! in no other test, only in a benchmark. And what must have been done before the first of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, Watchdog, Way, find_program, missing_programs};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

const ROUNDS: u32 = 1000;

/// Listeners and what is not lifted are looked after now and then on the way, by time, which the counting makes long.
const NOW_AND_THEN: u32 = ROUNDS / 10;

/// What is never lifted, but entered into the library's tables and taken out again: at each end whose process it is, when it gets
/// it and when it closes it, and at one what it is.
const SHORT: &str = "a short connection";
const MORE_WHEN_SHORT: u32 = 5;

#[test]
fn hot_paths_make_no_system_call() {
    same_in_every_way("hot_paths_make_no_system_call", &["cc"], |site, way| {
        let mut command = site.command(way == Way::BothLifted, compile(site)?);
        let counted = Running::start(command.arg(ROUNDS.to_string()))?.succeed(LIMIT)?.stdout;
        let mut paths = Vec::new();
        for line in counted.lines() {
            let (path, calls) = line.split_once(": ").ok_or("a line without a count")?;
            let calls: u32 = calls.parse()?;
            let (plainly, lifted) = match path {
                SHORT => (7 * ROUNDS, (7 + MORE_WHEN_SHORT) * ROUNDS),
                _ => (ROUNDS, 0),
            };
            if way == Way::BothLifted {
                assert!(
                    calls <= lifted + NOW_AND_THEN,
                    "{ROUNDS} rounds of {path} make {calls} system calls"
                );
            } else {
                assert!(calls >= plainly, "{path} is counted wrong: {calls}");
            }
            paths.push(path.to_owned());
        }
        Ok(paths)
    });
}

/// A thread says how many numbers the kernel's table of descriptors has room for, and the limit of the process.
const TABLE: &str = r#"
import ctypes, os, resource, sys, threading
def tell():
    size = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("FDSize:"))
    print(size, resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
def start(what):
    thread = threading.Thread(target=what)
    thread.start()
    thread.join()
way = sys.argv[1]
if way == "thread":
    start(tell)
elif way == "thread of C11":
    libc, made = ctypes.CDLL(None), ctypes.c_ulong()
    what = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: tell() or 0)
    assert libc.thrd_create(ctypes.byref(made), what, None) == 0
    libc.thrd_join(made, None)
elif way == "thread of a child":
    start(lambda: None)
    if os.fork() == 0:
        start(tell)
    else:
        os.wait()
"#;

#[test]
fn the_table_of_descriptors_has_grown_before_the_first_thread() {
    if !missing_programs("the_table_of_descriptors_has_grown", &["python3"]).is_empty() {
        return;
    }
    let grown = |lifted, way| -> Result<bool, Failure> {
        let site = Site::new()?;
        let python = find_program("python3").ok_or("no python3")?;
        let mut told = Running::start(site.command(lifted, python).args(["-c", TABLE, way]))?;
        let told = told.succeed(LIMIT)?.stdout;
        let (size, limit) = told.trim_end().split_once(' ').ok_or("two numbers")?;
        let (size, limit): (u64, u64) = (size.parse()?, limit.parse()?);
        Ok(size > (limit / 4 * 3).min(16 * 1024))
    };
    let _watchdog = Watchdog::new("the_table_of_descriptors_has_grown", 8 * LIMIT);
    for way in ["thread", "thread of C11", "thread of a child"] {
        let plainly = grown(false, way).unwrap();
        assert!(!plainly, "this test sees nothing: the table is that large without us ({way})");
        assert!(grown(true, way).unwrap(), "the first lift waits for the table to grow ({way})");
    }
}

fn compile(site: &Site) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/hot_path.c");
    let program = site.path().join("hot_path");
    let mut command = Command::new(find_program("cc").unwrap_or_else(|| PathBuf::from("cc")));
    command.args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source);
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(program)
}
