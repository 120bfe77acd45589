//! Building the C programs that play the scenarios.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use vmmc_tests::{Running, RunningError};

use crate::SCENARIOS;

/// The compiled `actor`, and beside it the statically linked `bystander` and the library `will.so`. Dropping it removes them.
#[derive(Debug)]
pub struct Actor {
    directory: TempDir,
}

/// Why there is no actor.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum ActorError {
    /// cannot use a directory for the actor: {0}; is the disk full?
    Directory(#[from] io::Error),
    /// the actor does not compile: {0}; a C compiler (`cc`) and the static C library are needed (Debian: gcc, libc6-dev)
    Compile(RunningError),
}

impl Actor {
    /// Compiles the sources in `actor/` with `cc`, which takes a few seconds.
    pub fn build() -> Result<Self, ActorError> {
        let directory = tempfile::Builder::new().prefix("vmmc-actor-").tempdir()?;
        let listed: String =
            SCENARIOS.iter().map(|scenario| format!("SCENARIO({})\n", scenario.name)).collect();
        std::fs::write(directory.path().join("scenarios.h"), listed)?;
        let actor = Actor { directory };
        let (bystander, sources): (Vec<_>, Vec<_>) =
            sources()?.into_iter().partition(|path| path.ends_with("bystander.c"));
        let (will, sources): (Vec<_>, Vec<_>) =
            sources.into_iter().partition(|path| path.ends_with("will.c"));
        // Optimised, because _FORTIFY_SOURCE needs it. Some arguments are wrong on purpose.
        actor.compile(
            "actor",
            &sources,
            &[
                "-Wall",
                "-Wextra",
                // A scenario that is not listed.
                "-Werror=missing-prototypes",
                "-Wno-nonnull",
                "-Wno-stringop-overflow",
                "-Wno-stringop-overread",
                "-Wno-unused-result",
            ],
        )?;
        actor.compile("bystander", &bystander, &["-static"])?;
        actor.compile("will.so", &will, &["-shared", "-fPIC"])?;
        Ok(actor)
    }

    /// The program.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("actor")
    }

    fn compile(&self, name: &str, sources: &[PathBuf], flags: &[&str]) -> Result<(), ActorError> {
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu11", "-O2", "-g"]).args(flags).arg(HEADERS);
        compiler.arg("-I").arg(self.directory.path()).args(sources);
        compiler.arg("-o").arg(self.directory.path().join(name)).args(["-pthread", "-ldl"]);
        Running::start(&mut compiler)
            .and_then(|mut compiler| compiler.succeed(Duration::from_secs(600)))
            .map_err(ActorError::Compile)?;
        Ok(())
    }
}

/// Where `vmmc/loan.h` is.
const HEADERS: &str = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../../crates/vmmc-loan/include");

fn sources() -> io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("actor").read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}
