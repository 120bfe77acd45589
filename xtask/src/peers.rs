//! `cargo xtask peers`: the programs that `vmmc bench` measures beside its own ways, installed and built.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use vmmc_tests::Running;

use crate::packages;
use crate::workspace::{cargo, release, root, target};

const BUILD: Duration = Duration::from_secs(1800);
const ICEORYX2: &str = "vmmc-bench-iceoryx2";

pub(crate) fn run() -> ExitCode {
    let say = |line: &str| println!("{line}");
    packages::install(packages::FOR_BENCH, &say);
    if !Path::new("/usr/include/ucs/memory/rcache.h").exists() {
        say(
            "UCX's headers are missing (Debian package libucx-dev): left out: the row of UCX's registration cache",
        );
    }
    match iceoryx2() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            println!("{ICEORYX2}: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the ping-pong over iceoryx2 and puts it beside `vmmc`.
fn iceoryx2() -> Result<(), String> {
    println!("building {ICEORYX2}");
    let package = root().join("crates/vmmc-bench/iceoryx2");
    let mut build = cargo(&["build", "--release", "--quiet"]);
    build.current_dir(package).env("CARGO_TARGET_DIR", target().join("iceoryx2"));
    let built = Running::start(&mut build).and_then(|mut running| running.succeed(BUILD));
    built.map_err(|error| error.to_string())?;
    let built = target().join("iceoryx2/release").join(ICEORYX2);
    let copied = std::fs::create_dir_all(release())
        .and_then(|()| std::fs::copy(&built, release().join(ICEORYX2)));
    copied.map(drop).map_err(|error| error.to_string())
}
