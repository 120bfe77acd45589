//! What the tests of servers under load have in common: a benchmark's verdict, a word that a program says, a slow download, a signal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmmc_tests::{Running, Site, Way, find_program};

use crate::in_every_way::{Failure, LIMIT};

/// Runs ab and gives what must not depend on the way: how many requests were complete and how many failed.
pub(crate) fn benchmark(
    site: &Site,
    way: Way,
    options: &[&str],
    url: &str,
) -> Result<Vec<String>, Failure> {
    let mut command = site.command(way.lifts_client(), program("ab"));
    let report = Running::start(command.args(options).arg(url))?.succeed(LIMIT)?.stdout;
    let verdict = |line: &&str| {
        ["Complete requests:", "Failed requests:", "Non-2xx responses:"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let found: Vec<_> = report.lines().filter(verdict).map(str::to_owned).collect();
    assert!(found.len() > 1, "{way}: {report}");
    Ok(found)
}

/// Waits until `word` is in what the program has written.
pub(crate) fn until_it_says(program: &mut Running, word: &str) -> Result<(), Failure> {
    let end = Instant::now() + LIMIT;
    while !program.output_so_far().contains(word) {
        if Instant::now() > end || !program.is_running() {
            return Err(program
                .wait(LIMIT)
                .map_or_else(Failure::from, |ended| ended.stderr.into()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A curl that takes its time, so that the server can be changed under it.
pub(crate) struct Download {
    curl: Running,
    file: PathBuf,
}

impl Download {
    /// Starts it, and returns when the first bytes have come.
    pub(crate) fn start(site: &Site, way: Way, url: &str) -> Result<Self, Failure> {
        let file = site.path().join("downloaded");
        let _ = fs::remove_file(&file);
        let mut command = site.command(way.lifts_client(), program("curl"));
        command.args(["-sS", "--max-time", "50", "--limit-rate", "25M", url, "-o"]).arg(&file);
        let mut curl = Running::start(&mut command)?;
        let end = Instant::now() + LIMIT;
        while !file.metadata().is_ok_and(|data| data.len() > 0) {
            if !curl.is_running() || Instant::now() > end {
                return Err(curl.wait(LIMIT)?.stderr.into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Download { curl, file })
    }

    /// Waits for its end and gives the number of bytes, and of those that are not as the first.
    pub(crate) fn finish(mut self) -> Result<(usize, usize), Failure> {
        self.curl.succeed(LIMIT)?;
        let mut bytes = Vec::new();
        File::open(&self.file)?.read_to_end(&mut bytes)?;
        let first = bytes.first().copied();
        Ok((bytes.len(), bytes.iter().filter(|byte| Some(**byte) != first).count()))
    }
}

/// Writes `line` to a program again and again, until something else is done.
pub(crate) fn feed<T>(
    input: &mut (impl Write + Send),
    line: &str,
    meanwhile: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let fed = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                input.write_all(line.as_bytes())?;
                thread::sleep(Duration::from_millis(5));
            }
            Ok::<_, std::io::Error>(())
        });
        let outcome = meanwhile();
        done.store(true, Ordering::Relaxed);
        fed.join().map_err(|_| "a thread panicked")??;
        outcome
    })
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, number: libc::c_int) -> Result<(), Failure> {
    // SAFETY: kill has no memory arguments.
    match unsafe { libc::kill(pid.cast_signed(), number) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

/// The process id in a file that a server writes.
pub(crate) fn pid_in(file: &Path) -> Result<u32, Failure> {
    Ok(std::fs::read_to_string(file)?.trim().parse()?)
}

/// Waits until `done`, for a minute at the most.
pub(crate) fn wait_until(
    what: &str,
    mut done: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let end = Instant::now() + LIMIT;
    while !done()? {
        if Instant::now() > end {
            return Err(format!("waited in vain: {what}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Runs a plain program that has to succeed; its output.
pub(crate) fn plainly(command: &mut Command) -> Result<String, Failure> {
    Ok(Running::start(command)?.succeed(LIMIT)?.stdout)
}

pub(crate) fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| name.into())
}
