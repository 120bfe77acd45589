//! A program that waits and receives in libraries that it loads with `RTLD_DEEPBIND`, as PHP does in its extensions.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, find_program};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

#[test]
fn libraries_that_look_for_functions_among_their_own_first() {
    same_in_every_way(
        "libraries_that_look_for_functions_among_their_own_first",
        &["cc"],
        |site, way| {
            let program = compile(site, "deep_program", &["-o", "deep_program"])?;
            let lazy = compile(
                site,
                "deep_library",
                &["-shared", "-fPIC", "-Wl,-z,lazy", "-o", "lazy.so"],
            )?;
            let sealed = compile(
                site,
                "deep_library",
                &["-shared", "-fPIC", "-Wl,-z,now,-z,relro", "-o", "now.so"],
            )?;
            compile(site, "deep_library", &["-shared", "-fPIC", "-o", "beside.so"])?;
            let mut command = site.command(way.lifts_server(), program);
            command.args([lazy, sealed]);
            Ok(Running::start(&mut command)?.succeed(LIMIT)?.stdout)
        },
    );
}

/// The last of `options` names the result.
fn compile(site: &Site, source: &str, options: &[&str]) -> Result<PathBuf, Failure> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c");
    let mut command = Command::new(find_program("cc").unwrap_or_else(|| PathBuf::from("cc")));
    command.current_dir(site.path()).args(["-O1", "-Wall", "-Werror"]);
    command.arg(sources.join(source).with_extension("c")).args(options);
    Running::start(&mut command)?.succeed(LIMIT)?;
    Ok(site.path().join(options.last().copied().unwrap_or_default()))
}
