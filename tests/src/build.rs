//! The release programs under trial.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::running::{Running, RunningError};

/// Why there is nothing to try.
#[derive(Debug, Clone, thiserror::Error, displaydoc::Display)]
pub enum BuildError {
    /// the release programs could not be built: {0}
    Build(String),
    /// {0} was not found after the build; set VMMC_TEST_PROGRAMS to a directory with vmmc, libvmmc_preload.so and echo-pair
    Missing(String),
}

/// The directory that holds `vmmc`, `libvmmc_preload.so` and `echo-pair`.
///
/// That is `$VMMC_TEST_PROGRAMS` if set; otherwise they are built in the release profile, once a process, so that
/// `cargo test -p vmmc-tests` alone never tries yesterday's programs.
pub fn release_programs() -> Result<&'static Path, BuildError> {
    static DIRECTORY: OnceLock<Result<PathBuf, BuildError>> = OnceLock::new();
    match DIRECTORY.get_or_init(find_or_build) {
        Ok(directory) => Ok(directory),
        Err(error) => Err(error.clone()),
    }
}

fn find_or_build() -> Result<PathBuf, BuildError> {
    let directory = match env::var_os("VMMC_TEST_PROGRAMS") {
        Some(directory) => PathBuf::from(directory),
        None => build()?,
    };
    for file in ["vmmc", "libvmmc_preload.so", "echo-pair"] {
        if !directory.join(file).exists() {
            return Err(BuildError::Missing(directory.join(file).display().to_string()));
        }
    }
    Ok(directory)
}

fn build() -> Result<PathBuf, BuildError> {
    let failed = |error: RunningError| BuildError::Build(error.to_string());
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "vmmc-cli",
            "-p",
            "vmmc-preload",
            "-p",
            "echo-pair",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    Running::start(&mut command)
        .and_then(|mut build| build.succeed(Duration::from_secs(900)))
        .map_err(failed)?;
    release_directory().map_err(|error| BuildError::Build(error.to_string()))
}

/// `release` in the target directory that this test program lies in (`…/debug/deps/name`).
fn release_directory() -> io::Result<PathBuf> {
    if let Some(target) = env::var_os("CARGO_TARGET_DIR") {
        return Ok(PathBuf::from(target).join("release"));
    }
    let program = env::current_exe()?;
    let target = program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists())
        .ok_or_else(|| io::Error::other("this program does not lie in a cargo target directory"))?;
    Ok(target.join("release"))
}
