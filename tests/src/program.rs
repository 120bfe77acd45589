//! Finding the programs that are tried, and saying when one is not there.

use std::env;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The path of `program`. The system directories come before `PATH`, because a wrapper script found there first would
/// be lifted in the program's place, and because `PATH` often lacks `/usr/sbin`. Debian keeps PostgreSQL's programs in a
/// directory for each version, and scripts with the names of some in `/usr/bin`.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    versions_of_postgresql()
        .chain(["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from))
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

/// The programs of `needed` that are not installed. If there are any, says on standard error that `test` is skipped
/// because of them, past the capture of the test harness, so that a run never looks more complete than it was.
pub fn missing_programs<'a>(test: &str, needed: &[&'a str]) -> Vec<&'a str> {
    let missing: Vec<_> =
        needed.iter().copied().filter(|program| find_program(program).is_none()).collect();
    if !missing.is_empty() {
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: {test}: not installed: {}", missing.join(", "));
    }
    missing
}

fn versions_of_postgresql() -> impl Iterator<Item = PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin"))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
