//! Building the C program that takes the steps.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use vmmc_tests::{Running, RunningError};

/// Where `vmmc/loan.h` is.
const HEADERS: &str = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../../crates/vmmc-loan/include");

/// The compiled player. Dropping it removes it.
#[derive(Debug)]
pub struct Player {
    directory: TempDir,
}

/// Why there is no player.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum PlayerError {
    /// cannot use a directory for the player: {0}; is the disk full?
    Directory(#[from] io::Error),
    /// the player does not compile: {0}; a C compiler (`cc`) is needed (Debian: gcc, libc6-dev)
    Compile(#[from] RunningError),
}

impl Player {
    /// Compiles the sources in `player/` with `cc`, which takes a second.
    pub fn build() -> Result<Self, PlayerError> {
        let directory = tempfile::Builder::new().prefix("vmmc-player-").tempdir()?;
        let player = Player { directory };
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-result"]);
        compiler.arg(HEADERS);
        for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("player").read_dir()? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "c") {
                compiler.arg(path);
            }
        }
        compiler.arg("-o").arg(player.path());
        Running::start(&mut compiler)?.succeed(Duration::from_secs(120))?;
        Ok(player)
    }

    /// The program.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("player")
    }
}
